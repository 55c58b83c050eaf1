"""cp: T_h ~ A diag(m_h) B^T by alternating least squares on the per-head factors.

The paper's A, M and B are query, weights and key here. With a content bias the decomposition is coupled:
l_h ~ c_h B^T shares B, as one more query dimension that only the bias maps.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .linalg import solve_proximal
from .score_tensor import ScoreTensor
from .solution import Solution, converged, relative
from .svd import truncated_components

# Extrapolation beyond the last sweep: from 0.9 up, as 1 - 6 / sweeps. On layers of minilm 40 sweeps reach
# what 150 of plain ALS reach, and one in a hundred is undone.
_LEAST_MOMENTUM, _MOMENTUM_SPAN = 0.9, 6

# Sweeps that the stopping rule looks back on: the first one after an undone extrapolation gains little.
_WINDOW = 4


class CPFactors(NamedTuple):
    """One iterate. H num_heads, R rank, d head_dim.

    Attributes:
        query: A, (D, R).
        key: B, (E, R).
        weights: m, (H, R).
        bias: c, (H, R); zeros without a content bias.
        projected_key: W_K^hT B, (H, d, R), which two steps of a sweep need.
    """

    query: Tensor
    key: Tensor
    weights: Tensor
    bias: Tensor
    projected_key: Tensor

    def beyond(self, previous: CPFactors, step: float) -> CPFactors:
        """This iterate plus `step` times the way that led to it."""
        return CPFactors(*(torch.lerp(old, new, 1 + step) for old, new in zip(previous, self, strict=True)))

    def balanced(self) -> CPFactors:
        """The same approximation with columns of A, M and B of equal norm, so that no factor drifts off."""
        norms = [factor.norm(dim=0) for factor in (self.query, self.key, self.weights)]
        size = (norms[0] * norms[1] * norms[2]) ** (1 / 3)
        query, key, weights = (torch.where(norm > 0, size / norm, 1.0) for norm in norms)
        return CPFactors(
            self.query * query,
            self.key * key,
            self.weights * weights,
            self.bias / torch.where(key > 0, key, 1.0),
            self.projected_key * key,
        )


def initial_factors(scores: ScoreTensor, rank: int) -> tuple[CPFactors, Tensor]:
    """Concatenated truncated per-head SVDs: the answer of `decompose_svd`, which ALS can only improve.

    Args:
        scores: per-head factors.
        rank: number of shared dimensions, 1 to num_heads * head_dim.

    Returns:
        Balanced factors and their squared error.
    """
    parts = truncated_components(scores, rank, scores.query.shape[2])
    owner = torch.nn.functional.one_hot(parts.heads, len(scores.query)).T.to(scores.query)
    factors = CPFactors(
        parts.query, parts.key, owner, owner * parts.bias, scores.project_key(parts.key)
    ).balanced()
    return factors, parts.dropped


def sweep(scores: ScoreTensor, factors: CPFactors, support: Tensor | None = None) -> tuple[CPFactors, Tensor]:
    """Solve for A, B, M and c in turn, each exactly.

    Args:
        scores: per-head factors.
        factors: where to start.
        support: shared dimensions that each head may use, (H, k); None for all of them. Where given, M and c
            are solved on the support and are zero elsewhere.

    Returns:
        New balanced factors, and the squared error: ||T - T^||_F^2 + ||l - l^||_F^2.
    """
    query, key, weights, bias, projected_key = factors
    biased = scores.query_bias is not None
    key_gram, mixing_gram = key.T @ key, weights.T @ weights
    target = scores.combine_query(projected_key * weights.unsqueeze(1))
    query = solve_proximal(key_gram * mixing_gram, target, query)

    query_gram, projected_query = query.T @ query, scores.project_query(query)
    gram = query_gram * mixing_gram
    target = scores.combine_key(projected_query * weights.unsqueeze(1))
    content_bias = scores.content_bias()
    if biased:
        gram = gram + bias.T @ bias
        target = target + content_bias.T @ bias
    key = solve_proximal(gram, target, key)

    key_gram, projected_key = key.T @ key, scores.project_key(key)
    gram, target = query_gram * key_gram, (projected_query * projected_key).sum(1)
    weights = _solve_rows(gram, target, weights, support)
    error = scores.squared_norm - 2 * (target * weights).sum() + (weights @ gram * weights).sum()
    if biased:
        target = content_bias @ key
        bias = _solve_rows(key_gram, target, bias, support)
        error = error + content_bias.square().sum() - 2 * (target * bias).sum()
        error = error + (bias @ key_gram * bias).sum()
    return CPFactors(query, key, weights, bias, projected_key).balanced(), error


def _solve_rows(gram: Tensor, target: Tensor, start: Tensor, support: Tensor | None) -> Tensor:
    """Least squares for every row (head) of a (H, R) unknown, on the row's own support."""
    if support is None:
        return solve_proximal(gram, target, start)
    block = gram[support.unsqueeze(2), support.unsqueeze(1)]  # (H, k, k)
    rows = [values.gather(1, support).unsqueeze(1) for values in (target, start)]
    return torch.zeros_like(start).scatter(1, support, solve_proximal(block, *rows).squeeze(1))


def iterate(
    scores: ScoreTensor,
    factors: CPFactors,
    errors: list[float],
    *,
    support: Tensor | None = None,
    max_sweeps: int,
    tol: float,
) -> CPFactors:
    """Sweep with extrapolation until the error no longer falls; the error never rises.

    Sweeps start some way beyond the last iterate, in the direction of the last step. Where that ends above
    the last error, it is undone and plain ALS goes on from there.

    Args:
        scores: per-head factors.
        factors: where to start.
        errors: relative errors so far, the start's at least; each sweep appends its own.
        support: shared dimensions that each head may use, (H, k), or None.
        max_sweeps: most sweeps, those undone included.
        tol: stop when a sweep lowers the relative error by less than this fraction of it.

    Returns:
        The last factors.

    Source:
        Mitchell, Ye & De Sterck 2020, arXiv:1810.05846, for momentum with restart on ALS.
    """
    previous = start = factors
    for count in range(1, max_sweeps + 1):
        new, squared_error = sweep(scores, start, support)
        error = relative(squared_error, scores.squared_norm)
        if error > errors[-1] and start is not factors:
            start = factors
            continue
        previous, factors = factors, new
        errors.append(min(error, errors[-1]))  # at the fixed point, rounding can raise the last digit
        if converged(errors, tol, _WINDOW):
            break
        start = factors.beyond(previous, max(_LEAST_MOMENTUM, 1 - _MOMENTUM_SPAN / count))
    return factors


def decompose_cp(scores: ScoreTensor, rank: int, *, max_sweeps: int = 100, tol: float = 1e-4) -> Solution:
    """Factor the score tensor into shared projections that every head weighs in its own way.

    Args:
        scores: per-head factors, whitened or not; a query bias is fitted along.
        rank: shared query/key width, 1 to num_heads * head_dim, where the answer is exact.
        max_sweeps: most ALS sweeps.
        tol: stop when a sweep lowers the relative error by less than this fraction of it.

    Returns:
        Factors with `mixing["weight"]` of shape (num_heads, rank).

    Source:
        Cordonnier et al. 2020, arXiv:2006.16362, section 4.1; Kolda & Bader 2009, section 3.4, for ALS; Acar,
        Kolda & Dunlavy 2011, arXiv:1105.3422, for the coupled form.
    """
    factors, squared_error = initial_factors(scores, rank)
    errors = [relative(squared_error, scores.squared_norm)]
    if not converged(errors, tol):
        factors = iterate(scores, factors, errors, max_sweeps=max_sweeps, tol=tol)
    bias = None if scores.query_bias is None else factors.bias
    return Solution(factors.query, factors.key, {"weight": factors.weights}, bias, errors)
