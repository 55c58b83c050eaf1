"""The model card: what was done to a checkpoint and what was measured, from the files that compress wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from ..files import CARD_FILE, RECIPE_FILE, REPORT_FILE
from ..modeling.errors import CheckpointError
from .card_tables import layer_rows, section, totals_table
from .paths import hide_paths, is_path, last_part, without_paths

TEMPLATE = Path(__file__).with_name("card_template.md")

# What a derived model may say about itself in its source's words.
_TAKEN_OVER = ("license", "license_name", "license_link", "language", "datasets", "pipeline_tag")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
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


@dataclass(frozen=True)
class CardFacts:
    """What a card says, read from a checkpoint.

    Attributes:
        config: config.json.
        report: collab_report.json, empty where the checkpoint was saved without one.
        recipe: collab_recipe.yaml, empty likewise.
        source: metadata of the original's card.
        weight_bytes: size of the safetensors files.
        sentence_transformers: whether the directory is one of theirs.
    """

    config: Mapping[str, Any]
    report: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    weight_bytes: int = 0
    sentence_transformers: bool = False

    @classmethod
    def read(cls, directory: Path) -> CardFacts:
        """Read the files of a compressed checkpoint.

        Args:
            directory: as `collab-hf compress` or `save_pretrained` wrote it.

        Returns:
            The facts.

        Raises:
            CheckpointError: no compressed checkpoint, or a file that is malformed.
        """
        config = _read(directory / "config.json")
        if not config.get("collab"):
            raise CheckpointError(
                f"{directory} is not a compressed checkpoint: config.json has no collab entry"
            )
        card = directory / CARD_FILE
        source = card_metadata(card.read_text(encoding="utf-8")) if card.is_file() else {}
        return cls(
            config,
            _read(directory / REPORT_FILE, missing_ok=True),
            _read(directory / RECIPE_FILE, missing_ok=True),
            source,
            sum(file.stat().st_size for file in directory.glob("*.safetensors")),
            (directory / "modules.json").is_file(),
        )


def card_metadata(text: str) -> dict[str, Any]:
    """The YAML header of a model card.

    Args:
        text: the card.

    Returns:
        Its fields by name; none where there is no header, or it is no mapping.
    """
    found = re.match(r"\s*---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    try:
        values = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:
        return {}
    return values if isinstance(values, dict) else {}


def make_card(
    directory: Path,
    *,
    repo_id: str | None = None,
    evaluation: Mapping[str, Any] | None = None,
    bench: Mapping[str, Any] | None = None,
    export: Mapping[str, Any] | None = None,
) -> ModelCard:
    """Write the card of a compressed checkpoint, without saving it.

    Args:
        directory: the checkpoint; README.md is read as the original's card, for licence and languages.
        repo_id: what the loading examples name; by default the directory's name.
        evaluation: what `collab-hf evaluate --json` printed.
        bench: what `collab-hf bench --json` printed.
        export: what `collab-hf export --json` printed: another format, its size and its difference.

    Returns:
        The card. Where a file or directory of this machine stood, its last part stands.

    Raises:
        CheckpointError: no compressed checkpoint, or a file that is malformed.
    """
    facts = CardFacts.read(directory)
    name = repo_id or directory.resolve().name
    sections = {
        "evaluation": section("What was measured", evaluation),
        "speed": section("Speed", bench),
        "export": section("In another format", export),
    }
    template = Template(TEMPLATE.read_text(encoding="utf-8"))
    body = template.substitute(_fields(facts, name), **sections)
    body = re.sub(r"\n{3,}", "\n\n", body)
    return ModelCard(f"---\n{_metadata(facts).to_yaml()}\n---\n\n{hide_paths(body)}")


def _metadata(facts: CardFacts) -> ModelCardData:
    taken = _taken_over(facts.source)
    tags = [tag for tag in _listed(facts.source.get("tags")) if isinstance(tag, str) and not is_path(tag)]
    taken.setdefault("pipeline_tag", _by_head(facts, _PIPELINES) or _backbone_pipeline(facts))
    base = base_model(facts)
    if base is not None:
        # The Hub knows adapter, merge, quantized and finetune; the weights are neither of the first three.
        taken |= {"base_model": base, "base_model_relation": "finetune"}
    return ModelCardData(
        library_name="sentence-transformers" if facts.sentence_transformers else "transformers",
        tags=list(dict.fromkeys(["collab_hf", "collaborative-attention", "compressed", *tags])),
        **taken,
    )


def _taken_over(source: Mapping[str, Any]) -> dict[str, Any]:
    taken = {name: source[name] for name in _TAKEN_OVER if name in source}
    if "language" in taken:
        # YAML 1.1 reads the code of Norwegian, no, as a boolean.
        taken["language"] = ["no" if code is False else code for code in _listed(taken["language"])]
    if "datasets" in taken:
        names = [name for name in _listed(taken["datasets"]) if isinstance(name, str)]
        taken["datasets"] = [name for name in names if _HUB_ID.fullmatch(name)]
    if "license_link" in taken:
        taken["license_link"] = hide_paths(str(taken["license_link"]))
    return {name: value for name, value in taken.items() if value}


def base_model(facts: CardFacts) -> str | None:
    """The Hub id of the original.

    Args:
        facts: of the compressed checkpoint.

    Returns:
        The id, or None where the original was a directory of this machine.
    """
    name = facts.report.get("model")
    if not name or facts.report.get("model_is_local"):
        name = facts.source.get("base_model")
    name = name[0] if isinstance(name, list) and name else name
    return name if isinstance(name, str) and _HUB_ID.fullmatch(name) else None


def _fields(facts: CardFacts, name: str) -> dict[str, str]:
    from .. import __version__

    base, report = base_model(facts), facts.report
    linked = f"[{base}](https://huggingface.co/{base})" if base else _unpublished(facts)
    auto = _by_head(facts, _AUTO_CLASSES) or "AutoModel"
    host = str((facts.config.get("architectures") or ["model"])[0]).removeprefix("Collab")
    calibrated = "what the softmax sees on examples" if report.get("calibrated") else "the weights alone"
    note = f"Relative error: ||T - T^|| / ||T|| of the heads' score matrices, measured on {calibrated}."
    return {
        "title": name.rpartition("/")[2],
        "repo_id": name,
        "auto_class": auto,
        "host": host,
        "version": __version__,
        "summary": f"{linked} with a smaller attention: the query and key projections of {host} were "
        "decomposed together, over all heads. It loads and runs like the original.",
        "totals": totals_table(facts.report, facts.weight_bytes),
        "sentence_transformers": _sentence_transformers(name) if facts.sentence_transformers else "",
        "command": _command(facts),
        "recipe": _recipe(facts),
        "layers": "\n".join(layer_rows(facts.report, facts.config["collab"].get("layers", {}))),
        "error_note": note if report else "",
        "base_line": f"The original: {linked.rstrip(chr(44))}",
    }


def _unpublished(facts: CardFacts) -> str:
    name = facts.report.get("model")
    return f"{last_part(str(name))}, a model that is not on the Hub," if name else "A model"


def _command(facts: CardFacts) -> str:
    """The command that makes the checkpoint again, from the recipe beside it."""
    model = facts.report.get("model")
    if not model:
        return ""
    words = ["collab-hf", "compress", base_model(facts) or last_part(str(model)), "-o", "DIR"]
    for name in ("revision", "subfolder", "dtype"):
        value = facts.report.get(name)
        if value and value != "auto":
            words += [f"--{name}", last_part(str(value)) if is_path(str(value)) else str(value)]
    words += ["--config", RECIPE_FILE]
    return f"\n```bash\n{' '.join(words)}\n```\n"


def _recipe(facts: CardFacts) -> str:
    if not facts.recipe:
        return ""
    text = yaml.safe_dump(without_paths(dict(facts.recipe)), sort_keys=False, allow_unicode=True)
    return f"`{RECIPE_FILE}`:\n\n```yaml\n{text}```\n"


def _sentence_transformers(name: str) -> str:
    return (
        "\nAs sentence embeddings:\n\n```python\nfrom sentence_transformers import SentenceTransformer\n\n"
        f'model = SentenceTransformer("{name}", trust_remote_code=True)\n```\n'
    )


def _by_head(facts: CardFacts, values: Mapping[str, str]) -> str | None:
    architecture = str((facts.config.get("architectures") or [""])[0])
    return next((value for head, value in values.items() if architecture.endswith(head)), None)


def _backbone_pipeline(facts: CardFacts) -> str:
    if facts.sentence_transformers:
        return "sentence-similarity"
    return "image-feature-extraction" if "image_size" in facts.config else "feature-extraction"


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _read(file: Path, *, missing_ok: bool = False) -> dict[str, Any]:
    if missing_ok and not file.is_file():
        return {}
    try:
        # JSON is YAML, but for speed and for its errors it is read as what it is.
        text = file.read_text(encoding="utf-8")
        values = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(f"{file} can't be read: {str(error).partition(chr(10))[0]}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} must hold a mapping")
    return values
