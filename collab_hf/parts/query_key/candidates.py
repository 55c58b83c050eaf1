"""The same budget for every layer: each gets the form of least error among those that fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch

from ...config import CollabConfig
from ...errors import DecompositionError
from ...host.sites import AttentionSite
from ...modeling.errors import RankError
from ...modeling.plan import LayerPlan
from ...modeling.shapes import AttentionShape
from ...tensors import Problem, ScoreTensor
from ...tensors.factors import SharedFactors
from ...tensors.moments import LayerStatistics
from .methods import METHODS

# Kept of the query/key parameters when neither ranks nor a budget are given.
DEFAULT_BUDGET = 0.25

# What layers get whose method is left to the planner, where something else than the planner chooses.
DEFAULT_METHOD = "tucker"

# Sweeps that rank the candidates; their order does not change afterwards by more than the last digit.
_TRIAL_SWEEPS = 3

# They lower the error of truncation by 8 % at most (MiniLM's and DINOv2's layers): what starts further above
# the best than this is not swept.
_MOST_GAIN = 1.1


def choose_factors(
    scores: ScoreTensor, config: CollabConfig, plans: Sequence[LayerPlan], statistics: LayerStatistics | None
) -> SharedFactors:
    """Decompose one layer in the form with the least error.

    Args:
        scores: the layer's per-head factors.
        config: solver settings.
        plans: the forms to choose from, at least one.
        statistics: moments of the layer's inputs, or None for the weights alone.

    Returns:
        The factors.

    Raises:
        DecompositionError: weights that are not finite, or a solver that failed.
    """
    problem = layer_problem(scores, config, statistics)

    def solve(plan: LayerPlan, max_sweeps: int | None = None) -> SharedFactors:
        return problem.solve(plan, solver=config.solver, seed=config.seed, max_sweeps=max_sweeps)

    if len(plans) > 1 and config.solver is None:
        starts = [solve(plan, 0).relative_error for plan in plans]
        within = _MOST_GAIN * min(starts)
        plans = [plan for plan, start in zip(plans, starts, strict=True) if start <= within]
    if len(plans) > 1:
        plans = sorted(plans, key=lambda plan: solve(plan, _TRIAL_SWEEPS).relative_error)
    return solve(plans[0])


def score_tensor(site: AttentionSite, config: CollabConfig) -> ScoreTensor:
    """The per-head factors of a dense attention module, in the solvers' precision.

    Args:
        site: a dense attention module.
        config: the layer's settings.

    Returns:
        The factors.

    Raises:
        DecompositionError: weights that are not finite.
    """
    dtype = getattr(torch, config.precision)
    query, key, bias = site.family.head_factors(site.module)
    if not all(torch.isfinite(t).all() for t in (query, key, *([] if bias is None else [bias]))):
        raise DecompositionError(f"the query or key weights of {site.name} are not finite")
    return ScoreTensor(query.to(dtype), key.to(dtype), None if bias is None else bias.to(dtype))


def layer_problem(scores: ScoreTensor, config: CollabConfig, statistics: LayerStatistics | None) -> Problem:
    """One layer, ready to be solved in several forms.

    Args:
        scores: the layer's per-head factors.
        config: the layer's settings.
        statistics: moments of the layer's inputs, or None for the weights alone.

    Returns:
        The problem; whitening and leading subspaces are worked out once for all forms.

    Raises:
        DecompositionError: moments that do not fit the weights or are not finite.
    """
    return Problem.prepare(
        scores,
        query_moments=None if statistics is None else statistics.query,
        key_moments=None if statistics is None else statistics.key,
        damping=config.damping,
        precision=config.precision,
    )


def candidate_plans(config: CollabConfig, shape: AttentionShape, name: str) -> list[LayerPlan]:
    """The forms that one layer may get.

    Args:
        config: the layer's settings.
        shape: sizes of the dense layer.
        name: the layer's name, for messages.

    Returns:
        One plan where ranks are given, else every form worth trying at the budget.

    Raises:
        RankError: a rank outside of what the layer allows, or a budget below the smallest form.
    """
    method = METHODS[DEFAULT_METHOD if config.method == "auto" else config.method]
    if config.rank is not None or config.query_rank is not None or not method.form.settings:
        return [method.given(config, shape).check(shape, name)]
    budget = DEFAULT_BUDGET if config.budget is None else config.budget
    allowed = int(budget * shape.dense_parameters)
    ladders = [[plan.check(shape, name) for plan in ladder] for ladder in method.ladders(config, shape)]
    fitting = [[plan for plan in ladder if plan.num_parameters(shape) <= allowed] for ladder in ladders]
    # Within a ladder the error falls with the rank, so the largest that fits need not be compared.
    best = [max(ladder, key=lambda plan: plan.query_rank) for ladder in fitting if ladder]
    if not best:
        smallest = min(plan.num_parameters(shape) for ladder in ladders for plan in ladder)
        least = math.ceil(1e4 * smallest / shape.dense_parameters) / 1e4
        raise RankError(f"budget must be at least {least} for {method.name}, got {budget} ({name})")
    return best


def layer_settings(plan: LayerPlan | None) -> dict[str, Any] | Literal["dense"]:
    """A form as an entry of `CollabConfig.layers`.

    Args:
        plan: the form, or None for dense.

    Returns:
        Fields of CollabConfig that give this form again.
    """
    if plan is None:
        return "dense"
    shared = {"method": plan.method, "content_bias": plan.content_bias}
    return {**shared, **METHODS[plan.method].settings(plan)}
