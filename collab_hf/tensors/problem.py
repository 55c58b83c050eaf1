"""`decompose`: one call for every method, on weights or on what the softmax sees."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from ..errors import DecompositionError
from ..modeling.mixing import build_mixing
from ..modeling.plan import LayerPlan
from .factors import SharedFactors
from .moments import Moments
from .score_tensor import ScoreTensor
from .solution import Solution
from .solvers import SOLVERS
from .tensorly_solver import solve_with_tensorly
from .whitening import Metric


def decompose(
    scores: ScoreTensor,
    plan: LayerPlan,
    *,
    query_moments: Moments | None = None,
    key_moments: Moments | None = None,
    damping: float = 1e-3,
    precision: Literal["float64", "float32"] = "float64",
    solver: str | None = None,
    seed: int = 0,
    max_sweeps: int | None = None,
    tol: float = 1e-4,
) -> SharedFactors:
    """Give a layer's query and key the shared form that a plan describes.

    With moments, the expected squared error of the scores that the softmax sees is minimised (values that
    depend on the query token alone drop out of it), and the part of the error that the mean input causes
    becomes content bias, exactly. Without moments, the error of the weights is minimised.

    Args:
        scores: the dense layer's per-head factors, not divided by sqrt(head_dim).
        plan: method and ranks.
        query_moments: mean and covariance of the input of the query projection, or None.
        key_moments: the same of the key projection's input; that of the query where None.
        damping: added to the covariances' diagonal, relative to its mean (dimensionless, >= 0).
        precision: dtype inside the solvers and of the result.
        solver: None for the structured solvers, or a tensorly decomposition such as `tensorly.parafac`.
        seed: seed of every random choice.
        max_sweeps: most sweeps of the alternating solvers; None takes each solver's own.
        tol: stop when a sweep lowers the relative error by less than this fraction of it.

    Returns:
        Factors on the scores' device. Their plan is the one given, save that svd narrows score_width to the
        rank of its widest head. relative_error is whitened where moments are given, and with a folded content
        bias it includes the error of that bias.

    Raises:
        RankError: a rank that the layer can't have.
        ConfigError: an unknown method or content bias.
        DecompositionError: moments that do not fit the weights or are not finite, or a solver that failed.
    """
    problem = Problem.prepare(
        scores, query_moments=query_moments, key_moments=key_moments, damping=damping, precision=precision
    )
    return problem.solve(plan, solver=solver, seed=seed, max_sweeps=max_sweeps, tol=tol)


# How far rounding may lift the relative error over a run of sweeps in float32.
_ROUNDING = 1e-4


@dataclass(frozen=True, eq=False)
class Problem:
    """One layer in the coordinates that its data give, ready to be solved in several forms.

    What does not depend on the form is worked out once: whitening here, and the leading subspaces, which
    `ScoreTensor` keeps.

    Attributes:
        scores: the layer as a function of centred queries.
        query_metric: metric of the query projection's input.
        key_metric: metric of the key projection's input.
        mean: mean input of the query projection, (D,).
    """

    scores: ScoreTensor
    query_metric: Metric
    key_metric: Metric
    mean: Tensor

    @classmethod
    def prepare(
        cls,
        scores: ScoreTensor,
        *,
        query_moments: Moments | None = None,
        key_moments: Moments | None = None,
        damping: float = 1e-3,
        precision: Literal["float64", "float32"] = "float64",
    ) -> Problem:
        """Centre a layer's inputs and find their metrics.

        Args:
            scores: as for `decompose`.
            query_moments: as for `decompose`.
            key_moments: as for `decompose`.
            damping: as for `decompose`.
            precision: as for `decompose`.

        Returns:
            The problem.
        """
        scores = scores.to(getattr(torch, precision))
        if key_moments is None and scores.shape.key_size == scores.shape.query_size:
            key_moments = query_moments
        mean = scores.query.new_zeros(scores.shape.query_size)
        if query_moments is not None:
            mean = query_moments.mean.to(mean)
            scores = scores.absorb_mean(mean)
        query_metric = Metric.from_moments(query_moments, damping, scores.query)
        shared = key_moments is query_moments and scores.shape.key_size == scores.shape.query_size
        key_metric = query_metric if shared else Metric.from_moments(key_moments, damping, scores.key)
        return cls(scores, query_metric, key_metric, mean)

    @cached_property
    def folded(self) -> ScoreTensor:
        """The whitened tensor with its content bias, zeros where the layer has none."""
        whitened = self.scores.whiten(self.query_metric, self.key_metric)
        if whitened.query_bias is not None:
            return whitened
        return replace(whitened, query_bias=whitened.query.new_zeros(whitened.query.shape[::2]))

    @cached_property
    def exact(self) -> ScoreTensor:
        """The whitened tensor without content bias, which is added to the scores as it is."""
        return self.folded.without_bias()

    @torch.no_grad()
    def solve(
        self,
        plan: LayerPlan,
        *,
        solver: str | None = None,
        seed: int = 0,
        max_sweeps: int | None = None,
        tol: float = 1e-4,
    ) -> SharedFactors:
        """Give the layer one form.

        Args:
            plan: as for `decompose`.
            solver: as for `decompose`.
            seed: as for `decompose`.
            max_sweeps: as for `decompose`.
            tol: as for `decompose`.

        Returns:
            The factors.

        Raises:
            DecompositionError: a result that is not finite, or worse than what the sweeps began with.
        """
        plan.check(self.scores.shape)
        if plan.tied and self.key_metric is not self.query_metric:
            raise DecompositionError("tied queries and keys need the moments of one input, got two")
        whitened = self.exact if plan.content_bias == "exact" else self.folded
        if solver is None:
            options = {"tol": tol} | ({} if max_sweeps is None else {"max_sweeps": max_sweeps})
            solution = SOLVERS[plan.method](whitened, plan, seed, options)
        else:
            solution = solve_with_tensorly(whitened, plan, solver, seed, max_sweeps, tol)
        _check(solution, plan, bounded=solver is None)
        solution = replace(
            solution,
            shared_query=(query := self.query_metric.unwhiten(solution.shared_query)),
            shared_key=query if plan.tied else self.key_metric.unwhiten(solution.shared_key),
        )
        return _assemble(self.scores, plan, solution, self.mean)


def _check(solution: Solution, plan: LayerPlan, *, bounded: bool) -> None:
    """Refuse what no solver may return; its sweeps only lower the error, so the start bounds the result."""
    tensors = [solution.shared_query, solution.shared_key, *solution.mixing.values()]
    tensors += [] if solution.bias is None else [solution.bias]
    error, start = solution.errors[-1], solution.errors[0]
    if not math.isfinite(error) or not all(bool(torch.isfinite(t).all()) for t in tensors):
        raise DecompositionError(f"the {plan.method} solver gave numbers that are not finite")
    if bounded and error > start * (1 + _ROUNDING) + _ROUNDING:
        raise DecompositionError(
            f"the {plan.method} solver ended at a relative error of {error:.4g}, above the {start:.4g} "
            "of its start"
        )


def _assemble(scores: ScoreTensor, plan: LayerPlan, solution: Solution, mean: Tensor) -> SharedFactors:
    """Build the mixing, and settle what the mean input leaves to the content bias."""
    if "index" in solution.mixing:
        plan = replace(plan, score_width=solution.mixing["index"].shape[1])
    mixing = build_mixing(plan, scores.shape.num_heads).to(scores.query)
    state = dict(solution.mixing)
    if solution.bias is not None:
        state["bias"] = solution.bias
    mixing.load_state_dict(state)
    factors = SharedFactors(
        plan, solution.shared_query, solution.shared_key, mixing, None, solution.errors[-1]
    )
    # The scores' bias stands for inputs with their mean taken off; the mixing sees them with it.
    mean_query = (mean @ factors.shared_query) @ mixing.query_maps().to(mean)  # (H, w)
    if mixing.bias is not None:
        mixing.bias.copy_(mixing.bias - mean_query)
        return factors
    right = factors.shared_key @ mixing.key_maps().to(mean)  # (H, E, w)
    content_bias = scores.content_bias() - torch.einsum("hjw,hw->hj", right, mean_query)
    return replace(factors, content_bias=content_bias)
