"""From a checkpoint to a smaller one: load, compress, recover, and save with recipe, report and card."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..checkpoint.precheck import check_finite
from ..checkpoint.save import check_output
from ..config import CollabConfig
from ..errors import ConfigError
from ..host.plain import inner_model
from ..hub.names import check_id
from ..hub.source import Loading
from ..processes import Processes
from ..recipe import (
    DEFAULT_EXAMPLES,
    NO_CALIBRATION,
    SHIPPED_SHARE,
    Recipe,
    check_data,
    current_versions,
)
from ..recovery import RecoveryConfig, RecoveryReport, recover_
from ..recovery.config import states_beside
from .compress import compress_trimmed_
from .reading import read_run
from .report import CompressionReport
from .vocabulary import Trimmed, Trimming, check_no_recovery
from .work import Work, of_main

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
        calibration: examples that calibrated, and how many of them ship with the package; None where the
            caller gave batches or nothing.
    """

    directory: Path
    report: CompressionReport
    recovery: RecoveryReport | None
    file_size: int
    calibration: Mapping[str, int] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        read = {} if self.calibration is None else {"calibration": dict(self.calibration)}
        values = {"output": str(self.directory), "file_size": self.file_size, **read, **self.report.to_dict()}
        return values if self.recovery is None else {**values, "recovery": self.recovery.to_dict()}


def compress_checkpoint(
    model: PreTrainedModel | str | Path,
    output: str | Path,
    config: CollabConfig | None = None,
    *,
    calibration: Any = "default",
    calibration_examples: int = DEFAULT_EXAMPLES,
    shipped_share: float = SHIPPED_SHARE,
    recovery: RecoveryConfig | None = None,
    recovery_data: Any = None,
    recover: bool | None = None,
    processor: Any = None,
    loading: Loading | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> CompressedCheckpoint:
    """Do what `collab-hf compress` does: the same directory comes out.

    Where a launcher started several processes, each calls this; they share the work on queries and keys and
    the recovery, and the main one writes.

    Some of the examples are set aside before anything reads them: neither calibration nor recovery sees them,
    recovery is judged by them, and `collab-hf evaluate` finds them again.

    Args:
        model: a Hub id, a local directory, or a transformers model, which is changed in place (in the main
            process alone, where the target is the whole model's).
        output: the directory to make; if anything fails, it does not appear.
        config: what is asked for; by default the forms of queries and keys at the knee of the measured loss.
        calibration: what the model reads: `default` for what ships with the package, `none` for no data, a
            file, a folder, a data set or its id, a list of texts or images, or batches of model inputs.
        calibration_examples: examples used at most.
        shipped_share: share of the texts that ship with the package, beside a user's own, in [0, 1); they
            also fill up what these lack, and recovery reads all of them. 0 for none.
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
    if not isinstance(model, str | Path):
        model = inner_model(model)
    work = Work(model, Path(output), config or CollabConfig(), loading or Loading(), overwrite, progress)
    work.processor = processor
    if work.config.vocabulary_alone:
        check_no_recovery(recover or recovery)
        calibration = NO_CALIBRATION
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
    check_data(work.config, calibration)
    if work.loading.base_model is not None:
        check_id("base_model", work.loading.base_model)
    check_output(work.output, original=work.place, overwrite=overwrite)
    processes = Processes.launched(work.device)
    with processes.together():
        trimming = Trimming.prepare(work.config, work.read_processor) if work.config.vocabulary_from else None
        loaded = work.load(processes.device)
        check_finite(loaded, work.name)
        size_before = sum(p.numel() * p.element_size() for p in loaded.parameters())
        trimmed = None if trimming is None else trimming.trim_(loaded)
        if trimmed is not None:
            work.processor = trimmed.processor
        reading = read_run(
            None if _is(calibration, NO_CALIBRATION) or work.config.exact else calibration,
            data,
            loaded,
            work.read_processor,
            {"examples": calibration_examples, "seed": work.config.seed, "shipped_share": shipped_share},
            None if settings is None else settings.seed,
        )
        original = copy.deepcopy(loaded) if settings is not None or work.config.is_whole else None
    report = _compress_(work, loaded, trimmed, reading.calibration, original, processes)
    healed = None
    if settings is not None and original is not None and reading.training is not None and report.changed:
        if report.whole is not None:
            settings = replace(settings, teacher_blocks=report.whole.teacher_blocks)
            loaded = of_main(loaded, processes)
        healed = recover_(
            loaded, original, reading.training, settings, held_out=reading.held_out, progress=progress
        )
    recipe = Recipe(
        report.config,
        calibration if isinstance(calibration, str) else "batches",
        calibration_examples,
        shipped_share,
        work.public_name,
        current_versions(),
    )
    source = {**work.loading.source(work.name), "weight_bytes_before": size_before}
    if reading.counts is not None:
        source["calibration"] = dict(reading.counts)
    size = processes.from_main(lambda: work.write(loaded, recipe, report, healed, source, trimmed))
    if settings is not None and processes.is_main:
        shutil.rmtree(states_beside(work.output), ignore_errors=True)
    return CompressedCheckpoint(work.output, report, healed, size, reading.counts)


def _compress_(
    work: Work,
    model: PreTrainedModel,
    trimmed: Trimmed | None,
    calibration: Iterable[Mapping[str, Any]] | None,
    original: PreTrainedModel | None,
    processes: Processes,
) -> CompressionReport:
    """Compress in place: queries and keys in every process, a whole model in the main one alone.

    A whole model is measured, planned and timed in one place; the others wait for the report.
    """
    whole = work.config.is_whole

    def surgery() -> CompressionReport:
        return compress_trimmed_(
            model,
            work.config,
            trimmed,
            calibration,
            original=original,
            spill=work.spill,
            processes=Processes(device=processes.device) if whole else processes,
            progress=work.progress,
        )

    return processes.from_main(surgery) if whole else surgery()


def _recovery_settings(work: Work, given: RecoveryConfig | None) -> RecoveryConfig:
    settings = given or RecoveryConfig(seed=work.config.seed)
    if settings.checkpoint_dir is None:
        settings = replace(settings, checkpoint_dir=states_beside(work.output))
    defaults = RecoveryConfig()
    if work.config.is_whole:
        asked = {name: getattr(settings, name) for name in _WHOLE_RECOVERY}
        changed = {n: v for n, v in _WHOLE_RECOVERY.items() if asked[n] == getattr(defaults, n)}
        settings = replace(settings, **changed)
    return settings


def _is(data: Any, word: str) -> bool:
    return isinstance(data, str) and data == word
