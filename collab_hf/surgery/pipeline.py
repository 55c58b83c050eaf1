"""From a checkpoint to a smaller one: load, compress, recover, and save with recipe, report and card."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..calibration.examples import load_batches
from ..checkpoint.save import check_output, new_directory, save_checkpoint
from ..checkpoint.streaming import Spill
from ..config import CollabConfig
from ..errors import CalibrationError, ConfigError
from ..files import CARD_FILE, RECIPE_FILE, RECOVERY_FILE, REPORT_FILE
from ..hub.card import make_card
from ..hub.source import Loading
from ..recipe import DEFAULT_EXAMPLES, NO_CALIBRATION, Recipe, current_versions, public_name
from ..recovery import RecoveryConfig, RecoveryReport, recover_
from ..recovery.masking import mask_tokens
from .compress import compress_
from .report import CompressionReport
from .whole import compress_whole_

# Examples that recovery reads at most: their tokens stay in memory, and minutes of recovery read no more.
RECOVERY_EXAMPLES = 20_000

# How all parts are recovered: their blocks whole, at a rate that leaves what is trained already in place; of
# MiniLM's, .015 made them worse.
_WHOLE_RECOVERY: dict[str, Any] = {"trainable": "blocks", "learning_rate": 0.004}


@dataclass(frozen=True)
class CompressedCheckpoint:
    """A directory that `compress_checkpoint` wrote.

    Attributes:
        directory: where it is.
        report: what compression did.
        recovery: what recovery did; None where there was none.
        file_size: bytes of the weights' files.
    """

    directory: Path
    report: CompressionReport
    recovery: RecoveryReport | None
    file_size: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        values = {"output": str(self.directory), "file_size": self.file_size, **self.report.to_dict()}
        return values if self.recovery is None else {**values, "recovery": self.recovery.to_dict()}


def compress_checkpoint(
    model: PreTrainedModel | str | Path,
    output: str | Path,
    config: CollabConfig | None = None,
    *,
    calibration: Any = "default",
    calibration_examples: int = DEFAULT_EXAMPLES,
    recovery: RecoveryConfig | None = None,
    recovery_data: Any = None,
    recover: bool | None = None,
    processor: Any = None,
    loading: Loading | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> CompressedCheckpoint:
    """Do what `collab-hf compress` does: the same directory comes out.

    Args:
        model: a Hub id, a local directory, or a transformers model, which is changed in place.
        output: the directory to make; if anything fails, it does not appear.
        config: what is asked for; by default the forms of queries and keys at the knee of the measured loss.
        calibration: what the model reads: `default` for what ships with the package, `none` for no data, a
            file, a folder, a data set or its id, a list of texts or images, or batches of model inputs.
        calibration_examples: examples of it used at most.
        recovery: how to recover afterwards; None for the default where `recover` says so.
        recovery_data: what recovery reads, as for calibration; None for the calibration data, all of it.
        recover: whether to recover; None to do so where `recovery` is given, or where a target for the whole
            model is.
        processor: tokenizer or image processor; None to load that of the model.
        loading: dtype, device, revision and the like for a model that is loaded here.
        overwrite: whether an existing checkpoint is replaced.
        progress: whether to draw progress bars on stderr.

    Returns:
        The directory, the reports and the size.

    Raises:
        CheckpointError: the model can't be loaded, or the output can't be written.
        FamilyError: no layer that collab_hf knows, or a model that is compressed already.
        ConfigError: settings that contradict each other, or a target that can't be met.
        CalibrationError: data that can't be read or does not run.
    """
    work = _Work(model, Path(output), config or CollabConfig(), loading or Loading(), overwrite, progress)
    work.processor = processor
    # A recipe with plans is done once they are built: recovery is not in it, and was asked for beside it.
    targeted = work.config.is_whole and not work.config.plans
    wanted = recover if recover is not None else recovery is not None or targeted
    settings = _recovery_settings(work, recovery) if wanted else None
    data = calibration if recovery_data is None else recovery_data
    work.data = data
    if settings is not None and _is(data, NO_CALIBRATION):
        raise ConfigError(
            "recovery needs data: give --calibration, or leave out --heal-steps and --heal-minutes"
        )
    check_output(work.output, original=work.place, overwrite=overwrite)
    loaded = work.load()
    size_before = sum(p.numel() * p.element_size() for p in loaded.parameters())
    batches = work.batches(calibration, loaded, max_examples=calibration_examples)
    original = copy.deepcopy(loaded) if settings is not None or work.config.is_whole else None
    if work.config.is_whole:
        report = compress_whole_(loaded, work.config, batches, original=original, progress=progress)
    else:
        report = compress_(loaded, work.config, batches, spill=work.spill, progress=progress)
    healed = None
    if settings is not None and original is not None:
        more = work.recovery_batches(data, loaded, settings.seed)
        healed = recover_(loaded, original, more, settings, progress=progress)
    recipe = Recipe(
        report.config,
        calibration if isinstance(calibration, str) else "batches",
        calibration_examples,
        work.public_name,
        current_versions(),
    )
    size = _write(work, loaded, recipe, report, healed, size_before)
    if settings is not None:
        shutil.rmtree(states_beside(work.output), ignore_errors=True)
    return CompressedCheckpoint(work.output, report, healed, size)


@dataclass
class _Work:
    """One run: where it reads, what it was asked for, and where it writes."""

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

    def load(self) -> PreTrainedModel:
        """The dense model."""
        if isinstance(self.model, PreTrainedModel):
            return self.model
        return self.loading.model(self.name)

    def read_processor(self) -> Any:
        """The tokenizer or image processor, loaded once."""
        if self.processor is None:
            self.processor = self.loading.processor(self.name)
        return self.processor

    def batches(self, data: Any, model: PreTrainedModel, **sizes: Any) -> Iterable[Mapping[str, Any]] | None:
        """Model inputs of what the user named."""
        if _is(data, NO_CALIBRATION) or self.config.exact:
            return None
        if _are_batches(data):
            return list(data)
        seed = self.config.seed
        return load_batches(data, self.read_processor(), config=model.config, seed=seed, **sizes)

    def recovery_batches(self, data: Any, model: PreTrainedModel, seed: int) -> Iterable[Mapping[str, Any]]:
        """What recovery reads."""
        if _are_batches(data):
            return list(data)
        sizes = {"batch_size": 32, "max_length": 128, "max_examples": RECOVERY_EXAMPLES}
        return recovery_batches(data, model, self.read_processor(), sizes, seed)


def _recovery_settings(work: _Work, given: RecoveryConfig | None) -> RecoveryConfig:
    settings = given or RecoveryConfig(seed=work.config.seed)
    if settings.checkpoint_dir is None:
        settings = replace(settings, checkpoint_dir=states_beside(work.output))
    defaults = RecoveryConfig()
    if work.config.is_whole:
        asked = {name: getattr(settings, name) for name in _WHOLE_RECOVERY}
        changed = {n: v for n, v in _WHOLE_RECOVERY.items() if asked[n] == getattr(defaults, n)}
        settings = replace(settings, **changed)
    return settings


def recovery_batches(
    data: Any, model: PreTrainedModel, processor: Any, sizes: Mapping[str, int], seed: int
) -> Iterable[dict[str, Any]]:
    """What recovery reads; a masked language model gets masked tokens.

    Args:
        data: file, folder, data set, list or `default`.
        model: the model that reads it.
        processor: its tokenizer or image processor.
        sizes: batch_size, max_length, max_examples.
        seed: of the sampling and of the masks.

    Returns:
        Batches of model inputs.

    Raises:
        CalibrationError: the data can't be read.
    """
    batches = load_batches(data, processor, config=model.config, seed=seed, **sizes)
    if type(model).__name__.endswith("ForMaskedLM"):
        return mask_tokens(batches, processor, seed=seed)
    return batches


def states_beside(output: Path) -> Path:
    """Where the states of a recovery are kept until its output is written."""
    output = output.absolute()
    return output.parent / f".{output.name}.recovery"


def write_recovery(directory: Path, report: RecoveryReport, data: Any = None) -> None:
    """Put the report of a recovery into a checkpoint.

    Args:
        directory: of the checkpoint.
        report: what recovery did.
        data: what it read; a name is kept, without the local path that leads to it.
    """
    named = {"data": public_name(data)} if isinstance(data, str) else {}
    text = json.dumps({**named, **report.to_dict()}, indent=2, allow_nan=False)
    (directory / RECOVERY_FILE).write_text(text + "\n", encoding="utf-8")


def _write(
    work: _Work,
    model: PreTrainedModel,
    recipe: Recipe,
    report: CompressionReport,
    healed: RecoveryReport | None,
    size_before: int,
) -> int:
    """Write the checkpoint and what belongs to it; the size of the weights' files in bytes."""
    local = not isinstance(work.model, PreTrainedModel) or work.place.is_dir()
    original: str | Path = work.loading.files(work.name) if local else work.name
    with new_directory(work.output, overwrite=work.overwrite) as directory:
        save_checkpoint(model, directory, original=original, processor=work.processor)
        recipe.write(directory / RECIPE_FILE)
        source = {**work.loading.source(work.name), "weight_bytes_before": size_before}
        text = json.dumps({**source, **report.to_dict()}, indent=2, allow_nan=False)
        (directory / REPORT_FILE).write_text(text + "\n", encoding="utf-8")
        if healed is not None:
            write_recovery(directory, healed, work.data)
        make_card(directory, repo_id=work.output.resolve().name).save(directory / CARD_FILE)
        return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def _is(data: Any, word: str) -> bool:
    return isinstance(data, str) and data == word


def _are_batches(data: Any) -> bool:
    """Whether data are model inputs already, rather than texts, images or the name of some."""
    if isinstance(data, str | Path):
        return False
    if isinstance(data, Mapping):
        raise CalibrationError("calibration must be a list of batches, got one mapping; pass [batch]")
    return isinstance(data, list | tuple) and bool(data) and isinstance(data[0], Mapping)
