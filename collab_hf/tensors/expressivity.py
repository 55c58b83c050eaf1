"""What a head of a given size can attend: the rank of its logits against that of what they should be.

Matrices as in the paper: columns are tokens, and column j of P is what query j attends. The scores of one
query may all be shifted alike, which softmax ignores: so what counts is the rank of centred logits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import DecompositionError, RankError


def representing_weights(inputs: Tensor, attention: Tensor, head_size: int) -> tuple[Tensor, Tensor]:
    """Query and key weights of one head that attends as a given matrix says (theorem 1).

    With head_size >= `attention_rank(attention)`, which is n - 1 at most, `head_attention` of the result
    is the matrix itself. Below, it is the nearest in the centred logarithm, as far off as
    `least_log_error` says, and no weights are nearer.

    Args:
        inputs: X, one token a column, (hidden_size, n), of full column rank.
        attention: P, (n, n), positive, whose columns add up to one.
        head_size: rows of both weights, >= 1; the theorem takes n.

    Returns:
        W_q and W_k, each (head_size, hidden_size), in float64.

    Raises:
        DecompositionError: shapes that do not fit, inputs of lower rank, or a matrix that is not positive
            and column-stochastic.
        RankError: head_size < 1.

    Source:
        Bhojanapalli et al. 2020, arXiv:2002.07028, theorem 1. There the logarithm itself is factored, which
        takes n; what softmax ignores is taken off here first, which takes n - 1.
    """
    if head_size < 1:
        raise RankError(f"head_size must be at least 1, got {head_size}")
    logits = centred_log(attention)
    count = len(logits)
    inputs = inputs.double()
    if inputs.dim() != 2 or inputs.shape[1] != count:
        raise DecompositionError(
            f"inputs must have shape (hidden_size, {count}), one token a column, got {tuple(inputs.shape)}"
        )
    if int(torch.linalg.matrix_rank(inputs)) < count:
        raise DecompositionError(f"inputs must have full column rank {count}, got less")
    u, s, vh = torch.linalg.svd(logits)
    kept = min(head_size, count)
    root = (s[:kept] * head_size**0.5).sqrt()
    # (W_k X)^T (W_q X) = sqrt(head_size) * logits, with X^+ X = I
    inverse = torch.linalg.pinv(inputs)
    zeros = inputs.new_zeros(head_size - kept, len(inputs))
    key = torch.cat([(u[:, :kept] * root).T @ inverse, zeros])
    query = torch.cat([root.unsqueeze(1) * vh[:kept] @ inverse, zeros])
    return query, key


def head_attention(inputs: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """What one head attends: the softmax of (W_k X)^T (W_q X) / sqrt(head_size) over each column.

    Args:
        inputs: X, (hidden_size, n).
        query: W_q, (head_size, hidden_size).
        key: W_k, the same.

    Returns:
        (n, n), whose columns add up to one.
    """
    inputs = inputs.to(query)
    logits = (key @ inputs).T @ (query @ inputs) / math.sqrt(len(query))
    return logits.softmax(0)


def least_log_error(attention: Tensor, head_size: int) -> float:
    """How far every head of a size stays from an attention matrix.

    Args:
        attention: P, (n, n), positive, whose columns add up to one.
        head_size: size of the head, >= 0.

    Returns:
        The least ||J log P - J log P^||_F that any P^ of such a head has, where J takes the mean off each
        column: the root of the squared singular values of J log P beyond head_size (Eckart & Young). It is
        reached where the inputs have full column rank.
    """
    return float(torch.linalg.svdvals(centred_log(attention))[head_size:].norm())


def attention_rank(attention: Tensor, tolerance: float = 1e-10) -> int:
    """The least head size that represents an attention matrix.

    Args:
        attention: P, (n, n), positive, whose columns add up to one.
        tolerance: singular values below this share of the largest count as zero.

    Returns:
        The rank of J log P, 0 to n - 1.
    """
    return int(logit_rank(centred_log(attention).T, tolerance))


def logit_rank(logits: Tensor, tolerance: float = 1e-6) -> Tensor:
    """The numerical rank of attention logits, apart from what softmax ignores.

    A head of size d gives logits of rank d at most, however long the input: that is the bottleneck. The
    logarithm of attention weights serves as well, where no mask made any of them zero.

    Args:
        logits: (..., queries, keys): scores of any scale, softmax goes over the last dimension.
        tolerance: singular values below this share of the largest count as zero; 1e-6 is above what float32
            rounds.

    Returns:
        Integers of shape (...).

    Raises:
        DecompositionError: values that are not finite.
    """
    logits = logits.detach().double()
    if not bool(torch.isfinite(logits).all()):
        raise DecompositionError("logits must be finite; leave masked keys out")
    values = torch.linalg.svdvals(logits - logits.mean(-1, keepdim=True))
    floor = torch.finfo(logits.dtype).eps * logits.abs().amax((-2, -1)).unsqueeze(-1)
    counts: Tensor = ((values > tolerance * values[..., :1]) & (values > floor)).sum(-1)
    return counts


def centred_log(attention: Tensor) -> Tensor:
    """J log P: logits of an attention matrix with the mean of each column taken off.

    Args:
        attention: P, (n, n), positive, whose columns add up to one.

    Returns:
        (n, n) in float64.

    Raises:
        DecompositionError: another shape, a value that is not positive, or columns of another sum.
    """
    attention = attention.double()
    if attention.dim() != 2 or attention.shape[0] != attention.shape[1]:
        raise DecompositionError(f"attention must be a square matrix, got shape {tuple(attention.shape)}")
    sums = attention.sum(0)
    if not bool((attention > 0).all()) or not torch.allclose(sums, torch.ones_like(sums), atol=1e-6):
        raise DecompositionError("attention must be positive, and its columns must add up to 1")
    logits = attention.log()
    return logits - logits.mean(0, keepdim=True)
