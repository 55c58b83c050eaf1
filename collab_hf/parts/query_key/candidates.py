"""The same budget for every layer: each gets the form of least error among those that fit."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

from ...config import CollabConfig
from ...modeling.errors import RankError
from ...modeling.plan import AttentionShape, ContentBias, LayerPlan, Method
from ...tensors import Problem, ScoreTensor
from ...tensors.factors import SharedFactors
from ...tensors.moments import LayerStatistics

# Kept of the query/key parameters when neither ranks nor a budget are given.
DEFAULT_BUDGET = 0.25

# Kernels work in blocks of 8 numbers; smaller ranks are rare enough to be taken as they come.
_RANK_STEP = 8

# Sweeps that rank the candidates; their order does not change afterwards by more than the last digit.
_TRIAL_SWEEPS = 3


def choose_factors(
    scores: ScoreTensor, config: CollabConfig, plans: list[LayerPlan], statistics: LayerStatistics | None
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

    if len(plans) > 1:
        plans = sorted(plans, key=lambda plan: solve(plan, _TRIAL_SWEEPS).relative_error)
    return solve(plans[0])


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
    if config.method == "copy":
        return [_plan("copy", shape.full_rank, shape.full_rank, shape.head_dim, config, shape, name)]
    if config.rank is not None or config.query_rank is not None:
        return [_given(config, shape, name)]
    budget = DEFAULT_BUDGET if config.budget is None else config.budget
    method: Method = "tucker" if config.method == "auto" else config.method
    allowed = int(budget * shape.dense_parameters)
    families = _forms(method, config, shape, name)
    fitting = [[plan for plan in ranks if plan.num_parameters(shape) <= allowed] for ranks in families]
    # Within a family the error falls with the rank, so the largest that fits need not be compared.
    best = [max(ranks, key=lambda plan: plan.query_rank) for ranks in fitting if ranks]
    if not best:
        smallest = min(plan.num_parameters(shape) for ranks in families for plan in ranks)
        least = math.ceil(1e4 * smallest / shape.dense_parameters) / 1e4
        raise RankError(f"budget must be at least {least} for {method}, got {budget} ({name})")
    return best


def _given(config: CollabConfig, shape: AttentionShape, name: str) -> LayerPlan:
    """The one form that explicit ranks name."""
    query_rank, key_rank = config.query_rank or config.rank, config.key_rank or config.rank
    if query_rank is None or key_rank is None:
        raise RankError("give rank, or query_rank and key_rank")
    method: Method = "tucker" if config.method == "auto" else config.method
    # A head's own core slice is never of higher rank than its score matrix, so this narrowing loses nothing.
    narrowed = key_rank if config.key_groups > 1 or config.head_rank else min(key_rank, shape.head_dim)
    width = {
        "cp": config.dims_per_head or key_rank,
        "svd": min(key_rank, shape.head_dim),
        "tucker": config.score_width or narrowed,
    }[method]
    return _plan(method, query_rank, key_rank * config.key_groups, width, config, shape, name)


def _forms(method: Method, config: CollabConfig, shape: AttentionShape, name: str) -> list[list[LayerPlan]]:
    """Families of plans that differ in rank alone, for the budget to choose from."""
    head_dim = shape.head_dim

    def plans(ranks: Iterable[int], key_rank: int | None, width: int | None) -> list[LayerPlan]:
        made = []
        for rank in ranks:
            keys = rank if key_rank is None else key_rank
            made.append(_plan(method, rank, keys, keys if width is None else width, config, shape, name))
        return made

    if method == "svd":
        # The width is a cap here: each head gets the rank that its singular values earn, head_dim at most.
        return [plans(_ranks(head_dim, shape.full_rank), None, head_dim)]
    if method == "cp":
        least = config.dims_per_head or 1
        return [plans(_ranks(least, shape.full_rank), None, config.dims_per_head)]
    most = min(shape.query_size, shape.key_size, shape.full_rank)
    widths = sorted({max(1, head_dim * quarters // 4) for quarters in (1, 2, 3, 4)})
    if config.score_width is not None:
        widths = [config.score_width]
    read_whole = config.key_groups > 1 or config.head_rank is not None
    narrowed = [] if read_whole else [plans(_ranks(width + 1, most), None, width) for width in widths]
    if config.tied:
        whole = [] if config.score_width else [plans(_ranks(1, min(most, head_dim)), None, None)]
        return [*whole, *narrowed]
    return [plans(_ranks(1, most), width * config.key_groups, width) for width in widths] + narrowed


def _ranks(least: int, most: int) -> list[int]:
    return [
        rank
        for rank in range(least, most + 1)
        if rank % _RANK_STEP == 0 or rank < 2 * _RANK_STEP or rank == most
    ]


def _plan(
    method: Method,
    query_rank: int,
    key_rank: int,
    width: int,
    config: CollabConfig,
    shape: AttentionShape,
    name: str,
) -> LayerPlan:
    bias: ContentBias
    if config.content_bias == "auto":
        # A few shared dimensions carry little of the content bias, and keys narrower than a head have room
        # for it: sparse cp at a quarter of MiniLM reaches a cosine of .983 so, and of .976 if it is folded.
        roomy = method == "cp" and width < shape.head_dim
        bias = "folded" if width <= shape.head_dim and not roomy else "exact"
    else:
        bias = config.content_bias
    shared = config.key_groups, config.head_rank, config.tied
    plan = LayerPlan(method, query_rank, key_rank, width, *shared, bias)
    return plan.check(shape, name)


def layer_settings(plan: LayerPlan | None) -> dict[str, Any] | Literal["dense"]:
    """A form as an entry of `CollabConfig.layers`.

    Args:
        plan: the form, or None for dense.

    Returns:
        Fields of CollabConfig that give this form again.
    """
    if plan is None:
        return "dense"
    values: dict[str, Any] = {"method": plan.method, "content_bias": plan.content_bias}
    if plan.method == "tucker":
        values |= {
            "query_rank": plan.query_rank,
            "key_rank": plan.key_rank // plan.key_groups,
            "score_width": plan.score_width,
        }
        values |= {"key_groups": plan.key_groups} if plan.key_groups > 1 else {}
        values |= {"head_rank": plan.head_rank} if plan.head_rank else {}
        values |= {"tied": True} if plan.tied else {}
    elif plan.method != "copy":
        values["rank"] = plan.query_rank
        if plan.method == "cp" and plan.score_width != plan.query_rank:
            values["dims_per_head"] = plan.score_width
    return values
