"""Paragraphs and commands of a model card."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from ..files import PACKAGE_URL, RECIPE_FILE
from ..modeling.plans import QUERY_KEY as QUERY_KEY_SECTION
from ..parts.query_key.methods import METHODS
from ..parts.registry import EMBEDDINGS, PARTS, QUERY_KEY
from .facts import CardFacts, base_model
from .paths import is_path, last_part, without_paths

# Options of `collab-hf heal` by the entry of the recovery's settings, with the value that needs none.
_HEAL_OPTIONS = {
    "minutes": ("--minutes", None),
    "learning_rate": ("--lr", 0.01),
    "trainable": ("--trainable", "factors"),
    "patience": ("--patience", 4),
    "gradient_accumulation": ("--gradient-accumulation", 1),
    "mixed_precision": ("--mixed-precision", "auto"),
    "seed": ("--seed", 0),
}
# What each section of config.json made smaller.
_PARTS = {QUERY_KEY_SECTION if part is QUERY_KEY else name: part for name, part in PARTS.items()}


def install_line() -> str:
    """How collab_hf is installed, as far as there is an address to install it from."""
    if PACKAGE_URL is None:
        return "`pip install .` in a clone of its repository"
    return f"`pip install git+{PACKAGE_URL.removeprefix('git+')}`"


def loading(facts: CardFacts, name: str, auto_class: str, trusted: bool) -> str:
    """Python lines that load the model and what prepares its inputs.

    Args:
        facts: of the checkpoint.
        name: the repository.
        auto_class: of the model.
        trusted: whether the repository's own code runs.

    Returns:
        The lines.
    """
    needs_trust = trusted and not facts.portable
    parts = [("model", auto_class, ", trust_remote_code=True" if needs_trust else "")]
    if facts.tokenizer:
        parts.append(("tokenizer", "AutoTokenizer", ""))
    if facts.image_processor:
        parts.append(("processor", "AutoImageProcessor", ""))
    lines = [] if trusted else ["import collab_hf"]
    lines += [f"from transformers import {', '.join(sorted(kind for _, kind, _ in parts))}", ""]
    lines += [f'{variable} = {kind}.from_pretrained("{name}"{more})' for variable, kind, more in parts]
    return "\n".join(lines)


def sentence_transformers(facts: CardFacts, name: str) -> str:
    """The same for sentence-transformers, where the checkpoint is one of theirs."""
    if not facts.sentence_transformers:
        return ""
    trust = "" if facts.portable else ", trust_remote_code=True"
    return (
        "\nAs sentence embeddings:\n\n```python\nfrom sentence_transformers import SentenceTransformer\n\n"
        f'model = SentenceTransformer("{name}"{trust})\n```\n'
    )


def dense_again(facts: CardFacts, name: str) -> str:
    """How to get the host's own class back, where the heads hold what the forms hold."""
    smaller = {section for section in _PARTS if facts.collab.get(section)}
    if not facts.plans or smaller - {QUERY_KEY_SECTION, EMBEDDINGS.name}:
        return ""
    heads = facts.config.get("num_attention_heads") or 1
    head_dim = facts.config.get("head_dim") or (facts.config.get("hidden_size") or 0) // heads
    fits = all(
        _dense_width(plan) <= head_dim or plan.get("method") == "copy" for plan in facts.plans.values()
    )
    exact = "" if fits else ", nearest=True"
    kind = "as many parameters as the original again" if fits else "the nearest one, which is not quite equal"
    return (
        f"\nAs a plain {facts.host}, for tools that know nothing of either ({kind}):\n\n```python\n"
        "from collab_hf import load_model, to_dense_\n\n"
        f'to_dense_(load_model("{name}"){exact}).save_pretrained("dense")\n```\n'
    )


def _dense_width(plan: Mapping[str, Any]) -> int:
    """Dimensions that a dense head needs for the scores of a form; an exact content bias takes one."""
    return int(plan.get("score_width", 0)) + int(plan.get("content_bias", "exact") == "exact")


def how_it_was_made(facts: CardFacts) -> str:
    """What was done to which parts, in words."""
    methods = Counter(str(plan.get("method")) for plan in facts.plans.values())
    sentences = [
        method.done.format(layers=_layers(methods[name])) for name, method in METHODS.items() if methods[name]
    ]
    for section, part in _PARTS.items():
        count = len(facts.collab.get(section) or ())
        if count and part.done:
            sentences.append(part.done.format(layers=_layers(count)))
    return " ".join([*_before(facts), *sentences, *_trained(facts)])


def _before(facts: CardFacts) -> Iterator[str]:
    """What is smaller in ways that config.json's own entries say."""
    plans = (facts.report.get("whole") or {}).get("plans") or {}
    for stack in plans.get("blocks", {}).values() if facts.portable else ():
        numbers = ", ".join(map(str, stack["kept"]))
        yield f"Of the original's layers, counted from 0, these stay: {numbers}."
    widths = {form["width"] for form in plans.get("feed_forward", {}).values()}
    if facts.portable and widths:
        yield (
            f"Every feed-forward has {widths.pop()} neurons, and its output projection was refitted to those "
            "that stay."
        )
    found = facts.report.get("vocabulary")
    if found:
        yield (
            f"{found['rows_after']:,} of {found['rows_before']:,} rows of the vocabulary stay, those that "
            f"{found['texts']:,} texts use and what any text needs. The tokenizer changed with it: token ids "
            "are not the original's, and text of another kind is read in smaller pieces."
        )


def ways_to_load(facts: CardFacts, name: str, auto_class: str) -> str:
    """How the model is loaded, with and without collab_hf.

    Args:
        facts: of the checkpoint.
        name: the repository.
        auto_class: of the model.

    Returns:
        Sentences and blocks of Python.
    """
    trusted = loading(facts, name, auto_class, trusted=True)
    if facts.portable:
        return (
            f"This is a checkpoint of the original's own class, {facts.host}. It loads with transformers and "
            f"with every tool that knows {facts.host}, without any other code:\n\n```python\n{trusted}\n```"
        )
    package = loading(facts, name, auto_class, trusted=False)
    return (
        "With transformers alone, by the code in this repository; nothing else has to be installed:\n\n"
        f"```python\n{trusted}\n```\n\n"
        f"With collab_hf installed ({install_line()}), by its code:\n\n```python\n{package}\n```"
    )


def _trained(facts: CardFacts) -> Iterator[str]:
    """What else is not as it was in the original."""
    whole = facts.recipe.get("plans") and facts.recipe.get("reconstruct_steps") != 0
    trained = {str((found.get("config") or {}).get("trainable")) for found in facts.recoveries}
    if "all" in trained:
        yield "All weights were then trained to give the original's outputs."
    elif whole or "blocks" in trained:
        yield "All weights of the layers were then fitted to the original's outputs."
        yield "Everything else is the original's."
    elif "attention" in trained:
        yield "All weights of these attention layers were then fitted to the original's outputs."
        yield "Everything else is the original's."
    else:
        yield "Everything else is the original's."


def places(facts: CardFacts) -> str:
    """Where surgery was done, such as ` on its attention`; nothing where config.json doesn't say it."""
    found = list(dict.fromkeys(part.place for s, part in _PARTS.items() if facts.collab.get(s)))
    joined = " and ".join([", ".join(found[:-1]), found[-1]] if len(found) > 1 else found)
    return f" on its {joined}" if joined else ""


def divergence(facts: CardFacts) -> str:
    """How far the model is from its original, as far as that was measured."""
    measured = facts.report.get("measured_loss")
    lines = []
    if isinstance(measured, float):
        when = ", before the recovery" if facts.recovery else ""
        lines.append(
            f"Divergence of the hidden states from the original's, on calibration examples that were held out"
            f"{when}: {measured:.4f}."
        )
    return "\n\n" + "\n".join(lines) if lines else ""


def recovery(facts: CardFacts) -> str:
    """What the recovery did."""
    texts = [_one_recovery(found) for found in facts.recoveries]
    return "\n### Recovery\n\n" + "\n\n".join(texts) + "\n" if texts else ""


def _one_recovery(found: Mapping[str, Any]) -> str:
    change = [
        f"{label} {found[f'{name}_before']:.4f} → {found[f'{name}_after']:.4f}"
        for name, label in (("loss", "held-out loss"), ("agreement", "agreement with the original"))
        if isinstance(found.get(f"{name}_before"), float) and isinstance(found.get(f"{name}_after"), float)
    ]
    return (
        f"The compressed model learned from its original on examples without labels, in "
        f"{found.get('steps', 'some')} updates{': ' if change else ''}{', '.join(change)}."
    )


def commands(facts: CardFacts) -> str:
    """The commands that make the checkpoint again, from the recipe beside it."""
    model = facts.report.get("model")
    if not model:
        return ""
    original = base_model(facts) or last_part(str(model))
    healed = facts.recoveries
    # One directory for every step; the last is DIR.
    steps = ["COMPRESSED", *(f"HEALED-{number}" for number in range(1, len(healed)))][: len(healed)]
    places = [*steps, "DIR"]
    words = ["collab-hf", "compress", original, "-o", places[0]]
    for name in ("revision", "subfolder", "dtype"):
        value = facts.report.get(name)
        if value and value != "auto":
            words += [f"--{name}", last_part(str(value)) if is_path(str(value)) else str(value)]
    lines = [shlex.join([*words, "--config", RECIPE_FILE])]
    for found, place, output in zip(healed, places, places[1:], strict=False):
        options = _heal_options(found, facts, original)
        lines.append(shlex.join(["collab-hf", "heal", place, "-o", output, *options]))
    return "\n```bash\n" + "\n".join(lines) + "\n```\n"


def _heal_options(found: Mapping[str, Any], facts: CardFacts, original: str) -> Iterator[str]:
    settings = found.get("config") or {}
    data = str(found.get("data") or facts.recipe.get("calibration") or "default")
    yield from ("--teacher", original, "--data", last_part(data) if is_path(data) else data)
    if settings.get("minutes") is None:
        yield from ("--steps", str(settings.get("steps") or found.get("steps", 400)))
    for name, (option, default) in _HEAL_OPTIONS.items():
        if settings.get(name, default) not in (default, None):
            yield from (option, str(settings[name]))


def recipe(facts: CardFacts) -> str:
    """The recipe as a block of YAML."""
    if not facts.recipe:
        return ""
    text = yaml.safe_dump(without_paths(dict(facts.recipe)), sort_keys=False, allow_unicode=True)
    return f"`{RECIPE_FILE}`:\n\n```yaml\n{text}```\n"


def _layers(count: int) -> str:
    return f"{count} layers" if count > 1 else "one layer"


def sources(facts: CardFacts) -> str:
    """Where methods come from that the model has a part of, one line each."""
    if not facts.collab.get("heads"):
        return ""
    return (
        "- P. Michel, O. Levy, G. Neubig: Are Sixteen Heads Really Better than One?, "
        "[arXiv:1905.10650](https://arxiv.org/abs/1905.10650); B. Hassibi, D. Stork: Second order "
        "derivatives for network pruning: Optimal brain surgeon, NIPS 1992\n"
    )
