"""The baseline without sharing: a truncated singular value decomposition per head."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..modeling.errors import RankError
from .linalg import product_svd
from .score_tensor import ScoreTensor
from .solution import Solution, relative


class Components(NamedTuple):
    """Rank-one pieces a_r b_r^T, each owned by one head.

    Attributes:
        query: a_r as columns, (D, rank).
        key: b_r as columns, (E, rank); ||(a_r, bias_r)|| = ||b_r||.
        bias: the entry of the content bias row in each a_r, (rank,); zeros without a query bias.
        heads: owner of each piece, (rank,), ascending.
        dropped: sum of the squared singular values left out, a scalar.
    """

    query: Tensor
    key: Tensor
    bias: Tensor
    heads: Tensor
    dropped: Tensor


def slice_svd(scores: ScoreTensor) -> tuple[Tensor, Tensor, Tensor]:
    """Singular value decomposition of every slice T_h, with the content bias as one more query row.

    Args:
        scores: per-head factors.

    Returns:
        U (H, D, q), or (H, D + 1, q) with a query bias; values (H, q), largest first; V (H, E, q), where
        q = min(head_dim, D or D + 1, E).
    """
    return product_svd(augmented_query(scores), scores.key)


def augmented_query(scores: ScoreTensor) -> Tensor:
    """W_Q^h with b_Q^h as its last row, (H, D + 1, d): an input that is always 1 carries the content bias."""
    if scores.query_bias is None:
        return scores.query
    return torch.cat([scores.query, scores.query_bias.unsqueeze(1)], dim=1)


def allot_ranks(values: Tensor, rank: int, cap: int) -> Tensor:
    """Share a total rank out over heads so that the dropped singular values are the smallest possible.

    Args:
        values: singular values (H, q), largest first.
        rank: ranks of all heads together.
        cap: most that one head may get.

    Returns:
        Ranks by head, (H,), integers that sum up to rank.

    Raises:
        RankError: rank is more than H * min(cap, q).
    """
    allowed = values[:, :cap]
    if rank > allowed.numel():
        raise RankError(f"rank must be at most {allowed.numel()} with {cap} per head, got {rank}")
    # Stable, so that equal values go to the first heads and a head's own values stay in order.
    order = allowed.flatten().argsort(descending=True, stable=True)[:rank]
    return torch.bincount(order // allowed.shape[1], minlength=len(values))


def truncated_components(scores: ScoreTensor, rank: int, cap: int) -> Components:
    """The best one-head components, heads in order and each head's largest first.

    Args:
        scores: per-head factors.
        rank: number of components.
        cap: most components of one head.

    Returns:
        The components.

    Raises:
        RankError: rank is more than num_heads * cap.
    """
    u, values, v = slice_svd(scores)
    ranks = allot_ranks(values, rank, cap)
    kept = torch.arange(values.shape[1], device=values.device) < ranks.unsqueeze(1)
    scale = values[kept].sqrt()
    left, right = u.mT[kept].T * scale, v.mT[kept].T * scale
    size = scores.query.shape[1]
    bias = left[size] if scores.query_bias is not None else left.new_zeros(rank)
    heads = torch.arange(len(values), device=values.device).repeat_interleave(ranks)
    dropped = values[~kept].square().sum()
    return Components(left[:size].contiguous(), right.contiguous(), bias, heads, dropped)


def decompose_svd(scores: ScoreTensor, rank: int, score_width: int) -> Solution:
    """Truncate every head's score matrix to the rank that its singular values earn.

    This is the least error that factors owned by single heads can reach at the total rank (with no cap).

    Args:
        scores: per-head factors, whitened or not; a query bias is fitted along.
        rank: ranks of all heads together, 1 to num_heads * head_dim.
        score_width: most ranks that one head gets, 1 to head_dim.

    Returns:
        Factors with `mixing["index"]` of shape (num_heads, widest head); -1 pads the narrower heads.

    Raises:
        RankError: rank is more than num_heads * score_width.

    Source:
        Eckart & Young 1936; the per-head baseline of Cordonnier et al. 2020, arXiv:2006.16362.
    """
    parts = truncated_components(scores, rank, score_width)
    ranks = torch.bincount(parts.heads, minlength=len(scores.query))
    used = torch.arange(int(ranks.max()), device=ranks.device) < ranks.unsqueeze(1)
    index = torch.full_like(used, -1, dtype=torch.long)
    index[used] = torch.arange(rank, device=ranks.device)
    bias = None
    if scores.query_bias is not None:
        bias = parts.bias.new_zeros(index.shape)
        bias[used] = parts.bias
    error = relative(parts.dropped, scores.squared_norm)
    return Solution(parts.query, parts.key, {"index": index}, bias, [error])
