"""Low-rank token embeddings: a narrow table and one projection back to the hidden size.

The rows e_v of the table count as often as their tokens occur: of all tables of rank r, the one returned has
the least E ||e_v - e^_v||^2 over tokens v. It comes from the eigenvectors of the Gram matrix
G = sum_v p_v e_v^T e_v (hidden_size x hidden_size), never from a decomposition of the whole table. All is
float64; the caller casts back.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import DecompositionError, RankError
from .linalg import top_eigenvectors

# Rows that are converted to float64 at a time: bounds the temporary copy (4096 x 1024 float64 = 32 MiB).
_CHUNK_ROWS = 4096


def low_rank_embedding(weight: Tensor, frequencies: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best table of a rank, rows weighted by how often their token occurs.

    Args:
        weight: token embeddings E of shape (vocab_size, hidden_size), any floating dtype.
        frequencies: how often each token occurred, counts of shape (vocab_size,); `token_weights` says what
            becomes of tokens that never did.
        rank: width of the table, 1 to hidden_size.

    Returns:
        small (vocab_size, rank) and up (hidden_size, rank), both float64; E is about small @ up^T. Columns of
        up are orthonormal, most important first, so a lower rank is a prefix of both.

    Raises:
        DecompositionError: shapes that don't fit together, values that are not finite, or negative or
            fractional counts.
        RankError: rank outside of 1 to hidden_size.

    Source:
        Eckart & Young 1936, in the metric of token frequencies (as Chen et al. 2018, GroupReduce,
        arXiv:1806.06950).
    """
    gram = _gram(weight, frequencies)
    if not 1 <= rank <= len(gram):
        raise RankError(f"rank must be between 1 and hidden_size = {len(gram)}, got {rank}")
    up = top_eigenvectors(gram, rank)
    small = torch.cat([rows.to(up) @ up for rows in weight.detach().split(_CHUNK_ROWS)])
    return small, up


def low_rank_errors(weight: Tensor, frequencies: Tensor) -> Tensor:
    """What every rank loses: E ||e_v - e^_v||^2 / E ||e_v||^2 over tokens.

    Args:
        weight: token embeddings of shape (vocab_size, hidden_size), any floating dtype.
        frequencies: as for `low_rank_embedding`.

    Returns:
        Errors of the ranks 0 to hidden_size, (hidden_size + 1,), float64, from 1 down to 0; zeros where the
        table is zero.

    Raises:
        DecompositionError: as `low_rank_embedding`.
    """
    gram = _gram(weight, frequencies)
    values = torch.linalg.eigvalsh(gram).clamp_min(0)  # ascending: the first are what a low rank loses
    lost = torch.cat([values.new_zeros(1), values.cumsum(0)]).flip(0)
    return lost / lost[0] if lost[0] > 0 else torch.zeros_like(lost)


def token_weights(frequencies: Tensor) -> Tensor:
    """Probabilities of tokens from counts, some of them zero.

    A token that did not occur will occur some day: by Good & Turing, a token drawn next is a new one with
    probability N1 / N, for N tokens of which N1 occurred once. So N1 occurrences (at least one) are spread
    evenly over the whole vocabulary, on top of the counts. Adding one to every count would instead give most
    of the mass to tokens that never occurred, wherever the text is shorter than the vocabulary.

    Args:
        frequencies: counts of shape (vocab_size,), whole numbers >= 0 of any dtype.

    Returns:
        Positive probabilities that sum to 1, (vocab_size,), float64; all equal where nothing occurred.

    Raises:
        DecompositionError: not a vector, or values that are negative, fractional or not finite.

    Source:
        Good 1953, "The population frequencies of species and the estimation of population parameters".
    """
    counts = frequencies.detach().to(torch.float64)
    whole = torch.isfinite(counts) & (counts >= 0) & (counts == counts.round())
    if counts.dim() != 1 or not bool(whole.all()):
        raise DecompositionError(
            f"frequencies must be a vector of counts (whole numbers of at least 0), "
            f"got {frequencies.dtype} of shape {tuple(frequencies.shape)}"
        )
    seen_once = max(float((counts == 1).sum()), 1.0)
    counts = counts + seen_once / len(counts)
    return counts / counts.sum()


def _gram(weight: Tensor, frequencies: Tensor) -> Tensor:
    """G = sum_v p_v e_v^T e_v of shape (hidden_size, hidden_size), float64."""
    if weight.dim() != 2 or weight.numel() == 0 or frequencies.shape != weight.shape[:1]:
        raise DecompositionError(
            f"embeddings and frequencies must have shapes (vocab_size, hidden_size) and (vocab_size,), "
            f"got {tuple(weight.shape)} and {tuple(frequencies.shape)}"
        )
    scale = token_weights(frequencies).sqrt().to(weight.device)
    gram = torch.zeros(weight.shape[1], weight.shape[1]).to(scale)
    for rows, factors in zip(weight.detach().split(_CHUNK_ROWS), scale.split(_CHUNK_ROWS), strict=True):
        scaled = rows.to(scale) * factors.unsqueeze(1)
        gram += scaled.T @ scaled
    if not bool(torch.isfinite(gram).all()):  # an inf or nan in a row reaches the Gram matrix
        raise DecompositionError("embeddings must be finite, got inf or nan; check the checkpoint's dtype")
    return (gram + gram.T) / 2
