"""The model card: what was done to a checkpoint and what was measured, from the files that lie there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from string import Template
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..checkpoint.precheck import one_sentence
from ..files import CARD_FILE, ONNX_GRAPH
from ..modeling.errors import CheckpointError
from ..version import __version__
from . import card_text
from .card_tables import layers_table, section, size_tables, totals_table
from .facts import CardFacts, base_model, card_metadata, read_card
from .names import check_id, is_hub_id
from .paths import hide_paths, is_path, last_part

TEMPLATE = Path(__file__).with_name("card_template.md")

# What a derived model may say about itself in its source's words.
_TAKEN_OVER = ("license", "license_name", "license_link", "language", "datasets", "pipeline_tag")
_PIPELINES = {
    "ForMaskedLM": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMultipleChoice": "multiple-choice",
    "ForImageClassification": "image-classification",
    "LMHeadModel": "text-generation",
}
_AUTO_CLASSES = {**{head: f"AutoModel{head}" for head in _PIPELINES}, "LMHeadModel": "AutoModelForCausalLM"}
# Of `collab-hf evaluate`: the Hub's names of tasks and metrics.
_TASKS = {"stsb": "sentence-similarity", "accuracy": "text-classification"}
_METRICS = {"spearman": "spearmanr", "pearson": "pearsonr", "accuracy": "accuracy"}
# The last line of a card: for which name it was made, and that nobody has changed it since.
_SEAL = re.compile(r"\n*<!-- collab_hf card of (\S+) sha256 ([0-9a-f]{64}) -->\s*\Z")


def make_card(
    directory: Path,
    *,
    repo_id: str | None = None,
    base_model: str | None = None,
    evaluation: Mapping[str, Any] | None = None,
    bench: Mapping[str, Any] | None = None,
    export: Mapping[str, Any] | None = None,
) -> ModelCard:
    """Write the card of a compressed checkpoint, without saving it.

    Args:
        directory: the checkpoint; README.md is read as the original's card, for licence and languages.
        repo_id: what the loading examples name; by default the directory's name.
        base_model: Hub id of the original, where that was a local copy; by default what report or card say.
        evaluation: what `collab-hf evaluate --json` printed.
        bench: what `collab-hf bench --json` printed.
        export: what `collab-hf export --json` printed: another format, its size and its difference.

    Returns:
        The card. Where a file or directory of this machine stood, its last part stands.

    Raises:
        CheckpointError: no compressed checkpoint, or a file that is malformed.
        ConfigError: base_model is no Hub id.
    """
    facts = CardFacts.read(directory)
    if base_model is not None:
        check_id("base_model", base_model)
        named = {"model": base_model, "model_is_local": False}
        facts = replace(facts, report={**facts.report, **named} if facts.report else {})
        facts = replace(facts, source={**facts.source, "base_model": base_model})
    name = repo_id or directory.resolve().name
    sections = {
        "evaluation": section("What was measured", evaluation),
        "speed": section("Speed", bench),
        "export": section("In another format", export),
    }
    template = Template(TEMPLATE.read_text(encoding="utf-8"))
    try:
        body = template.substitute(_fields(facts, name), **sections)
        return _sealed(_metadata(facts, evaluation, name), body, name)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        # Well-formed files, edited by hand: every one of their values would have to be looked at.
        raise CheckpointError(
            f"what config.json, recipe and reports in {directory} say makes no card: {one_sentence(error)}"
        ) from error


def make_dense_card(original: Path, name: str, host: str) -> ModelCard:
    """The card of a dense export, as for `make_export_card`; host is its class."""
    return make_export_card(
        original,
        name,
        f"A plain {host}: the dense form of a checkpoint whose attention collab_hf had made smaller, with "
        "the same outputs up to rounding and as many parameters as the original.",
    )


def make_onnx_card(original: Path, name: str, host: str) -> ModelCard:
    """The card of a directory with an ONNX graph, as for `make_export_card`; host is the model's class."""
    return make_export_card(
        original,
        name,
        f"A {host} as ONNX graph (`{ONNX_GRAPH}`), of a checkpoint that collab_hf had made smaller. ONNX "
        "Runtime, optimum and sentence-transformers run it without collab_hf.",
    )


def make_export_card(original: Path, name: str, text: str) -> ModelCard:
    """The card of an export: the licence and the origin stay, what was said of the forms goes.

    Args:
        original: the compressed checkpoint that was exported.
        name: of the export.
        text: what it is.

    Returns:
        The card.
    """
    source = card_metadata(read_card(original))
    data = {**_taken_over(source), **_origin(source.get("base_model"))}
    body = f"# {name}\n\n{text}"
    tags = [tag for tag in _listed(source.get("tags")) if isinstance(tag, str) and not is_path(tag)]
    kept = [tag for tag in tags if tag != "compressed"]
    return _sealed(ModelCardData(tags=kept or ["collab_hf"], **data), body, name)


def renewed_card(directory: Path, repo_id: str, **measured: Any) -> str:
    """A card for a repository: made anew from the directory's state, unless somebody has changed it.

    Args:
        directory: the checkpoint.
        repo_id: the repository's name.
        **measured: base_model, evaluation, bench and export, as for `make_card`.

    Returns:
        The card's text. One that was changed keeps its words, with the repository's name in them, unless
        there is something measured to add.
    """
    text = read_card(directory)
    seal = _SEAL.search(text)
    ours = "collab_hf" in _listed(card_metadata(text).get("tags"))
    untouched = seal is not None and seal[2] == _digest(text[: seal.start()])
    if not ours or untouched or any(value is not None for value in measured.values()):
        return str(make_card(directory, repo_id=repo_id, **measured))
    named = seal[1] if seal else directory.resolve().name
    return _SEAL.sub("\n", text).replace(f'"{named}"', f'"{repo_id}"')


def _sealed(data: ModelCardData, body: str, name: str) -> ModelCard:
    body = hide_paths(re.sub(r"\n{3,}", "\n\n", body)).rstrip()
    content = f"---\n{data.to_yaml()}\n---\n\n{body}\n"
    seal = f"<!-- collab_hf card of {hide_paths(name)} sha256 {_digest(str(ModelCard(content)))} -->"
    return ModelCard(f"{content}\n{seal}\n")


def _digest(text: str) -> str:
    lines = [line.rstrip() for line in text.strip().splitlines()]
    return sha256("\n".join(lines).encode()).hexdigest()


def _metadata(facts: CardFacts, evaluation: Mapping[str, Any] | None, name: str) -> ModelCardData:
    taken = _taken_over(facts.source)
    tags = [tag for tag in _listed(facts.source.get("tags")) if isinstance(tag, str) and not is_path(tag)]
    pipeline = taken.setdefault("pipeline_tag", facts.by_head(_PIPELINES) or _backbone_pipeline(facts))
    results = _results(evaluation, str(pipeline))
    measured: dict[str, Any] = {"eval_results": results, "model_name": last_part(name)} if results else {}
    kind = [] if facts.portable else ["collaborative-attention"]
    return ModelCardData(
        library_name="sentence-transformers" if facts.sentence_transformers else "transformers",
        tags=list(dict.fromkeys(["collab_hf", *kind, "compressed", *tags])),
        **taken,
        **_origin(base_model(facts)),
        **measured,
    )


def _origin(base: Any) -> dict[str, Any]:
    base = base[0] if isinstance(base, list) and base else base
    # The Hub knows adapter, merge, quantized and finetune; the weights are neither of the first three.
    known = isinstance(base, str) and is_hub_id(base)
    return {"base_model": base, "base_model_relation": "finetune"} if known else {}


def _results(evaluation: Mapping[str, Any] | None, pipeline: str) -> list[EvalResult]:
    """What `collab-hf evaluate` found on labelled data, as the Hub's model-index has it."""
    values = evaluation or {}
    task, data = values.get("task"), values.get("data")
    if not isinstance(data, str) or task not in _TASKS:
        return []
    name = Path(last_part(data)).stem
    return [
        EvalResult(
            task_type=_TASKS.get(str(task), pipeline),
            dataset_type=re.sub(r"[^a-z0-9_-]+", "-", name.lower()),
            dataset_name=name,
            metric_type=metric,
            metric_name=own,
            metric_value=values[own],
        )
        for own, metric in _METRICS.items()
        if isinstance(values.get(own), float)
    ]


def _taken_over(source: Mapping[str, Any]) -> dict[str, Any]:
    taken = {name: source[name] for name in _TAKEN_OVER if name in source}
    for name in ("license", "license_name", "pipeline_tag"):
        if not isinstance(taken.get(name, ""), str):
            del taken[name]
    if "language" in taken:
        # YAML 1.1 reads the code of Norwegian, no, as a boolean.
        taken["language"] = ["no" if code is False else code for code in _listed(taken["language"])]
    if "datasets" in taken:
        names = [name for name in _listed(taken["datasets"]) if isinstance(name, str)]
        taken["datasets"] = [name for name in names if is_hub_id(name)]
    if "license_link" in taken:
        taken["license_link"] = hide_paths(str(taken["license_link"]))
    return {name: value for name, value in taken.items() if value}


def _fields(facts: CardFacts, name: str) -> dict[str, str]:
    base, report = base_model(facts), facts.report
    linked = f"[{base}](https://huggingface.co/{base})" if base else _unpublished(facts)
    auto = facts.by_head(_AUTO_CLASSES) or "AutoModel"
    calibrated = "what the softmax sees on examples" if report.get("calibrated") else "the weights alone"
    note = f"Relative error: ||T - T^|| / ||T|| of the heads' score matrices, measured on {calibrated}."
    return {
        "title": name.rpartition("/")[2],
        "version": __version__,
        "summary": f"{linked} made smaller by surgery{card_text.places(facts)}. It loads and runs like the "
        f"original, a {facts.host}.",
        "totals": totals_table(facts.report, facts.weight_bytes),
        "divergence": card_text.divergence(facts),
        "load": card_text.ways_to_load(facts, name, auto),
        "dense": card_text.dense_again(facts, name),
        "sentence_transformers": card_text.sentence_transformers(facts, name),
        "made": card_text.how_it_was_made(facts),
        "command": card_text.commands(facts),
        "recipe": card_text.recipe(facts),
        "recovery": card_text.recovery(facts),
        "layers": layers_table(facts.report, facts.plans, facts.collab.get("heads") or {}),
        "sources": card_text.sources(facts),
        "sizes": size_tables(report),
        "error_note": note if report.get("layers") and not report.get("whole") else "",
        "base_line": f"The original: {linked.rstrip(chr(44))}",
    }


def _unpublished(facts: CardFacts) -> str:
    name = facts.report.get("model")
    return f"{last_part(str(name))}, a model that is not on the Hub," if name else "A model"


def _backbone_pipeline(facts: CardFacts) -> str:
    if facts.sentence_transformers:
        return "sentence-similarity"
    return "image-feature-extraction" if "image_size" in facts.config else "feature-extraction"


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def write_card(directory: Path, name: str, *, base_model: str | None = None) -> None:
    """Put a checkpoint's card beside it, from the state that the directory has now.

    Args:
        directory: the checkpoint.
        name: what the loading examples name.
        base_model: as for `make_card`.
    """
    card = make_card(directory, repo_id=name, base_model=base_model)
    (directory / CARD_FILE).write_text(str(card), encoding="utf-8")
