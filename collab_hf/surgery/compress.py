"""Compress a model's attention in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..calibration.statistics import collect_statistics
from ..config import CollabConfig
from ..host.adoption import adopt_
from ..host.sites import dense_layers
from ..modeling.errors import ConfigError
from ..modeling.families import Family
from ..modeling.plan import LayerPlan
from ..parts.query_key.graft import graft_
from ..planning import (
    Divergence,
    candidate_plans,
    choose_factors,
    plan_model,
    planned_layers,
    score_tensor,
    split_batches,
)
from ..recovery.reconstruction import Reconstruction, reconstruct
from ..tensors.factors import SharedFactors
from ..tensors.moments import LayerStatistics
from .report import CompressionReport, layer_report, qk_parameters


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
    qk_before = {name: qk_parameters(*layers[name]) for name in layers}
    for name, result in factors.items():
        graft_(layers[name][0], better[name].factors if name in better else result)
    adopt_(model, {name: result.plan for name, result in factors.items()})
    reports = [
        layer_report(
            name, factors.get(name), better.get(name), qk_before[name], layers[name][1], layers[name][0]
        )
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
