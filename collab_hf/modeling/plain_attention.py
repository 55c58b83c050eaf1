"""Attention by its formula.

Shapes as in attention.py. This file ships with saved checkpoints: it imports torch alone.
"""

from __future__ import annotations

import torch
from torch import Tensor


def attention_weights(
    query: Tensor, key: Tensor, bias: Tensor | None, mask: Tensor | None, scaling: float
) -> Tensor:
    """softmax(query key^T * scaling + bias + mask) itself.

    Args:
        query: (B, H, T, W).
        key: (B, 1, S, W) shared by all heads, or (B, H, S, W).
        bias: content bias of (B, H, 1, S), already scaled, or None.
        mask: None, boolean (True attends) or additive, broadcastable to (B, H, T, S).
        scaling: factor of the scores.

    Returns:
        (B, H, T, S); zeros where a query may attend nothing.
    """
    batch, heads, length, width = query.shape
    # (B, H, T, W) -> (B, H*T, W) against one shared key (B, W, S): one product instead of H
    if key.shape[1] == 1:
        folded = (query * scaling).reshape(batch, heads * length, width)
        scores = torch.bmm(folded, key[:, 0].transpose(1, 2)).view(batch, heads, length, -1)
    else:
        scores = torch.matmul(query * scaling, key.transpose(2, 3))
    if bias is not None:
        scores = scores + bias
    blocked = None
    if mask is not None:
        # A row that may attend nothing has no softmax; it is computed as if unmasked, then set to zero.
        if mask.dtype == torch.bool:
            blocked = ~mask.any(-1, keepdim=True)
            scores = scores.masked_fill(~(mask | blocked), float("-inf"))
        else:
            blocked = (mask == float("-inf")).all(-1, keepdim=True)
            scores = scores + mask.masked_fill(blocked, 0.0)
    weights = scores.softmax(-1)
    return weights if blocked is None else weights.masked_fill(blocked, 0.0)


def plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    scaling: float,
    dropout: float,
) -> Tensor:
    """Attention itself.

    Args:
        query: (B, H, T, W).
        key: (B, 1, S, W) shared by all heads, or (B, H, S, W).
        value: (B, H, S, V).
        bias: content bias of (B, H, 1, S), already scaled, or None.
        mask: None, boolean (True attends) or additive, broadcastable to (B, H, T, S).
        scaling: factor of the scores.
        dropout: probability of dropping an attention weight.

    Returns:
        (B, H, T, V).
    """
    weights = attention_weights(query, key, bias, mask, scaling)
    if dropout:
        weights = torch.nn.functional.dropout(weights, dropout)
    return torch.matmul(weights, value)
