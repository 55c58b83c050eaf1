"""What a model card says, read from a checkpoint's directory."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..files import CARD_FILE, MODULES_FILE, RECIPE_FILE, RECOVERY_FILE, REPORT_FILE
from ..modeling.errors import CheckpointError
from .names import is_hub_id

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "tokenizer.model")


@dataclass(frozen=True)
class CardFacts:
    """What a card says, read from a checkpoint.

    Attributes:
        config: config.json.
        report: collab_report.json, empty where the checkpoint was saved without one.
        recipe: collab_recipe.yaml, empty likewise.
        recovery: collab_recovery.json, empty where nothing was recovered.
        source: metadata of the card that lies there, the original's or an earlier one of ours.
        weight_bytes: size of the safetensors files.
        sentence_transformers: whether the directory is one of theirs.
        tokenizer: whether there is one.
        image_processor: whether there is one.
    """

    config: Mapping[str, Any]
    report: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    recovery: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    weight_bytes: int = 0
    sentence_transformers: bool = False
    tokenizer: bool = False
    image_processor: bool = False

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
        report = _read(directory / REPORT_FILE, missing_ok=True)
        if not config.get("collab") and not report.get("portable"):
            raise CheckpointError(
                f"{directory} is not a compressed checkpoint: config.json has no collab entry"
            )
        return cls(
            config,
            report,
            _read(directory / RECIPE_FILE, missing_ok=True),
            _read(directory / RECOVERY_FILE, missing_ok=True),
            card_metadata(read_card(directory)),
            sum(file.stat().st_size for file in directory.glob("*.safetensors")),
            (directory / MODULES_FILE).is_file(),
            any((directory / name).is_file() for name in _TOKENIZER_FILES),
            (directory / "preprocessor_config.json").is_file(),
        )

    @property
    def collab(self) -> Mapping[str, Any]:
        """Forms by section, as config.json has them; none where the checkpoint is of the host's own class."""
        found = self.config.get("collab")
        return found if isinstance(found, Mapping) else {}

    @property
    def portable(self) -> bool:
        """Whether it loads without any code of ours."""
        return not self.collab

    @property
    def recoveries(self) -> list[Mapping[str, Any]]:
        """What recoveries did, the first one first."""
        found, one = [], self.recovery
        while isinstance(one, Mapping) and one:
            found.append(one)
            one = one.get("earlier") or {}
        return found[::-1]

    @property
    def plans(self) -> Mapping[str, Mapping[str, Any]]:
        """Forms of the queries and keys by layer."""
        found = self.collab.get("layers", {})
        return found if isinstance(found, Mapping) else {}

    @property
    def host(self) -> str:
        """Name of the original's class."""
        return str((self.config.get("architectures") or ["model"])[0]).removeprefix("Collab")

    def by_head(self, values: Mapping[str, str]) -> str | None:
        """The value for the model's task head, by the end of its class's name."""
        return next((value for head, value in values.items() if self.host.endswith(head)), None)


def read_card(directory: Path) -> str:
    """The README of a directory, in whatever encoding; empty where there is none that can be read."""
    try:
        return (directory / CARD_FILE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def card_metadata(text: str) -> dict[str, Any]:
    """The YAML header of a model card.

    Args:
        text: the card.

    Returns:
        Its fields by name; none where there is no header, or it is no mapping.
    """
    found = re.match(r"\ufeff?\s*---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    try:
        values = yaml.safe_load(found[1]) if found else None
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: a date that no calendar has
        return {}
    return values if isinstance(values, dict) else {}


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
    return name if isinstance(name, str) and is_hub_id(name) else None


def _read(file: Path, *, missing_ok: bool = False) -> dict[str, Any]:
    if missing_ok and not file.is_file():
        return {}
    try:
        # JSON is YAML, but for speed and for its errors it is read as what it is.
        text = file.read_text(encoding="utf-8")
        values = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise CheckpointError(f"{file} can't be read: {str(error).partition(chr(10))[0]}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} must hold a mapping")
    return values
