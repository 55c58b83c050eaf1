"""Factors for the queries and keys of every layer: what is asked, planned, decomposed and reconstructed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from transformers import PreTrainedModel

from ..calibration.given import Calibration
from ..calibration.held_out import split_batches
from ..calibration.statistics import collect_statistics
from ..config import CollabConfig
from ..errors import ConfigError
from ..host.sites import AttentionSites
from ..modeling.kinds import check_kinds
from ..parts.part import LayerwisePart
from ..planning import Divergence, plan_model, planned_layers
from ..processes import Processes
from ..progress import Steps
from ..recovery.reconstruction import Reconstruction, reconstruct
from ..tensors.factors import SharedFactors
from ..tensors.moments import LayerStatistics


@dataclass(frozen=True)
class Prepared:
    """What compression goes by once layers are planned and calibration data are read.

    Attributes:
        config: settings with the planned forms written out.
        statistics: moments of the layers' inputs; None for the weights alone.
        seen: model inputs that they are of.
        predicted_loss: of the plan, where losses were measured.
        divergence: measures the loss of the model in the end, likewise.
        losses: of the planned layers, likewise.
    """

    config: CollabConfig
    statistics: Mapping[str, LayerStatistics] | None
    seen: Sequence[Mapping[str, Any]] = ()
    predicted_loss: float | None = None
    divergence: Divergence | None = None
    losses: Mapping[str, float | None] = field(default_factory=dict)


def prepare(
    model: PreTrainedModel,
    part: LayerwisePart,
    sites: AttentionSites,
    config: CollabConfig,
    calibration: Calibration,
    processes: Processes,
    progress: bool,
) -> Prepared:
    """Plan the layers that are the planner's, and read what the decompositions need.

    Args:
        model: the dense model; left as it was found.
        part: queries and keys.
        sites: its sites, all of the model's.
        config: settings.
        calibration: batches of model inputs, statistics, or None.
        processes: that share the work.
        progress: whether to draw progress bars on stderr.

    Returns:
        Settings with every form written out, and the statistics.

    Raises:
        ConfigError: a target that no choice of forms meets.
        CalibrationError: calibration data that is empty or does not run.
    """
    shared: dict[str, Any] = {"processes": processes, "progress": progress}
    if planned_layers(config, sites):
        plan = plan_model(model, part, sites, config, calibration, **shared)
        if not plan.measured:
            return Prepared(plan.config, plan.statistics, plan.seen)
        divergence = Divergence(model, plan.held_out)
        losses = {name: option.loss for name, option in plan.options.items()}
        return Prepared(plan.config, plan.statistics, plan.seen, plan.predicted_loss, divergence, losses)
    if calibration is None or isinstance(calibration, Mapping):
        return Prepared(config, calibration)
    seen = split_batches(calibration)[0] if config.hold_out else calibration
    chosen = {name: sites[name].module for name in candidates(part, sites, config)[0]}
    return Prepared(config, collect_statistics(model, chosen, seen, **shared), seen)


def solutions(
    model: PreTrainedModel,
    part: LayerwisePart,
    sites: AttentionSites,
    prepared: Prepared,
    processes: Processes,
    progress: bool,
) -> Iterator[tuple[str, SharedFactors, Reconstruction | None]]:
    """Every layer's factors: each once it is solved, or all at the end where they are fitted to outputs.

    Args:
        model: the dense model; a layer may be replaced once its factors have come.
        part: queries and keys.
        sites: its sites.
        prepared: settings and statistics.
        processes: that share the layers; each gets the factors of all.
        progress: whether to draw progress bars on stderr.

    Yields:
        Name, factors as decomposed, and what fitting them to the layer's output made of them.

    Raises:
        DecompositionError: weights that are not finite, or a solver that failed.
    """
    config, statistics = prepared.config, prepared.statistics
    chosen, plans = candidates(part, sites, config)

    def solve(name: str) -> SharedFactors:
        moments = None if statistics is None else statistics[name]
        solution: SharedFactors = part.solve(sites[name], chosen[name], plans[name], moments)
        return solution

    found = processes.each(list(chosen), solve)
    solved = Steps(found, title="Decomposing", unit="layer", progress=progress, total=len(chosen))
    if not prepared.seen or not config.reconstruct_steps:
        for name, result in solved:
            yield name, result, None
        return
    factors = dict(solved)
    better = _reconstruct(model, part, sites, factors, prepared, processes, progress)
    for name, result in factors.items():
        yield name, result, better.get(name)


def _reconstruct(
    model: PreTrainedModel,
    part: LayerwisePart,
    sites: AttentionSites,
    factors: Mapping[str, SharedFactors],
    prepared: Prepared,
    processes: Processes,
    progress: bool,
) -> dict[str, Reconstruction]:
    """Fit the factors of all forms but the exact ones to the layers' outputs."""
    inexact = {name: result for name, result in factors.items() if not result.plan.form.exact}
    if not inexact:
        return {}
    config = prepared.config
    return reconstruct(
        model,
        part,
        sites,
        inexact,
        prepared.seen,
        steps=config.reconstruct_steps,
        seed=config.seed,
        processes=processes,
        progress=progress,
    )


def candidates(
    part: LayerwisePart, sites: AttentionSites, config: CollabConfig
) -> tuple[dict[str, CollabConfig], dict[str, list[Any]]]:
    """Settings of the layers that are not dense, and the forms of those that the planner leaves alone.

    Args:
        part: queries and keys.
        sites: its sites.
        config: settings.

    Returns:
        Both by layer.

    Raises:
        ConfigError: settings for no layer, or that contradict each other.
        RankError: a rank outside of what a layer allows.
    """
    unmatched = [p for p in config.layers if not any(fnmatchcase(name, p) for name in sites)]
    if unmatched:
        raise ConfigError(
            f"layers has settings for {unmatched[0]!r}, which matches none of {', '.join(sites)}"
        )
    check_kinds(sites, config.attention)
    config.check_goals(sites)
    chosen = {name: settings for name in sites if (settings := config.for_layer(name)) is not None}
    open_to_plan = planned_layers(config, sites)
    plans = {
        name: part.candidates(settings, sites[name].shape, name)
        for name, settings in chosen.items()
        if name not in open_to_plan
    }
    return chosen, plans
