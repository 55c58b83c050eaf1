"""Compress a model's attention in place."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..calibration.statistics import LayerStatistics, collect_statistics
from ..config import CollabConfig
from ..errors import FamilyError
from ..modeling.attention import CollabAttention
from ..modeling.errors import ConfigError
from ..modeling.families import FAMILIES, Family, attention_layers
from ..modeling.modeling_collab import adopt_
from ..modeling.plan import LayerPlan, Method
from ..parts.query_key.costs import break_even_length
from ..planning import (
    Divergence,
    candidate_plans,
    choose_factors,
    plan_model,
    planned_layers,
    score_tensor,
    split_batches,
)
from ..recovery.reconstruction import Reconstruction, graft_, reconstruct
from ..tensors.factors import SharedFactors


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


@dataclass(frozen=True)
class CompressionReport:
    """What `compress_` did.

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
    """

    layers: tuple[LayerReport, ...]
    parameters_before: int
    parameters_after: int
    calibrated: bool
    config: CollabConfig = field(default_factory=CollabConfig)
    predicted_loss: float | None = None
    measured_loss: float | None = None

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
        return sum(layer.relative_error for layer in self.layers) / len(self.layers)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON."""
        values = asdict(self)
        values["config"] = self.config.to_dict()
        for layer, report in zip(values["layers"], self.layers, strict=True):
            layer["plan"] = None if report.plan is None else report.plan.to_dict()
        values["layers"] = list(values["layers"])
        totals = ("qk_parameters_before", "qk_parameters_after", "mean_relative_error")
        return {**values, **{name: getattr(self, name) for name in totals}}


def compress_(
    model: PreTrainedModel,
    config: CollabConfig | None = None,
    calibration: Iterable[Mapping[str, Any]] | Mapping[str, LayerStatistics] | None = None,
    *,
    progress: bool = False,
) -> CompressionReport:
    """Replace the query and key projections of a model's attention layers with shared ones, in place.

    The model keeps its device, dtype, training mode, requires_grad, hooks and attention backend, becomes an
    instance of a collaborative subclass of its class, and saves and loads as before. If anything fails, it
    is left as it was.

    Args:
        model: a transformers model of a known family, with any task head.
        config: method and ranks; by default the forms at the knee of the measured loss.
        calibration: batches of model inputs (dicts of tensors), whose activations tell what the softmax
            sees; or statistics that `collect_statistics` gave; None to decompose the weights alone.
        progress: whether to draw a progress bar on stderr.

    Returns:
        Errors and parameter counts by layer.

    Raises:
        FamilyError: no attention layer that collab_hf knows, or one that is compressed already.
        RankError: a rank outside of what a layer allows.
        ConfigError: settings that contradict each other.
        CalibrationError: calibration data that is empty or does not run.
        DecompositionError: weights that are not finite.
    """
    config = config or CollabConfig()
    layers = dense_layers(model)
    _candidates(layers, config)  # ranks that don't fit come out before any work
    prepared = _prepare(model, layers, config, calibration, progress)
    config, statistics, divergence = prepared.config, prepared.statistics, prepared.divergence
    chosen, plans = _candidates(layers, config)
    before = sum(p.numel() for p in model.parameters())
    factors: dict[str, SharedFactors] = {}
    for name in tqdm(chosen, desc="Decomposing", unit="layer", disable=not progress):
        module, family = layers[name]
        scores = score_tensor(module, family, name, chosen[name])
        factors[name] = choose_factors(
            scores, chosen[name], plans[name], None if statistics is None else statistics[name]
        )
    better = _reconstruct(model, layers, factors, prepared.seen, config, progress)
    qk_before = {name: _qk_parameters(*layers[name]) for name in layers}
    for name, result in factors.items():
        graft_(layers[name][0], better[name].factors if name in better else result)
    adopt_(model, {name: result.plan for name, result in factors.items()})
    reports = [
        _report(name, factors.get(name), better.get(name), qk_before[name], layers[name][1], layers[name][0])
        for name in layers
    ]
    after = sum(p.numel() for p in model.parameters())
    losses = prepared.predicted_loss, None if divergence is None else divergence.measure()
    return CompressionReport(tuple(reports), before, after, statistics is not None, config, *losses)


@dataclass(frozen=True)
class _Prepared:
    """What compression goes by once layers are planned and calibration data are read."""

    config: CollabConfig
    statistics: Mapping[str, LayerStatistics] | None
    seen: Sequence[Mapping[str, Any]] = ()
    predicted_loss: float | None = None
    divergence: Divergence | None = None


def _prepare(
    model: PreTrainedModel,
    layers: Mapping[str, tuple[nn.Module, Family]],
    config: CollabConfig,
    calibration: Iterable[Mapping[str, Any]] | Mapping[str, LayerStatistics] | None,
    progress: bool,
) -> _Prepared:
    if planned_layers(config, layers):
        plan = plan_model(model, layers, config, calibration, progress=progress)
        if not plan.measured:
            return _Prepared(plan.config, plan.statistics, plan.seen)
        divergence = Divergence(model, plan.held_out)
        return _Prepared(plan.config, plan.statistics, plan.seen, plan.predicted_loss, divergence)
    if calibration is None or isinstance(calibration, Mapping):
        return _Prepared(config, calibration)
    batches = list(calibration)
    seen = split_batches(batches)[0] if config.hold_out else batches
    chosen = {name: layers[name][0] for name in _candidates(layers, config)[0]}
    return _Prepared(config, collect_statistics(model, chosen, seen, progress=progress), seen)


def _reconstruct(
    model: PreTrainedModel,
    layers: Mapping[str, tuple[nn.Module, Family]],
    factors: Mapping[str, SharedFactors],
    batches: Sequence[Mapping[str, Any]],
    config: CollabConfig,
    progress: bool,
) -> dict[str, Reconstruction]:
    """Fit the factors of all forms but `copy`, which is exact, to the layers' outputs."""
    inexact = {name: result for name, result in factors.items() if result.plan.method != "copy"}
    if not batches or not config.reconstruct_steps or not inexact:
        return {}
    return reconstruct(
        model,
        {name: layers[name][0] for name in inexact},
        inexact,
        batches,
        steps=config.reconstruct_steps,
        seed=config.seed,
        progress=progress,
    )


def _candidates(
    layers: Mapping[str, tuple[nn.Module, Family]], config: CollabConfig
) -> tuple[dict[str, CollabConfig], dict[str, list[LayerPlan]]]:
    """Settings of the layers that are not dense, and the forms of those that the planner leaves alone."""
    unmatched = [p for p in config.layers if not any(fnmatchcase(name, p) for name in layers)]
    if unmatched:
        raise ConfigError(
            f"layers has settings for {unmatched[0]!r}, which matches none of {', '.join(layers)}"
        )
    config.check_goals(layers)
    chosen = {name: settings for name in layers if (settings := config.for_layer(name)) is not None}
    open_to_plan = planned_layers(config, layers)
    plans = {
        name: candidate_plans(settings, layers[name][1].shape(layers[name][0]), name)
        for name, settings in chosen.items()
        if name not in open_to_plan
    }
    return chosen, plans


def dense_layers(model: nn.Module) -> dict[str, tuple[nn.Module, Family]]:
    """The attention layers that can be compressed.

    Args:
        model: a transformers model.

    Returns:
        Module and family by the layer's name relative to the base model.

    Raises:
        FamilyError: no attention layer that collab_hf knows, or one that is compressed already.
    """
    if any(isinstance(m, CollabAttention) for m in model.modules()):
        raise FamilyError("the model is compressed already; start from the original")
    layers = {name: (module, family) for name, module, family in attention_layers(model)}
    if not layers:
        known = ", ".join(sorted({t for family in FAMILIES.values() for t in family.model_types}))
        raise FamilyError(
            f"{type(model).__name__} has no attention layer that collab_hf knows; it knows {known}"
        )
    return layers


def _qk_parameters(module: nn.Module, family: Family) -> int:
    projections = (family.projection(module, "query"), family.projection(module, "key"))
    return sum(p.numel() for projection in projections for p in projection.parameters())


def _report(
    name: str,
    factors: SharedFactors | None,
    better: Reconstruction | None,
    before: int,
    family: Family,
    module: nn.Module,
) -> LayerReport:
    shape = family.shape(module)
    if factors is None:
        return LayerReport(name, "dense", shape.full_rank, None, 0.0, before, before)
    method: Method = factors.plan.method
    after, dearer_from = factors.num_parameters, break_even_length(factors.plan, shape)
    return LayerReport(
        name,
        method,
        factors.plan.query_rank,
        factors.plan,
        factors.relative_error,
        before,
        after,
        None if math.isinf(dearer_from) else math.ceil(dearer_from),
        None if better is None else (better.error_before, better.error_after),
    )
