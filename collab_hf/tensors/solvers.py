"""Which solver gives which form; a new decomposition gets a row in `SOLVERS`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..modeling.plan import LayerPlan
from .cp import decompose_cp
from .grouped_tucker import decompose_grouped_tucker
from .score_tensor import ScoreTensor
from .solution import Solution
from .sparse_cp import decompose_sparse_cp
from .svd import decompose_svd
from .tucker import TuckerRanks, decompose_tucker

Solver = Callable[[ScoreTensor, LayerPlan, int, dict[str, Any]], Solution]


def _solve_cp(scores: ScoreTensor, plan: LayerPlan, seed: int, options: dict[str, Any]) -> Solution:
    if plan.score_width < plan.query_rank:
        return decompose_sparse_cp(scores, plan.query_rank, plan.score_width, **options)
    return decompose_cp(scores, plan.query_rank, **options)


def _solve_tucker(scores: ScoreTensor, plan: LayerPlan, seed: int, options: dict[str, Any]) -> Solution:
    if plan.key_groups > 1 or plan.head_rank is not None:
        sizes = plan.query_rank, plan.group_rank, plan.key_groups, plan.head_rank
        return decompose_grouped_tucker(scores, *sizes, seed=seed, **options)
    ranks = TuckerRanks(plan.query_rank, plan.key_rank, plan.score_width, plan.tied)
    return decompose_tucker(scores, ranks, **options)


def _solve_svd(scores: ScoreTensor, plan: LayerPlan, seed: int, options: dict[str, Any]) -> Solution:
    return decompose_svd(scores, plan.query_rank, min(plan.score_width, scores.shape.head_dim))


def _solve_copy(scores: ScoreTensor, plan: LayerPlan, seed: int, options: dict[str, Any]) -> Solution:
    heads = scores.query.transpose(0, 1).flatten(1), scores.key.transpose(0, 1).flatten(1)
    return Solution(*heads, {}, scores.query_bias, [0.0])


# By the method's name: scores as the softmax sees them, the ranks, a seed, and options of the sweeps.
SOLVERS: dict[str, Solver] = {
    "cp": _solve_cp,
    "tucker": _solve_tucker,
    "svd": _solve_svd,
    "copy": _solve_copy,
}
