"""One budget over all parts of a model: what each option loses, measured, and the choice that loses least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..calibration.held_out import Batch
from ..calibration.linear_inputs import linear_moments
from ..calibration.statistics import collect_statistics
from ..config import CollabConfig
from ..errors import ConfigError
from ..host.sites import AttentionSite, FeedForwardSite
from ..modeling.families import Family
from ..modeling.kinds import matches
from ..modeling.plans import Plans
from ..parts.part import Option
from ..parts.registry import FEED_FORWARDS, HEADS, QUERY_KEY, VALUES
from ..tensors.moments import LayerStatistics, Moments
from .attention_options import AttentionForm, attention_options, undominated
from .curves import Curve, measured_curves
from .divergence import Divergence
from .knapsack import BudgetError, solve_knapsack
from .whole_plan import WholePlan

# Shares of a site's parameters whose option is measured; between them a power of the error is fitted.
_MEASURED_SHARES = (0.2, 0.4, 0.6, 0.8)


@dataclass(frozen=True, eq=False)
class Measured:
    """What planning found out about a model; every budget is planned from it.

    Attributes:
        attention: attention sites by name.
        feed_forward: feed-forward sites by name.
        statistics: moments of what attention layers read.
        outputs: moments of what output projections read, by site name.
        neurons: moments of what down projections read, by site name.
        curves: by part and site, options with their losses.
    """

    attention: Mapping[str, AttentionSite]
    feed_forward: Mapping[str, FeedForwardSite]
    statistics: Mapping[str, LayerStatistics]
    outputs: Mapping[str, Moments]
    neurons: Mapping[str, Moments]
    curves: Mapping[str, Mapping[str, Curve]]

    def groups(self, length: int) -> dict[str, list[Option]]:
        """What can be chosen, site by site: exactly one option of each.

        Args:
            length: tokens of the sequence that operations are counted for.

        Returns:
            Options with operations and losses, by site.
        """
        found = {}
        for name, site in self.attention.items():
            heads, values, query_key = (
                self.curves.get(part.name, {}).get(name) for part in (HEADS, VALUES, QUERY_KEY)
            )
            found[name] = attention_options(site.shape, heads, values, query_key, length)
        for name, neurons in self.feed_forward.items():
            curve = self.curves.get(FEED_FORWARDS.name, {}).get(name)
            dense = Option(None, FEED_FORWARDS.parameters(None, neurons.shape), 0.0, None, 0.0)
            options = (
                [dense]
                if curve is None
                else [
                    replace(option, loss=float(loss))
                    for option, loss in zip(curve.options, curve.losses_alone(), strict=True)
                ]
            )
            found[name] = undominated(
                [
                    replace(o, operations=FEED_FORWARDS.operations(o.plan, neurons.shape, length))
                    for o in options
                ]
            )
        return found

    def only(self, parts: Sequence[str]) -> Measured:
        """The same with the options of some parts alone.

        Args:
            parts: their names.

        Returns:
            What can be chosen then.
        """
        return replace(self, curves={part: curves for part, curves in self.curves.items() if part in parts})


def measure_parts(
    model: PreTrainedModel,
    parts: Sequence[str],
    config: CollabConfig,
    seen: Sequence[Batch],
    held_out: Sequence[Batch],
    *,
    progress: bool = False,
) -> Measured:
    """Measure what the options of all parts lose, each alone.

    Args:
        model: a dense transformers model; left as it was found.
        parts: names of the parts that may be made smaller.
        config: settings of the solvers.
        seen: model inputs for statistics.
        held_out: model inputs to measure divergence on.
        progress: whether to draw progress bars on stderr.

    Returns:
        What was measured.

    Raises:
        FamilyError: no attention layer that collab_hf knows, or one that is compressed already.
        CalibrationError: calibration data that is empty or does not run.
        DecompositionError: weights that are not finite.
    """
    attention, feed_forward = QUERY_KEY.sites(model), FEED_FORWARDS.sites(model)
    layers: dict[str, nn.Module] = {f"output {name}": HEADS.output(site) for name, site in attention.items()}
    layers |= {f"neurons {name}": FEED_FORWARDS.output(site) for name, site in feed_forward.items()}
    moments = linear_moments(model, layers, seen, progress=progress)
    outputs = {name: moments[f"output {name}"] for name in attention}
    neurons = {name: moments[f"neurons {name}"] for name in feed_forward}
    divergence = Divergence(model, held_out)
    curves: dict[str, dict[str, Curve]] = {}
    inputs: list[tuple[Any, Mapping[str, Any], Mapping[str, Moments]]] = [
        (FEED_FORWARDS, feed_forward, neurons),
        (HEADS, attention, outputs),
        (VALUES, attention, outputs),
    ]
    for part, sites, found in inputs:
        if part.name in parts:
            open_sites = {name: site for name, site in sites.items() if _allows(site, part.name, config)}
            curves[part.name] = _part_curves(part, open_sites, found, divergence, config, progress)
    statistics: Mapping[str, LayerStatistics] = {}
    if QUERY_KEY.name in parts:
        chosen = {name: site for name, site in attention.items() if _allows(site, QUERY_KEY.name, config)}
        modules = {name: site.module for name, site in chosen.items()}
        statistics = collect_statistics(model, modules, seen, progress=progress)
        settings = dict.fromkeys(chosen, replace(config, reconstruct_steps=0))
        measured = measured_curves(
            model, QUERY_KEY, chosen, settings, statistics, seen, held_out, progress=progress
        )
        curves[QUERY_KEY.name] = {curve.name: curve for curve in measured}
    return Measured(attention, feed_forward, statistics, outputs, neurons, curves)


def _allows(site: Any, part: str, config: CollabConfig) -> bool:
    """Whether a part of a site may be made smaller, by its host and by the kinds that settings choose."""
    if not isinstance(site.family, Family):
        return True
    return site.family.refusal(site.module, part) is None and matches(site.name, config.attention)


def _part_curves(
    part: Any,
    sites: Mapping[str, Any],
    moments: Mapping[str, Moments],
    divergence: Divergence,
    config: CollabConfig,
    progress: bool,
) -> dict[str, Curve]:
    """Options of a part's sites with the divergence of a few of them, one at a time."""
    found = {}
    for name, site in tqdm(sites.items(), desc=f"Measuring {part.name}", unit="layer", disable=not progress):
        trial = part.trial(site, config, moments[name])
        dense = part.parameters(None, site.shape)
        knots = []
        for option in _measured_options(trial.options, dense):
            with part.replaced(sites, {name: trial.solve(option.plan)}):
                knots.append((option.error, divergence.measure()))
        found[name] = Curve(name, site.shape, dense, trial.options, tuple(knots))
    return found


def _measured_options(options: Sequence[Option], dense: int) -> list[Option]:
    smaller = [option for option in options if option.plan is not None]
    nearest = [
        min(smaller, key=lambda o: abs(o.parameters - share * dense)) for share in _MEASURED_SHARES if smaller
    ]
    return list({id(option): option for option in nearest}.values())


def choose_whole(
    measured: Measured, length: int, *, operations: float = np.inf, parameters: float = np.inf
) -> WholePlan:
    """The choice of least loss within a number of operations, of parameters, or both.

    Args:
        measured: what planning found out.
        length: tokens of the sequence that operations are counted for.
        operations: most that all sites may take for one sequence.
        parameters: most trainable numbers of all sites.

    Returns:
        The plan.

    Raises:
        ConfigError: nothing meets the target; the message says the nearest that can be met.
    """
    groups = measured.groups(length)
    losses = [np.array([o.loss for o in options]) for options in groups.values()]
    sizes = [np.array([[o.operations, o.parameters] for o in options], float) for options in groups.values()]
    dense = np.sum([size.max(axis=0) for size in sizes], axis=0)
    try:
        picks = solve_knapsack(losses, sizes, (operations, parameters))
    except BudgetError as error:
        least = [smallest / most for smallest, most in zip(error.least, dense, strict=True)]
        raise ConfigError(
            f"no choice of forms is so small: at least {least[0]:.3f} of the layers' operations and "
            f"{least[1]:.3f} of their parameters stay"
        ) from None
    chosen = {name: groups[name][pick] for name, pick in zip(groups, picks, strict=True)}
    return WholePlan(chosen, length, *(int(d) for d in dense_sizes(measured, length)))


def given_plan(measured: Measured, plans: Plans, length: int) -> WholePlan:
    """A plan whose forms are settled, as a recipe has them.

    Args:
        measured: the model's sites.
        plans: forms by section and site.
        length: tokens of the sequence that operations are counted for.

    Returns:
        The plan, without losses.

    Raises:
        ConfigError: a form for a site that the model doesn't have.
    """
    known = {**measured.attention, **measured.feed_forward}
    for forms in plans.values():
        unknown = [name for name in forms if name not in known]
        if unknown:
            raise ConfigError(f"plans has a form for {unknown[0]}, which this model does not have")
    options = {}
    for name, site in measured.attention.items():
        sections = ("heads", "value_output", "layers")
        form = AttentionForm(*(plans.get(section, {}).get(name) for section in sections))
        form.check(site.shape, name)
        operations = form.operations(site.shape, length)
        options[name] = Option(form, form.parameters(site.shape), 0.0, operations, 0.0)
    for name, neurons in measured.feed_forward.items():
        plan = plans.get("feed_forward", {}).get(name)
        if plan is not None:
            plan.check(neurons.shape.width, name)
        size = FEED_FORWARDS.parameters(plan, neurons.shape)
        options[name] = Option(plan, size, 0.0, FEED_FORWARDS.operations(plan, neurons.shape, length), 0.0)
    return WholePlan(options, length, *dense_sizes(measured, length))


def dense_sizes(measured: Measured, length: int) -> tuple[int, int]:
    """Operations for one sequence and parameters of all sites as they are."""
    operations = sum(AttentionForm().operations(s.shape, length) for s in measured.attention.values())
    operations += sum(FEED_FORWARDS.operations(None, s.shape, length) for s in measured.feed_forward.values())
    parameters = sum(AttentionForm().parameters(s.shape) for s in measured.attention.values())
    parameters += sum(FEED_FORWARDS.parameters(None, s.shape) for s in measured.feed_forward.values())
    return operations, parameters
