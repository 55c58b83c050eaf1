"""A budget goes in, one form for each layer comes out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedModel

from ..calibration.held_out import Batch, split_batches
from ..calibration.statistics import collect_statistics
from ..config import CollabConfig
from ..errors import ConfigError
from ..parts.part import LayerwisePart, Option
from ..processes import ALONE, Processes
from ..tensors.moments import LayerStatistics
from . import cache
from .curves import Curve, measured_curves, predicted_curves
from .targets import choose_options


@dataclass(frozen=True)
class ModelPlan:
    """A form for every layer, and what it is predicted to give.

    Attributes:
        options: what each planned layer is to get, by name, in the model's order; losses are their parts of
            the predicted divergence.
        dense_parameters: of the planned layers as they are, by name.
        config: settings with every layer's form written out; compress_ with it needs no planning.
        statistics: moments of the layers' inputs that the plan was made from; None without data.
        seen: model inputs that the statistics were made from; empty without data.
        held_out: model inputs that they did not see; likewise.
        measured: whether losses are divergences of the output; else they are squared errors of the scores.
    """

    options: Mapping[str, Option]
    dense_parameters: Mapping[str, int]
    config: CollabConfig
    statistics: Mapping[str, LayerStatistics] | None
    seen: tuple[Batch, ...] = ()
    held_out: tuple[Batch, ...] = ()
    measured: bool = False

    @property
    def parameters(self) -> int:
        """Query/key numbers of all planned layers."""
        return sum(option.parameters for option in self.options.values())

    @property
    def share(self) -> float:
        """Parameters over the dense ones."""
        return self.parameters / max(1, sum(self.dense_parameters.values()))

    @property
    def predicted_loss(self) -> float:
        """Sum of the layers' losses."""
        return sum(option.loss or 0.0 for option in self.options.values())

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain values, ready for JSON."""
        layers = [
            {
                "name": name,
                "plan": "dense" if option.plan is None else option.plan.to_dict(),
                "parameters": option.parameters,
                "dense_parameters": self.dense_parameters[name],
                "relative_error": option.error,
                "predicted_loss": option.loss,
            }
            for name, option in self.options.items()
        ]
        return {
            "layers": layers,
            "parameters": self.parameters,
            "share": self.share,
            "predicted_loss": self.predicted_loss,
            "measured": self.measured,
        }


def planned_layers(config: CollabConfig, names: Iterable[str]) -> dict[str, CollabConfig]:
    """The layers whose form is the planner's to choose.

    Args:
        config: what the user asks.
        names: the model's attention layers.

    Returns:
        Settings by name of the layers with method auto; those with a budget of their own and those that are
        dense or have ranks are left out.
    """
    chosen = {}
    for name in names:
        settings = config.for_layer(name)
        if settings is not None and settings.method == "auto" and settings.budget == config.budget:
            chosen[name] = settings
    return chosen


def plan_model(
    model: PreTrainedModel,
    part: LayerwisePart,
    sites: Mapping[str, Any],
    config: CollabConfig,
    calibration: Iterable[Batch] | Mapping[str, LayerStatistics] | None,
    *,
    processes: Processes = ALONE,
    progress: bool = False,
) -> ModelPlan:
    """Choose every layer's form for the least loss that the targets allow.

    With batches, losses are measured on examples that the statistics don't see, and kept in a cache, so that
    another budget for the same model and data comes at once. With statistics alone, or without data, the
    squared relative error of each layer stands for its loss.

    Args:
        model: a dense transformers model; left as it was found.
        part: what is planned.
        sites: its sites by name, all of the model's.
        config: settings; its budget, target_params, target_flops or max_loss, or else the knee of the curve.
            Layers with a form of their own count towards the first three.
        calibration: batches of model inputs, statistics, or None.
        processes: that share the work.
        progress: whether to draw progress bars on stderr.

    Returns:
        The plan.

    Raises:
        ConfigError: targets that no choice of forms meets; the message says the smallest possible.
        CalibrationError: calibration data that is empty or does not run.
        DecompositionError: weights that are not finite.
    """
    settings = planned_layers(config, sites)
    if not settings:
        raise ConfigError("no layer is left to plan, because every layer has its own form or budget")
    seen: list[Batch] = []
    held: list[Batch] = []
    statistics: Mapping[str, LayerStatistics] | None
    if calibration is None or isinstance(calibration, Mapping):
        statistics = calibration
        curves = predicted_curves(part, sites, settings, statistics, processes=processes, progress=progress)
    else:
        batches = list(calibration)
        seen, held = split_batches(batches)

        def kept() -> tuple[str, Any]:
            key = cache.Fingerprint(model, batches).key(settings)
            return key, cache.load(key, {name: sites[name].shape for name in settings})

        key, found = processes.from_main(kept)
        split = seen, held
        curves, statistics = found or _measure(model, part, sites, settings, split, key, processes, progress)
    chosen = choose_options(part, [*curves, *_given(part, sites, settings, config)], config)[: len(curves)]
    options = {
        curve.name: replace(curve.options[index], loss=float(curve.losses()[index]))
        for curve, index in zip(curves, chosen, strict=True)
    }
    dense = {curve.name: curve.dense_parameters for curve in curves}
    resolved = replace(_resolved(part, config, options), hold_out=config.hold_out or bool(held))
    return ModelPlan(options, dense, resolved, statistics, tuple(seen), tuple(held), bool(curves[0].knots))


def _given(
    part: LayerwisePart, sites: Mapping[str, Any], settings: Mapping[str, CollabConfig], config: CollabConfig
) -> list[Curve]:
    """Layers that the user has settled, with no choice left: they count towards the targets."""
    found = []
    for name, site in sites.items():
        if name in settings:
            continue
        dense, given = part.parameters(None, site.shape), config.for_layer(name)
        option = Option(None, dense, 0.0)
        if given is not None:
            option = largest(part, given, site)
        found.append(Curve(name, site.shape, dense, (option,)))
    return found


def largest(part: LayerwisePart, config: CollabConfig, site: Any) -> Option:
    """The largest form that settings may give a site whose form the planner does not choose.

    Args:
        part: what the site is of.
        config: the site's settings.
        site: the site.

    Returns:
        The form, with no error or loss predicted.
    """
    plans = part.candidates(config, site.shape, site.name)
    sizes = [part.parameters(plan, site.shape) for plan in plans]
    size = max(sizes)
    return Option(plans[sizes.index(size)], size, 0.0)


def _measure(
    model: PreTrainedModel,
    part: LayerwisePart,
    sites: Mapping[str, Any],
    settings: Mapping[str, CollabConfig],
    split: tuple[Sequence[Batch], Sequence[Batch]],
    key: str,
    processes: Processes,
    progress: bool,
) -> tuple[list[Curve], Mapping[str, LayerStatistics]]:
    """Statistics of the first split and curves on the second, which go to the cache."""
    modules = {name: site.module for name, site in sites.items()}
    shared: dict[str, Any] = {"processes": processes, "progress": progress}
    statistics = collect_statistics(model, modules, split[0], **shared)
    curves = measured_curves(model, part, sites, settings, statistics, *split, **shared)
    if processes.is_main:
        cache.save(key, curves, statistics)
    return curves, statistics


def _resolved(part: LayerwisePart, config: CollabConfig, options: Mapping[str, Option]) -> CollabConfig:
    """The settings with the planned layers' forms written out, after the user's own patterns."""
    forms = {name: part.settings(option.plan) for name, option in options.items()}
    return replace(
        config,
        budget=None,
        target_params=None,
        target_flops=None,
        max_loss=None,
        layers={**config.layers, **forms},
        target=config.asked_for,
    )
