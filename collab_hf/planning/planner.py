"""A budget goes in, one form for each layer comes out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedModel

from ..calibration.held_out import Batch, split_batches
from ..calibration.statistics import collect_statistics
from ..config import CollabConfig
from ..host.sites import Layers
from ..modeling.errors import ConfigError
from ..modeling.plan import LayerPlan
from ..parts.query_key.candidates import candidate_plans, layer_settings
from ..parts.query_key.forms import Form
from ..tensors.moments import LayerStatistics
from . import cache
from .curves import LayerCurve, measured_curves, spectral_curves
from .targets import choose_forms, flops_target


@dataclass(frozen=True)
class PlannedLayer:
    """What one layer is to get.

    Attributes:
        name: the layer's name relative to the base model.
        plan: its form, or None where it stays dense.
        parameters: numbers of the form; for dense, the weights of query and key.
        dense_parameters: weights of the dense query and key.
        error: relative error by truncation.
        loss: the layer's part of the predicted divergence of the model's output.
    """

    name: str
    plan: LayerPlan | None
    parameters: int
    dense_parameters: int
    error: float
    loss: float


@dataclass(frozen=True)
class ModelPlan:
    """A form for every layer, and what it is predicted to give.

    Attributes:
        layers: planned layers, in the model's order.
        config: settings with every layer's form written out; compress_ with it needs no planning.
        statistics: moments of the layers' inputs that the plan was made from; None without data.
        seen: model inputs that the statistics were made from; empty without data.
        held_out: model inputs that they did not see; likewise.
        measured: whether losses are divergences of the output; else they are squared errors of the scores.
    """

    layers: tuple[PlannedLayer, ...]
    config: CollabConfig
    statistics: Mapping[str, LayerStatistics] | None
    seen: tuple[Batch, ...] = ()
    held_out: tuple[Batch, ...] = ()
    measured: bool = False

    @property
    def parameters(self) -> int:
        """Query/key numbers of all planned layers."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def share(self) -> float:
        """Parameters over the dense ones."""
        return self.parameters / max(1, sum(layer.dense_parameters for layer in self.layers))

    @property
    def predicted_loss(self) -> float:
        """Sum of the layers' losses."""
        return sum(layer.loss for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain values, ready for JSON."""
        layers = [
            {
                "name": layer.name,
                "plan": "dense" if layer.plan is None else layer.plan.to_dict(),
                "parameters": layer.parameters,
                "dense_parameters": layer.dense_parameters,
                "relative_error": layer.error,
                "predicted_loss": layer.loss,
            }
            for layer in self.layers
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
    layers: Layers,
    config: CollabConfig,
    calibration: Iterable[Batch] | Mapping[str, LayerStatistics] | None,
    *,
    progress: bool = False,
) -> ModelPlan:
    """Choose every layer's form for the least loss that the targets allow.

    With batches, losses are measured on examples that the statistics don't see, and kept in a cache, so that
    another budget for the same model and data comes at once. With statistics alone, or without data, the
    squared relative error of each layer stands for its loss.

    Args:
        model: a dense transformers model; left as it was found.
        layers: dense attention module and family by name, all of the model's.
        config: settings; its budget, target_params, target_flops or max_loss, or else the knee of the curve.
            Layers with a form of their own count towards the first three.
        calibration: batches of model inputs, statistics, or None.
        progress: whether to draw progress bars on stderr.

    Returns:
        The plan.

    Raises:
        ConfigError: targets that no choice of forms meets; the message says the smallest possible.
        CalibrationError: calibration data that is empty or does not run.
        DecompositionError: weights that are not finite.
    """
    settings = planned_layers(config, layers)
    if not settings:
        raise ConfigError("no layer is left to plan: every one has a form or a budget of its own")
    if config.target_flops is not None:
        flops_target(config)  # a mistake in it must not come out after minutes of measuring
    seen: list[Batch] = []
    held: list[Batch] = []
    statistics: Mapping[str, LayerStatistics] | None
    if calibration is None or isinstance(calibration, Mapping):
        statistics = calibration
        curves = spectral_curves(layers, settings, statistics, progress=progress)
    else:
        batches = list(calibration)
        seen, held = split_batches(batches)
        key = cache.fingerprint(model, settings, batches)
        curves, statistics = cache.load(key) or _measure(model, layers, settings, (seen, held), key, progress)
    chosen = choose_forms([*curves, *_given_forms(layers, settings, config)], config)[: len(curves)]
    planned = tuple(
        PlannedLayer(
            curve.name,
            (form := curve.forms[index]).plan,
            form.parameters,
            curve.shape.dense_parameters,
            form.error,
            float(curve.losses()[index]),
        )
        for curve, index in zip(curves, chosen, strict=True)
    )
    resolved = replace(_resolved(config, planned), hold_out=config.hold_out or bool(held))
    return ModelPlan(planned, resolved, statistics, tuple(seen), tuple(held), bool(curves[0].knots))


def _given_forms(
    layers: Layers, settings: Mapping[str, CollabConfig], config: CollabConfig
) -> list[LayerCurve]:
    """Layers that the user has settled, with no choice left: they count towards the targets."""
    found = []
    for name, (module, family) in layers.items():
        if name in settings:
            continue
        shape, given = family.shape(module), config.for_layer(name)
        form = Form(None, 0.0, shape.dense_parameters)
        if given is not None:
            plan = max(candidate_plans(given, shape, name), key=lambda p: p.num_parameters(shape))
            form = Form(plan, 0.0, plan.num_parameters(shape))
        found.append(LayerCurve(name, shape, (form,)))
    return found


def _measure(
    model: PreTrainedModel,
    layers: Layers,
    settings: Mapping[str, CollabConfig],
    parts: tuple[Sequence[Batch], Sequence[Batch]],
    key: str,
    progress: bool,
) -> tuple[list[LayerCurve], Mapping[str, LayerStatistics]]:
    """Statistics of the first part and curves on the second, which go to the cache."""
    modules = {name: module for name, (module, _) in layers.items()}
    statistics = collect_statistics(model, modules, parts[0], progress=progress)
    curves = measured_curves(model, layers, settings, statistics, *parts, progress=progress)
    cache.save(key, curves, statistics)
    return curves, statistics


def _resolved(config: CollabConfig, planned: Iterable[PlannedLayer]) -> CollabConfig:
    """The settings with the planned layers' forms written out, after the user's own patterns."""
    forms = {layer.name: layer_settings(layer.plan) for layer in planned}
    return replace(
        config,
        budget=None,
        target_params=None,
        target_flops=None,
        max_loss=None,
        layers={**config.layers, **forms},
    )
