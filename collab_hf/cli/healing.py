"""What `heal` and `compress --heal-steps` share: data, states and the report of a recovery."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from collab_hf.files import RECOVERY_FILE
from collab_hf.modeling.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from transformers import PreTrainedModel

    from collab_hf.recipe import Recipe
    from collab_hf.recovery import RecoveryReport

# Examples at most: their tokens stay in memory, and minutes of recovery read no more.
EXAMPLES = 20_000

HealSteps = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Recover for N updates on the calibration data.")
]
HealMinutes = Annotated[
    float | None, typer.Option(metavar="M", help="Recover for M minutes on the calibration data.")
]


class Healing:
    """The recovery that `compress --heal-steps` or `--heal-minutes` asks for; does nothing where neither is.

    Args:
        steps: updates, or None.
        minutes: or None.
        recipe: whose calibration data recovery reads, all of it.
        output: beside which the states are kept.

    Raises:
        ConfigError: steps and minutes, or no calibration data.
    """

    def __init__(self, steps: int | None, minutes: float | None, recipe: Recipe, output: Path) -> None:
        self._asked = steps is not None or minutes is not None
        self._recipe, self._states = recipe, states_beside(output)
        self._original: PreTrainedModel | None = None
        self._report: RecoveryReport | None = None
        if not self._asked:
            return
        from collab_hf.recipe import NO_CALIBRATION
        from collab_hf.recovery import RecoveryConfig

        if recipe.calibration == NO_CALIBRATION:
            raise ConfigError(
                "recovery needs data: give --calibration, or leave out --heal-steps and -minutes"
            )
        self._config = RecoveryConfig(
            steps=steps, minutes=minutes, seed=recipe.config.seed, checkpoint_dir=self._states
        )

    def keep_original(self, model: PreTrainedModel) -> None:
        """Keep a copy of the model to learn from, before it is compressed."""
        if self._asked:
            self._original = copy.deepcopy(model)

    def recover_(self, model: PreTrainedModel, processor: Callable[[], Any], *, progress: bool) -> None:
        """Recover the compressed model in place.

        Args:
            model: the compressed model.
            processor: gives its tokenizer or image processor.
            progress: whether to draw a progress bar on stderr.
        """
        if self._original is None:
            return
        from collab_hf.recovery import recover_

        sizes = {"batch_size": 32, "max_length": 128, "max_examples": EXAMPLES}
        batches = recovery_batches(self._recipe.calibration, model, processor(), sizes, self._config.seed)
        self._report = recover_(model, self._original, batches, self._config, progress=progress)
        self._original = None

    def write(self, directory: Path) -> None:
        """Put the report into the checkpoint; the states have served then."""
        if self._report is not None:
            write_report(directory, self._report, self._recipe.calibration)
            shutil.rmtree(self._states, ignore_errors=True)

    def values(self) -> dict[str, Any]:
        """What `--json` says of it."""
        return {} if self._report is None else {"recovery": self._report.to_dict()}

    def lines(self) -> list[str]:
        """What people read of it."""
        return [] if self._report is None else [describe(self._report)]


def recovery_batches(
    data: str, model: PreTrainedModel, processor: Any, sizes: dict[str, int], seed: int
) -> Iterable[dict[str, Any]]:
    """What recovery reads; a masked language model gets masked tokens.

    Args:
        data: file, folder, data set or `default`.
        model: the model that reads it.
        processor: its tokenizer or image processor.
        sizes: batch_size, max_length, max_examples.
        seed: of the sampling and of the masks.

    Returns:
        Batches of model inputs.

    Raises:
        CalibrationError: the data can't be read.
    """
    from collab_hf.calibration.examples import load_batches
    from collab_hf.recovery.masking import mask_tokens

    batches = load_batches(data, processor, config=model.config, seed=seed, **sizes)
    if type(model).__name__.endswith("ForMaskedLM"):
        return mask_tokens(batches, processor, seed=seed)
    return batches


def states_beside(output: Path) -> Path:
    """Where the states of a run are kept until its output is written."""
    output = output.absolute()
    return output.parent / f".{output.name}.recovery"


def write_report(directory: Path, report: RecoveryReport, data: str) -> None:
    """Put the report into a checkpoint.

    Args:
        directory: of the checkpoint.
        report: what recovery did.
        data: what it read, of which a local path's last part is kept.
    """
    from collab_hf.recipe import public_name

    values = {"data": public_name(data), **report.to_dict()}
    text = json.dumps(values, indent=2, allow_nan=False)
    (directory / RECOVERY_FILE).write_text(text + "\n", encoding="utf-8")


def describe(report: RecoveryReport) -> str:
    """The report for people.

    Args:
        report: what recovery did.

    Returns:
        One line, or two where nothing was gained.
    """
    line = (
        f"recovery: {report.steps} updates in {report.seconds:.0f} s, "
        f"held-out loss {report.loss_before:.4f} -> {report.loss_after:.4f}, "
        f"agreement {report.agreement_before:.4f} -> {report.agreement_after:.4f}"
    )
    if report.best_step == 0:
        line += "\nnothing was gained, so the weights are as they came; more data or a lower --lr may help"
    return line
