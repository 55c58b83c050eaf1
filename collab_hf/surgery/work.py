"""One run of `compress_checkpoint`: where it reads, what it was asked for, and what it writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import PreTrainedModel

from ..checkpoint.certificate import certify
from ..checkpoint.load import load_model
from ..checkpoint.precheck import read_json
from ..checkpoint.save import new_directory, save_checkpoint
from ..checkpoint.streaming import Spill
from ..config import CollabConfig
from ..files import CARD_FILE, RECIPE_FILE, RECOVERY_FILE, REPORT_FILE
from ..hub.card import make_card
from ..hub.source import Loading, find_device
from ..processes import Processes
from ..recipe import Recipe, public_name
from ..recovery import RecoveryReport
from .report import CompressionReport
from .vocabulary import Trimmed


@dataclass
class Work:
    """One run: where it reads, what it was asked for, and where it writes.

    Attributes:
        model: a name, or a model that is loaded.
        output: the directory to make.
        config: what is asked for.
        loading: how a model that is not loaded yet is.
        overwrite: whether an existing checkpoint is replaced.
        progress: whether to draw progress bars on stderr.
        processor: tokenizer or image processor, once it is known.
        data: what recovery reads.
    """

    model: PreTrainedModel | str | Path
    output: Path
    config: CollabConfig
    loading: Loading
    overwrite: bool
    progress: bool
    processor: Any = None
    data: Any = None

    @property
    def name(self) -> str:
        """The model's name: what was given, or what a loaded model says of itself."""
        if isinstance(self.model, PreTrainedModel):
            return str(self.model.config.name_or_path or type(self.model).__name__)
        return str(self.model)

    @property
    def public_name(self) -> str:
        """The name without the local path that leads to it."""
        return public_name(self.name)

    @property
    def place(self) -> Path:
        """Where a local model lies."""
        return Path(self.name) / self.loading.subfolder

    @property
    def spill(self) -> Spill | None:
        """Takes the new weights of a model that is loaded here; one that was given stays in memory."""
        return None if isinstance(self.model, PreTrainedModel) else Spill(self.output)

    @property
    def device(self) -> torch.device:
        """Where the model is, or will be."""
        if isinstance(self.model, PreTrainedModel):
            return self.model.device
        return find_device(self.loading.device)

    def load(self, device: torch.device) -> PreTrainedModel:
        """The dense model.

        Args:
            device: that of this process.

        Returns:
            The model, there.
        """
        model = self.model if isinstance(self.model, PreTrainedModel) else self.loading.model(self.name)
        if model.device.type != device.type or device.index not in (None, model.device.index):
            model.to(device)  # type: ignore[arg-type]
        return model

    def read_processor(self) -> Any:
        """The tokenizer or image processor, loaded once."""
        if self.processor is None:
            self.processor = self.loading.processor(self.name)
        return self.processor

    def write(
        self,
        model: PreTrainedModel,
        recipe: Recipe,
        report: CompressionReport,
        healed: RecoveryReport | None,
        source: Mapping[str, Any],
        trimmed: Trimmed | None,
    ) -> int:
        """Write the checkpoint and what belongs to it.

        Args:
            model: the compressed model.
            recipe: that made it.
            report: what compression did.
            healed: what recovery did, if anything.
            source: where the model came from, for the report.
            trimmed: the vocabulary, where it was trimmed.

        Returns:
            Size of the weights' files in bytes.
        """
        local = not isinstance(self.model, PreTrainedModel) or self.place.is_dir()
        original: str | Path = self.loading.files(self.name) if local else self.name
        with new_directory(self.output, overwrite=self.overwrite) as directory:
            save_checkpoint(model, directory, original=original, processor=self.processor)
            if trimmed is not None:
                trimmed.write(directory)
            recipe.write(directory / RECIPE_FILE)
            text = json.dumps({**source, **report.repeatable.to_dict()}, indent=2, allow_nan=False)
            (directory / REPORT_FILE).write_text(text + "\n", encoding="utf-8")
            certify(directory, model)
            if healed is not None:
                write_recovery(directory, healed, self.data)
            base = self.loading.base_model
            card = make_card(directory, repo_id=self.output.resolve().name, base_model=base)
            card.save(directory / CARD_FILE)
            return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def of_main(model: PreTrainedModel, processes: Processes) -> PreTrainedModel:
    """The main process's model in every process, by way of a checkpoint.

    A model that has run can't be pickled: transformers' hooks on it are local functions.

    Args:
        model: the main process's; the others' is not looked at.
        processes: of the run.

    Returns:
        In the main process, the model itself.

    Raises:
        CheckpointError: no room for the files.
    """
    if processes.count == 1:
        return model

    def files() -> dict[str, bytes]:
        with TemporaryDirectory() as place:
            model.save_pretrained(place)
            return {file.name: file.read_bytes() for file in Path(place).iterdir()}

    content = processes.from_main(files)
    with processes.together(), TemporaryDirectory() as place:
        if processes.is_main:
            return model
        for name, data in content.items():
            (Path(place) / name).write_bytes(data)
        return load_model(Path(place)).to(processes.device)  # type: ignore[arg-type, no-any-return]


def write_recovery(directory: Path, report: RecoveryReport, data: Any = None) -> None:
    """Put the report of a recovery into a checkpoint; that of one before it stays inside of it, as `earlier`.

    Args:
        directory: of the checkpoint.
        report: what recovery did.
        data: what it read; a name is kept, without the local path that leads to it.
    """
    named = {"data": public_name(data)} if isinstance(data, str) else {}
    place = directory / RECOVERY_FILE
    earlier = {"earlier": read_json(place)} if place.is_file() else {}
    text = json.dumps({**named, **report.to_dict(), **earlier}, indent=2, allow_nan=False)
    place.write_text(text + "\n", encoding="utf-8")
