"""tucker: T_h ~ A P_h Q_h^T B^T by alternating subspace updates (HOOI) on the per-head factors.

With a content bias, every slice has one more query row l_h, which A leaves alone: the core slice of head h is
then the (R_q + 1) x R_k matrix [A^T T_h; l_h] B. Its truncation to rank score_width gives P_h (with the query
bias c_h as its last row) and Q_h.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .linalg import better_subspace, leading_directions, product_svd
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


@dataclass(frozen=True, eq=False)
class _Cores:
    """Factors of every head's core slice: left_h right_h^T = [A^T T_h; l_h] B, truncated to rank w."""

    left: Tensor  # (H, R_q or R_q + 1, d)
    right: Tensor  # (H, R_k, d)
    ranks: TuckerRanks

    @cached_property
    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of the slices before truncation."""
        return product_svd(self.left, self.right)

    def seen_keys(self) -> Tensor:
        """K_h^T B Q_h for the best Q_h, (H, d, w): what the query side sees of the keys."""
        if not self.ranks.narrowed:
            return self.right.mT
        return self.right.mT @ self.svd[2][..., : self.ranks.score]

    def seen_queries(self) -> Tensor:
        """The same of the queries (and of the content bias), (H, d, w), for the best P_h."""
        if not self.ranks.narrowed:
            return self.left.mT
        return self.left.mT @ self.svd[0][..., : self.ranks.score]

    def captured(self) -> Tensor:
        """Sum of squares of the truncated slices: what the approximation has of ||T||^2 + ||l||^2."""
        if not self.ranks.narrowed:
            return ((self.left.mT @ self.left) * (self.right.mT @ self.right)).sum()
        return self.svd[1][..., : self.ranks.score].square().sum()


def _left(scores: ScoreTensor, query: Tensor) -> Tensor:
    """[A^T W_Q^h; b_Q^h] for A with orthonormal columns, (D, R_q)."""
    left = scores.project_query(query).mT
    if scores.query_bias is not None:
        left = torch.cat([left, scores.query_bias.unsqueeze(1)], dim=1)
    return left


def _right(scores: ScoreTensor, key: Tensor) -> Tensor:
    """B^T W_K^h for B with orthonormal columns, (E, R_k)."""
    return scores.project_key(key).mT


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
    cores = _Cores(_left(scores, query), _right(scores, key), ranks)
    total = scores.squared_norm + scores.content_bias().square().sum()

    def error(cores: _Cores) -> float:
        return relative(total - cores.captured(), scores.squared_norm)

    errors = [error(cores)]
    for _ in range(max_sweeps):
        if converged(errors, tol):
            break
        better = _sweep(scores, query, key, cores)
        errors.append(error(better[2]))
        if errors[-1] > errors[-2]:  # rounding at the fixed point, or a tied step that went too far
            errors[-1] = errors[-2]
            break
        query, key, cores = better
    mixing, bias = _mixing(scores, cores)
    return Solution(query, key, mixing, bias, errors)


def _sweep(scores: ScoreTensor, query: Tensor, key: Tensor, cores: _Cores) -> tuple[Tensor, Tensor, _Cores]:
    """Better subspaces: one after the other, each the best for the other one; tied, one for both sides."""
    queries = _side_by_side(scores.query @ cores.seen_keys())
    if cores.ranks.tied:
        keys = _side_by_side(scores.key @ cores.seen_queries())
        query = key = _update(torch.cat([queries, keys], dim=1), query)
        return query, key, _Cores(_left(scores, query), _right(scores, key), cores.ranks)
    query = _update(queries, query)
    cores = _Cores(_left(scores, query), cores.right, cores.ranks)
    key = _update(_side_by_side(scores.key @ cores.seen_queries()), key)
    return query, key, _Cores(cores.left, _right(scores, key), cores.ranks)


def _side_by_side(heads: Tensor) -> Tensor:
    """(H, size, w) to (size, H w)."""
    return heads.transpose(0, 1).flatten(1)


def _update(seen: Tensor, basis: Tensor) -> Tensor:
    """The best subspace where it is a large part of the space, else one step towards it.

    A sweep changes what is seen anyway, so that a step gains about as much as the exact answer.
    """
    size, count = basis.shape
    columns = seen.shape[1]
    if count >= columns:  # all that is seen fits
        whole: Tensor = torch.linalg.qr(torch.cat([seen, basis], dim=1))[0]
        return whole[:, :count]
    if _STEP_SAVES * count > min(size, columns):
        return leading_directions(seen, count)
    return better_subspace(seen, basis)


def _mixing(scores: ScoreTensor, cores: _Cores) -> tuple[dict[str, Tensor], Tensor | None]:
    """The mixing's cores (H, w, R), and c_h (H, w) where there is a content bias."""
    left, right, ranks = cores.left, cores.right, cores.ranks
    if ranks.narrowed:
        u, values, v = cores.svd
        scale = values.sqrt().unsqueeze(1)  # shared out evenly, so that both cores train alike
        left, right = u * scale, v * scale
        # A core slice of lower rank than asked for (head_dim < score_width) is padded with zeros.
        missing = max(0, ranks.score - values.shape[1])
        left, right = (torch.nn.functional.pad(x[..., : ranks.score], (0, missing)) for x in (left, right))
        both = {"query_core": left[:, : ranks.query].mT.contiguous(), "key_core": right.mT.contiguous()}
        mixing = {"core": torch.stack([*both.values()])} if ranks.tied else both
    else:
        left = left @ right.mT
        mixing = {"query_core": left[:, : ranks.query].mT.contiguous()}
    return mixing, None if scores.query_bias is None else left[:, ranks.query].contiguous()
