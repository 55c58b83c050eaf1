"""What a compression did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import CollabConfig
from ..layout import Change, share
from ..parts.vocabulary import VocabularyReport
from .report_html import report_html
from .report_layers import LayerReport, WholeReport
from .report_sites import SiteReport, total
from .report_text import (
    counts,
    layer_table,
    loss_lines,
    site_tables,
    slower_lines,
    speed_lines,
    stock_lines,
    vocabulary_lines,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def settled(config: CollabConfig, plans: Mapping[str, Mapping[str, Any]]) -> CollabConfig:
    """Settings that build the same model again without planning.

    Args:
        config: what was asked for.
        plans: what was chosen, by part and module.

    Returns:
        Settings with the plans in the place of the target; those asked for, where all was left as it was.
    """
    if not any(plans.values()):
        return config
    written = {part: {name: form.to_dict() for name, form in forms.items()} for part, forms in plans.items()}
    goals: dict[str, Any] = dict.fromkeys(config.goals)
    return replace(config, **goals, hold_out=True, plans=written, target=config.asked_for)


@dataclass(frozen=True)
class CompressionReport:
    """What `compress_` did; `print` shows it as tables, and notebooks with bars.

    Attributes:
        layers: one report per attention layer, in the model's order.
        parameters_before: all parameters of the model before.
        parameters_after: all parameters of the model after.
        calibrated: whether activation statistics were used.
        config: the settings, with the forms that planning chose written out; they give the same again.
        predicted_loss: sum of the planned layers' measured divergences, each replaced alone; None unless
            layers were planned on data.
        measured_loss: divergence of the compressed model's hidden states from the original's on the same
            examples, which neither statistics nor reconstruction saw.
        whole: what happened to the other parts of the model; None where queries and keys alone were.
        vocabulary: rows that were dropped before anything else; None where none were asked to be.
        portable: whether the model is of the host's own class, so that it loads without any code of ours.
        sites: every module of the layers, before and after; token embeddings too under a budget for the whole
            model.
        length: tokens of the sequence that their operations are counted for.
        target: the budget or other target that was asked for, also where a recipe has the forms that were
            planned for it, by its name in the settings; empty where ranks were, or nothing.
    """

    layers: tuple[LayerReport, ...]
    parameters_before: int
    parameters_after: int
    calibrated: bool
    config: CollabConfig = field(default_factory=CollabConfig)
    predicted_loss: float | None = None
    measured_loss: float | None = None
    whole: WholeReport | None = None
    vocabulary: VocabularyReport | None = None
    portable: bool = False
    sites: tuple[SiteReport, ...] = ()
    length: int = 128
    target: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """Tables of the modules, and a line for each thing that was measured."""
        lines = vocabulary_lines(self.vocabulary)
        if self.whole is not None:
            lines += stock_lines(self.whole) if self.portable else []
            lines += site_tables(self.sites, self.layers)
        elif self.layers:
            kept = counts((self.qk_parameters_before, self.qk_parameters_after))
            lines += [layer_table(self.layers), "", f"query/key: {kept}"]
        lines += self._totals()
        lines += slower_lines(self.layers) if self.whole is None else speed_lines(self.whole, self.config)
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        notes = [self._operations_text] if self.operations[0] else []
        if self.whole is not None and self.whole.measured_speedup is not None:
            notes.append(f"speed: {self.whole.measured_speedup:.2f} times that of the original")
        if self.measured_loss is not None:
            notes.append(f"divergence of the hidden states: {self.measured_loss:.4f}")
        return report_html(self.sites, self._parameters, self._target_text, notes)

    def plot(self, file: str | Path | None = None) -> Figure:
        """Draw the parameters of every module before and after.

        Args:
            file: PNG to write; None for none.

        Returns:
            The matplotlib figure, which a notebook shows.

        Raises:
            ConfigError: matplotlib is not installed, or the name does not end in .png.
        """
        from .report_plot import plot

        bars = [(site.name, site.parameters) for site in self.sites] or [("whole model", self._parameters)]
        return plot(bars, self._parameters, None if file is None else Path(file))

    @property
    def operations(self) -> Change:
        """Floating-point operations of all layers for one sequence, before and after."""
        if self.whole is not None:
            return self.whole.operations_before, self.whole.operations_after
        return total(site.operations for site in self.sites)

    @property
    def changed(self) -> bool:
        """Whether anything but the vocabulary is smaller, so that there is something to recover."""
        if self.whole is not None:
            return any(self.whole.plans.values())
        return any(layer.plan is not None for layer in self.layers)

    @property
    def qk_parameters_before(self) -> int:
        """Query/key parameters of all layers before."""
        return sum(layer.qk_parameters_before for layer in self.layers)

    @property
    def qk_parameters_after(self) -> int:
        """Query/key parameters of all layers after."""
        return sum(layer.qk_parameters_after for layer in self.layers)

    @property
    def mean_relative_error(self) -> float:
        """Mean of the layers' relative errors."""
        return sum(layer.relative_error for layer in self.layers) / max(1, len(self.layers))

    @property
    def repeatable(self) -> CompressionReport:
        """The report as a checkpoint keeps it: without a speed that the target did not ask for.

        Timings differ from run to run, and the same input is to give the same files.
        """
        if self.whole is None or self.whole.predicted_speedup is not None:
            return self
        return replace(self, whole=replace(self.whole, measured_speedup=None))

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON."""
        values = asdict(self)
        values["config"] = self.config.to_dict()
        for layer, report in zip(values["layers"], self.layers, strict=True):
            layer["plan"] = None if report.plan is None else report.plan.to_dict()
        for name in ("layers", "sites"):
            values[name] = list(values[name])
        values["target"] = dict(self.target)
        if self.vocabulary is None:
            del values["vocabulary"]
        if self.whole is None:
            del values["whole"]
        else:
            for name in ("blocks", "teacher_blocks"):
                values["whole"][name] = list(values["whole"][name])
            values["whole"]["plans"] = {
                part: {name: plan.to_dict() for name, plan in plans.items()}
                for part, plans in self.whole.plans.items()
            }
        totals = ("qk_parameters_before", "qk_parameters_after", "mean_relative_error")
        operations = dict(zip(("operations_before", "operations_after"), self.operations, strict=True))
        return {**values, **{name: getattr(self, name) for name in totals}, **operations}

    @property
    def _parameters(self) -> Change:
        return self.parameters_before, self.parameters_after

    @property
    def _target_text(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.target.items())

    @property
    def _operations_text(self) -> str:
        before, after = self.operations
        return f"operations of the layers at length {self.length}: {share(after, before)} of the original's"

    def _totals(self) -> Iterator[str]:
        yield f"whole model: {counts(self._parameters, ' parameters')}"
        if self.operations[0]:
            yield self._operations_text
        if self.target:
            yield f"asked for: {self._target_text}"
        if self.layers and self.whole is None:
            on = "on calibration data" if self.calibrated else "of the weights alone"
            yield f"mean relative error: {self.mean_relative_error:.4f} ({on})"
        yield from loss_lines(self.layers, self.predicted_loss, self.measured_loss)
