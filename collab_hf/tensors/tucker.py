"""tucker: T_h ~ A P_h Q_h^T B^T by alternating subspace updates (HOOI) on the per-head factors.

With a content bias, every slice has one more query row l_h, which A leaves alone: the core slice of head h is
then the (R_q + 1) x R_k matrix [A^T T_h; l_h] B. Its truncation to rank score_width gives P_h (with the query
bias c_h as its last row) and Q_h.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .linalg import better_subspace, product_svd, top_eigenvectors
from .score_tensor import ScoreTensor
from .solution import Solution, converged, relative

# A step works in twice the subspace's width; where that is most of the space, eigh of the whole costs less.
_STEP_SAVES = 3


@dataclass(frozen=True)
class TuckerRanks:
    """Sizes of a Tucker decomposition.

    Attributes:
        query: width of the shared query, 1 to query_size.
        key: width of the shared key, 1 to key_size.
        score: most rank of one head's core slice, <= key; equal to key leaves the slices alone.
        tied: whether queries and keys share one subspace.
    """

    query: int
    key: int
    score: int
    tied: bool = False

    @property
    def narrowed(self) -> bool:
        """Whether core slices are limited in rank."""
        return self.score < self.key


def core_factors(scores: ScoreTensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of every head's core slice: left_h right_h^T = [A^T T_h; l_h] B.

    Args:
        scores: per-head factors.
        query: A with orthonormal columns, (D, R_q).
        key: B with orthonormal columns, (E, R_k).

    Returns:
        left (H, R_q or R_q + 1, d) and right (H, R_k, d).
    """
    left = scores.project_query(query).mT
    if scores.query_bias is not None:
        left = torch.cat([left, scores.query_bias.unsqueeze(1)], dim=1)
    return left, scores.project_key(key).mT


def _captured_right(scores: ScoreTensor, query: Tensor, key: Tensor, ranks: TuckerRanks) -> Tensor:
    """K_h^T B Q_h for the best Q_h, (H, d, w): what the query side sees of the keys."""
    left, right = core_factors(scores, query, key)
    if not ranks.narrowed:
        return right.mT
    return right.mT @ product_svd(left, right)[2][..., : ranks.score]


def _captured_left(scores: ScoreTensor, query: Tensor, key: Tensor, ranks: TuckerRanks) -> Tensor:
    """The same of the queries (and of the content bias), (H, d, w), for the best P_h."""
    left, right = core_factors(scores, query, key)
    if not ranks.narrowed:
        return left.mT
    return left.mT @ product_svd(left, right)[0][..., : ranks.score]


def _captured(scores: ScoreTensor, query: Tensor, key: Tensor, ranks: TuckerRanks) -> Tensor:
    """Sum of squares of the truncated core slices: what the approximation has of ||T||^2 + ||l||^2."""
    left, right = core_factors(scores, query, key)
    if not ranks.narrowed:
        return ((left.mT @ left) * (right.mT @ right)).sum()
    return product_svd(left, right)[1][..., : ranks.score].square().sum()


def start_subspaces(scores: ScoreTensor, ranks: TuckerRanks) -> tuple[Tensor, Tensor]:
    """Leading subspaces of the two unfoldings (HOSVD), or of both: A (D, R_q) and B (E, R_k), orthonormal."""
    query, key = (scores.joint_directions,) * 2 if ranks.tied else scores.directions
    return query[:, : ranks.query], key[:, : ranks.key]


def decompose_tucker(
    scores: ScoreTensor, ranks: TuckerRanks, *, max_sweeps: int = 30, tol: float = 1e-4
) -> Solution:
    """Factor the score tensor into one query subspace, one key subspace and a small core per head.

    Args:
        scores: per-head factors, whitened or not; a query bias is fitted along.
        ranks: widths of the shared projections and of the score product.
        max_sweeps: most sweeps.
        tol: stop when a sweep lowers the relative error by less than this fraction of it.

    Returns:
        Factors with orthonormal shared projections and `mixing["query_core"]`, and `mixing["key_core"]`
        where ranks.score < ranks.key; tied, the two are stacked in `mixing["core"]`.

    Source:
        De Lathauwer, De Moor & Vandewalle 2000, for HOOI; the truncation of the core slices is the same
        alternation with one more exact step (each update is the best answer with the rest fixed). Tied, a
        step maximises what is linear in the one subspace; it is kept only if the error falls.
    """
    query, key = start_subspaces(scores, ranks)
    total = scores.squared_norm + scores.content_bias().square().sum()

    def error(query: Tensor, key: Tensor) -> float:
        return relative(total - _captured(scores, query, key, ranks), scores.squared_norm)

    errors = [error(query, key)]
    for _ in range(max_sweeps):
        if converged(errors, tol):
            break
        better = _sweep(scores, query, key, ranks)
        errors.append(error(*better))
        if errors[-1] > errors[-2]:  # rounding at the fixed point, or a tied step that went too far
            errors[-1] = errors[-2]
            break
        query, key = better
    cores, bias = _cores(scores, query, key, ranks)
    return Solution(query, key, cores, bias, errors)


def _sweep(scores: ScoreTensor, query: Tensor, key: Tensor, ranks: TuckerRanks) -> tuple[Tensor, Tensor]:
    """Better subspaces: one after the other, each the best for the other one; tied, one for both sides."""
    right = _captured_right(scores, query, key, ranks)
    gram = scores.query_gram(right @ right.mT)
    if not ranks.tied:
        query = _update(gram, query)
    left = _captured_left(scores, query, key, ranks)
    other = scores.key_gram(left @ left.mT)
    if ranks.tied:
        query = key = _update(gram + other, query)
        return query, key
    return query, _update(other, key)


def _update(gram: Tensor, basis: Tensor) -> Tensor:
    """The best subspace where it is a large part of the space, else one step towards it.

    A sweep changes the Gram matrix anyway, so that a step gains about as much as the exact answer.
    """
    size, count = basis.shape
    if _STEP_SAVES * count > size:
        return top_eigenvectors(gram, count)
    return better_subspace(gram.matmul, basis)


def _cores(
    scores: ScoreTensor, query: Tensor, key: Tensor, ranks: TuckerRanks
) -> tuple[dict[str, Tensor], Tensor | None]:
    """The mixing's cores (H, w, R), and c_h (H, w) where there is a content bias."""
    left, right = core_factors(scores, query, key)
    size = query.shape[1]
    if ranks.narrowed:
        u, values, v = product_svd(left, right)
        scale = values.sqrt().unsqueeze(1)  # shared out evenly, so that both cores train alike
        left, right = u * scale, v * scale
        # A core slice of lower rank than asked for (head_dim < score_width) is padded with zeros.
        missing = max(0, ranks.score - values.shape[1])
        left, right = (torch.nn.functional.pad(x[..., : ranks.score], (0, missing)) for x in (left, right))
        both = {"query_core": left[:, :size].mT.contiguous(), "key_core": right.mT.contiguous()}
        cores = {"core": torch.stack([*both.values()])} if ranks.tied else both
    else:
        left = left @ right.mT
        cores = {"query_core": left[:, :size].mT.contiguous()}
    return cores, None if scores.query_bias is None else left[:, size].contiguous()
