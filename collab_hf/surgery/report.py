"""What a compression did."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import CollabConfig
from ..host.sites import AttentionSite
from ..modeling.plan import LayerPlan
from ..parts.query_key.costs import break_even_length
from ..parts.vocabulary import VocabularyReport
from ..recovery.blocks import BlockReport
from ..recovery.reconstruction import Reconstruction
from ..tensors.factors import SharedFactors
from .report_html import report_html
from .report_text import report_text
from .sites import Change, SiteReport, total

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class LayerReport:
    """What happened to one attention layer.

    Attributes:
        name: the layer's name relative to the base model.
        method: `cp`, `tucker`, `svd`, `copy`, or `dense` where it was left alone.
        rank: width of the shared query projection.
        plan: every setting of the form; None where dense.
        relative_error: ||T - T^||_F / ||T||_F of the decomposition, whitened by the calibration data where
            there is some.
        qk_parameters_before: weights and biases of the dense query and key projections.
        qk_parameters_after: shared projections, mixing and content bias.
        break_even_length: tokens from which the form takes more operations than dense; None for never.
        output_error: relative error of the attention output after decomposition and after reconstruction,
            on calibration tokens that no gradient step saw (the statistics did, and they chose between
            stages); None without reconstruction.
    """

    name: str
    method: str
    rank: int
    plan: LayerPlan | None
    relative_error: float
    qk_parameters_before: int
    qk_parameters_after: int
    break_even_length: int | None = None
    output_error: tuple[float, float] | None = None

    @classmethod
    def of(
        cls, site: AttentionSite, factors: SharedFactors | None, better: Reconstruction | None
    ) -> LayerReport:
        """Report on one layer.

        Args:
            site: the layer, with the sizes that it had.
            factors: its decomposition; None where it was left dense.
            better: its reconstruction, if there was one.

        Returns:
            The report.
        """
        name, shape, before = site.name, site.shape, site.shape.dense_parameters
        if factors is None:
            return cls(name, "dense", shape.full_rank, None, 0.0, before, before)
        plan = factors.plan
        costly_from = break_even_length(plan, shape)
        return cls(
            name,
            plan.method,
            plan.query_rank,
            plan,
            factors.relative_error,
            before,
            factors.num_parameters,
            None if math.isinf(costly_from) else math.ceil(costly_from),
            None if better is None else (better.error_before, better.error_after),
        )


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
    return replace(config, speedup=None, flops=None, params=None, size=None, hold_out=True, plans=written)


@dataclass(frozen=True)
class WholeReport:
    """What happened to all parts of a model under one budget.

    Attributes:
        plans: forms by part and module, as config.json keeps them.
        length: tokens of the sequence that operations are counted for.
        operations_before: floating-point operations of all layers for one sequence, two a multiply-add.
        operations_after: the same afterwards.
        blocks: relative error of each block's output before and after reconstruction, on held-out
            calibration examples; empty without reconstruction.
        predicted_speedup: of the forms, on this machine; None where speed was not asked for.
        measured_speedup: of the compressed model, timed in turns with the original at the settings' length
            and batch size; None where no random input of that length fits the model.
        teacher_blocks: numbers of the original's blocks whose outputs the blocks that stay are to give; none
            where no block was dropped.
    """

    plans: Mapping[str, Mapping[str, Any]]
    length: int
    operations_before: int
    operations_after: int
    blocks: tuple[BlockReport, ...] = ()
    predicted_speedup: float | None = None
    measured_speedup: float | None = None
    teacher_blocks: tuple[int, ...] = ()


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
        sites: every module of the layers, before and after; token embeddings too under a budget for the whole
            model.
        length: tokens of the sequence that their operations are counted for.
        target: the budget or other target that was asked for, by its name in the settings; empty where ranks
            were, or nothing.
        vocabulary: rows that were dropped before anything else; None where none were asked to be.
        portable: whether the model is of the host's own class, so that it loads without any code of ours.
    """

    layers: tuple[LayerReport, ...]
    parameters_before: int
    parameters_after: int
    calibrated: bool
    config: CollabConfig = field(default_factory=CollabConfig)
    predicted_loss: float | None = None
    measured_loss: float | None = None
    whole: WholeReport | None = None
    sites: tuple[SiteReport, ...] = ()
    length: int = 128
    target: Mapping[str, Any] = field(default_factory=dict)
    vocabulary: VocabularyReport | None = None
    portable: bool = False

    def __str__(self) -> str:
        """Tables of the modules, and a line for each thing that was measured."""
        return report_text(self)

    def _repr_html_(self) -> str:
        return report_html(self)

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

        return plot(self, None if file is None else Path(file))

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
