"""What can be watched of a recovery: a progress bar, a log of JSON lines, and a curve."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..errors import RecoveryError
from ..modeling.errors import ConfigError
from ..progress import counted, in_lines, logger, stage, tell


class RunLog:
    """Progress bar and log file of one run; silent where neither is wanted.

    Args:
        path: the log file, or None.
        progress: whether to draw the bar on stderr.
        total: length of the run: updates, or seconds where the clock ends it.
        unit: `step` or `s`.
        done: updates that an earlier process made; later lines of its log are dropped.
    """

    def __init__(
        self, path: Path | None, *, progress: bool, total: float, unit: str = "step", done: int = 0
    ) -> None:
        self._path = path
        initial = done if unit == "step" else 0
        self._total = round(total)
        self._in_steps = unit == "step"
        self._lines = progress and in_lines()
        bar = progress and not self._lines
        self._bar = tqdm(desc="Recovery", unit=unit, total=self._total, initial=initial, disable=not bar)
        if self._lines:
            stage(f"Recovery: {counted(self._total, 'update' if self._in_steps else 'second')}")
        self._agreement: float | None = None
        if path is not None:
            kept = (
                [line for line in read_log(path) if line["step"] <= done] if done and path.is_file() else []
            )
            self._write("w", *kept)

    def step(self, step: int, loss: float, rate: float, seconds: float, terms: dict[str, float]) -> None:
        """Note an update.

        Args:
            step: its number, from 1.
            loss: on its batches.
            rate: learning rate.
            seconds: training time so far.
            terms: weighted terms of the loss by name.
        """
        self._write("a", {"step": step, "loss": loss, "learning_rate": rate, "seconds": seconds, **terms})
        shown = {"loss": f"{loss:.4f}"}
        if self._agreement is not None:
            shown["agreement"] = f"{self._agreement:.4f}"
        self._bar.set_postfix(shown, refresh=False)
        done = step if self._in_steps else min(round(seconds), self._total)
        self._bar.update(done - self._bar.n)
        if self._lines:
            tell("Recovery", done, self._total)

    def evaluation(self, step: int, loss: float, agreement: float, best: bool) -> None:
        """Note a look at the held-out batches.

        Args:
            step: updates so far.
            loss: held-out loss.
            agreement: with the teacher.
            best: whether these weights are the best so far.
        """
        self._agreement = agreement
        if self._lines:
            logger.debug(
                "Recovery: held-out loss %.4f, agreement %.4f after %d updates", loss, agreement, step
            )
        self._write("a", {"step": step, "held_out_loss": loss, "agreement": agreement, "best": best})

    @contextmanager
    def open(self) -> Iterator[RunLog]:
        """Close the bar at the end of the with block."""
        try:
            yield self
        finally:
            self._bar.close()

    def _write(self, mode: str, *lines: dict[str, Any]) -> None:
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open(mode, encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
        except OSError as error:
            raise RecoveryError(f"cannot write the log {self._path}: {error.strerror}") from error


def read_log(path: Path) -> list[dict[str, Any]]:
    """Lines of a log; a last line that a killed process left unfinished is skipped.

    Args:
        path: the log file.

    Returns:
        One mapping per line.
    """
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def check_drawing() -> None:
    """Refuse to start a run whose curve can't be drawn.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise ConfigError("drawing the curve needs matplotlib; run: pip install matplotlib")


def draw_curve(lines: list[dict[str, Any]], path: Path) -> None:
    """Draw training loss, held-out loss and agreement over the updates.

    Args:
        lines: of a log.
        path: the PNG to write.

    Raises:
        RecoveryError: the file can't be written.
    """
    from matplotlib.figure import Figure

    updates = [line for line in lines if "loss" in line]
    looks = [line for line in lines if "held_out_loss" in line]
    figure = Figure(figsize=(7, 4), layout="constrained")
    losses = figure.subplots()
    losses.plot(
        [line["step"] for line in updates], [line["loss"] for line in updates], alpha=0.4, label="training"
    )
    losses.plot(
        [line["step"] for line in looks], [line["held_out_loss"] for line in looks], "o-", label="held out"
    )
    losses.set(xlabel="update", ylabel="loss", yscale="log")
    agreement = losses.twinx()
    agreement.plot(
        [line["step"] for line in looks],
        [line["agreement"] for line in looks],
        "s--",
        color="tab:green",
        label="agreement",
    )
    agreement.set_ylabel("agreement with the teacher")
    figure.legend(loc="outside upper center", ncols=3)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, format="png")
    except OSError as error:
        raise RecoveryError(f"cannot write the curve {path}: {error.strerror}") from error
