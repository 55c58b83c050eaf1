"""Error of every form of one layer from one decomposition, without solving for any of them.

The bases of a higher-order SVD are nested: the error at any pair of ranks follows from sums over the leading
rows of the same core. The errors are those of truncation, an upper bound (by a few per cent) on what the
iterations of `tensors` reach.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ...modeling.plan import LayerPlan
from ...modeling.shapes import AttentionShape, ContentBias
from ...tensors import ScoreTensor
from ...tensors.moments import LayerStatistics
from ...tensors.svd import allot_ranks, slice_svd
from ...tensors.whitening import Metric

# Kernels work in blocks of 8 numbers.
RANK_STEP = 8

# Neighbouring ranks of the grid differ by this factor at least: finer steps change the error by less than the
# planner's own uncertainty, and every rank is paid for twice (query and key).
_RANK_RATIO = 1.1

# Score widths of one layer: eighths of head_dim. Heads with widths of their own were tried too; tied tucker
# was no better with them, and slower.
_WIDTHS = 8

# Query and key ranks further apart than this never had the least error at their size on the models measured.
_MOST_SKEW = 4


def seen_scores(scores: ScoreTensor, statistics: LayerStatistics | None, damping: float) -> ScoreTensor:
    """The score tensor as the softmax sees it: centred, in coordinates where the inputs are white.

    Args:
        scores: per-head factors.
        statistics: moments of the layer's inputs, or None for the weights as they are.
        damping: added to the covariances' diagonals, relative to their mean.

    Returns:
        The tensor whose norm is the root of the expected squared score.

    Raises:
        DecompositionError: a covariance that is not positive semi-definite.
    """
    if statistics is None:
        return scores
    query = Metric.from_moments(statistics.query, damping, scores.query)
    key = (
        query
        if statistics.key is statistics.query
        else Metric.from_moments(statistics.key, damping, scores.key)
    )
    return scores.absorb_mean(statistics.query.mean).whiten(query, key)


def rank_grid(most: int) -> list[int]:
    """Multiples of 8 that grow by a tenth at least, up to `most`; small layers get every rank.

    Args:
        most: largest rank that the layer allows.

    Returns:
        Ranks in rising order.
    """
    if most < 4 * RANK_STEP:
        return list(range(1, most + 1))
    ranks = [RANK_STEP]
    for rank in range(2 * RANK_STEP, most + 1, RANK_STEP):
        if rank >= _RANK_RATIO * ranks[-1]:
            ranks.append(rank)
    return ranks


def _widths(shape: AttentionShape) -> list[int]:
    step = max(1, shape.head_dim // _WIDTHS)
    return list(range(step, shape.head_dim + 1, step))


def svd_spectrum(scores: ScoreTensor, bias: ContentBias) -> Iterator[tuple[LayerPlan, float]]:
    """Per-head truncation: the least errors of heads that share nothing.

    Args:
        scores: the layer's scores as the softmax sees them (`seen_scores`).
        bias: what becomes of the content bias.

    Yields:
        Plans on the grid of ranks, and their squared errors.
    """
    values = slice_svd(scores)[1]
    total = float(values.square().sum())
    order = values.flatten().square().sort(descending=True)[0].cumsum(0)
    for rank in rank_grid(values.numel()):
        width = int(allot_ranks(values, rank, values.shape[1]).max())
        yield LayerPlan("svd", rank, rank, width, content_bias=bias), total - float(order[rank - 1])


def tucker_spectrum(scores: ScoreTensor, bias: ContentBias) -> Iterator[tuple[LayerPlan, float]]:
    """Shared query and key bases; the key read whole, or narrowed per head where it is wider than a score.

    Args:
        scores: the layer's scores as the softmax sees them (`seen_scores`).
        bias: what becomes of the content bias.

    Yields:
        Plans on the grid of ranks, and their squared errors.
    """
    shape = scores.shape
    ranks = rank_grid(min(shape.query_size, shape.key_size, shape.full_rank))
    query_basis, key_basis = (basis[:, : ranks[-1]] for basis in scores.directions)
    query, key, content = nested_cores(scores, query_basis, key_basis)
    total = float(scores.squared_norm + content.square().sum())
    # (H, R_q, R_k): what each pair of basis vectors carries, for keys that are read whole.
    widths = _widths(shape)
    core = (query @ key[:, : widths[-1]].mT).square().sum(0).cumsum(0).cumsum(1)
    carried = content[:, : widths[-1]].square().sum(0).cumsum(0)
    for width in widths:
        for rank in ranks:
            plan = LayerPlan("tucker", rank, width, width, content_bias=bias)
            yield plan, total - float(core[rank - 1, width - 1] + carried[width - 1])
    grams = _query_grams(scores, query, ranks), _leading_grams(key, ranks)
    for position, query_rank in enumerate(ranks):
        fitting = [
            i
            for i, r in enumerate(ranks)
            if r > widths[0] and max(r, query_rank) <= _MOST_SKEW * min(r, query_rank)
        ]
        squares = _slice_squares(grams[0][position], grams[1][fitting])
        for place, index in enumerate(fitting):
            base = LayerPlan("tucker", query_rank, ranks[index], 1, content_bias=bias)
            for plan, kept in _narrowed_forms(base, squares[place], shape):
                yield plan, total - kept


def tied_spectrum(scores: ScoreTensor, bias: ContentBias) -> Iterator[tuple[LayerPlan, float]]:
    """One basis for queries and keys; the key read whole, or narrowed per head.

    Args:
        scores: the layer's scores as the softmax sees them (`seen_scores`).
        bias: what becomes of the content bias.

    Yields:
        Plans on the grid of ranks, and their squared errors.
    """
    shape = scores.shape
    ranks = rank_grid(min(shape.query_size, shape.full_rank))
    basis = scores.joint_directions[:, : ranks[-1]]
    query, key, content = nested_cores(scores, basis, basis)
    total = float(scores.squared_norm + content.square().sum())
    grams = _query_grams(scores, query, ranks), _leading_grams(key, ranks)
    for position, rank in enumerate(ranks):
        squares = _slice_squares(grams[0][position], grams[1][position : position + 1])[0]
        base = LayerPlan("tucker", rank, rank, 1, tied=True, content_bias=bias)
        if rank <= shape.head_dim:
            yield replace(base, score_width=rank), total - float(squares.sum())
        for plan, kept in _narrowed_forms(base, squares, shape):
            yield plan, total - kept


def _narrowed_forms(
    base: LayerPlan, squares: Tensor, shape: AttentionShape
) -> Iterator[tuple[LayerPlan, float]]:
    """Heads that narrow the shared key.

    Args:
        base: the ranks of the shared projections.
        squares: squared singular values of the core slices, (H, d), largest first.
        shape: sizes of the dense layer.

    Yields:
        Plans, and what they keep of the squares.
    """
    kept = squares.sum(0).cumsum(0).tolist()
    for width in _widths(shape):
        if width < min(base.query_rank + 1, base.key_rank):
            yield replace(base, score_width=width), kept[width - 1]


def nested_cores(
    scores: ScoreTensor, query_basis: Tensor, key_basis: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Factors in bases whose leading directions carry most.

    Args:
        scores: the layer's scores as the softmax sees them.
        query_basis: orthonormal columns, (D, n).
        key_basis: orthonormal columns, (E, n).

    Returns:
        X = U_q^T W_Q^h and Y = U_k^T W_K^h, both (H, n, d), whose product is the core; and the content bias
        in the key's basis, (H, n).
    """
    return query_basis.T @ scores.query, key_basis.T @ scores.key, scores.content_bias() @ key_basis


def _query_grams(scores: ScoreTensor, factors: Tensor, ranks: list[int]) -> Tensor:
    """The same as `_leading_grams`, with the content bias as one more row."""
    grams = _leading_grams(factors, ranks)
    if scores.query_bias is None:
        return grams
    return grams + torch.einsum("hd,he->hde", scores.query_bias, scores.query_bias)


def _leading_grams(factors: Tensor, ranks: list[int]) -> Tensor:
    """X_r^T X_r of the leading r rows for every r: (len(ranks), H, d, d)."""
    total = factors.new_zeros(len(factors), factors.shape[2], factors.shape[2])
    grams, start = [], 0
    for rank in ranks:
        block = factors[:, start:rank]
        total = total + block.mT @ block
        grams.append(total)
        start = rank
    return torch.stack(grams)


def _slice_squares(query_gram: Tensor, key_grams: Tensor) -> Tensor:
    """Squared singular values of every head's slice X_h Y_h^T, largest first.

    They are the eigenvalues of S^T (Y^T Y) S with S S^T = X^T X: d x d matrices, whatever the ranks are.

    Args:
        query_gram: X^T X, (H, d, d).
        key_grams: Y^T Y for several key ranks, (K, H, d, d).

    Returns:
        (K, H, d).
    """
    values, vectors = torch.linalg.eigh(query_gram)
    root = vectors * values.clamp_min(0).sqrt().unsqueeze(-2)
    squares: Tensor = torch.linalg.eigvalsh(root.mT @ key_grams @ root).clamp_min(0)
    return squares.flip(-1)
