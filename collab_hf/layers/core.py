"""Softmax attention from per-head queries and keys of any width, by the fastest way that serves.

Shapes: B batch, T queries, S keys, H num_heads, G key heads (1 where all heads read the same key, else H),
W score width, V width of one head's values.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..modeling.kernels import attend_, prefers_pieces, product_dtype, wide_attention
from ..modeling.masks import add_to_mask
from ..modeling.plain_attention import attention_weights
from .masks import causal_mask, combine


class HeadScores(NamedTuple):
    """What gives the scores of every head: (query key^T + bias) * scaling.

    Attributes:
        query: (B, H, T, W).
        key: (B, G, S, W).
        bias: content bias times the scaling, (B, H, 1, S), or None.
        scaling: factor of the scores.
    """

    query: Tensor
    key: Tensor
    bias: Tensor | None
    scaling: float


def attend(
    scores: HeadScores,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    causal: bool = False,
    dropout: float = 0.0,
    need_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Weigh the values by the softmax of the scores.

    Args:
        scores: of every head.
        value: (B, H, S, V).
        mask: None, boolean (True attends) or additive, broadcastable to (B, H, T, S).
        causal: each query attends the keys up to its own position only; needs as many keys as queries.
        dropout: probability of dropping an attention weight.
        need_weights: whether the weights are wanted, which costs the fast kernels.

    Returns:
        (B, T, H, V), zeros where a query may attend nothing; and the weights (B, H, T, S), after dropout as
        nn.MultiheadAttention gives them, or None.
    """
    query, key, bias, scaling = scores
    if query.shape[0] == 0:  # no kernel takes a batch of nothing, which a worker may get when data run out
        weights = torch.matmul(query, key.mT).softmax(-1)
        return torch.matmul(weights, value).transpose(1, 2), weights if need_weights else None
    length, width, head_width = query.shape[2], query.shape[3], value.shape[3]
    if causal and (mask is not None or need_weights):
        mask, causal = combine(mask, causal_mask(length, key.shape[2], query.device), query.dtype), False
    if need_weights:
        weights = attention_weights(query, key, bias, mask, scaling)
        if dropout:
            weights = F.dropout(weights, dropout)
        return torch.matmul(weights, value).transpose(1, 2), weights
    if prefers_pieces(query[:, 0], key.shape[2], width, head_width, dropout):
        return _in_pieces(scores, value, mask, causal), None
    if width > head_width:
        output = wide_attention(query, key, value, mask, scaling, bias=bias, dropout=dropout, causal=causal)
        return output, None
    if bias is not None:
        mask, causal = add_to_mask(bias, mask, length, causal), False
    # Kernels want queries, keys and values of one width, and as many heads of each.
    spare = (0, head_width - width)
    key = F.pad(key, spare).expand(-1, query.shape[1], -1, -1)
    output = F.scaled_dot_product_attention(
        F.pad(query, spare), key, value, mask, dropout, is_causal=causal, scale=scaling
    )
    return output.transpose(1, 2), None


def _in_pieces(scores: HeadScores, value: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    query, key, bias, scaling = scores
    batch, heads, length, _ = query.shape
    output = value.new_empty(batch, length, heads, value.shape[3])
    dtype = product_dtype(value.dtype, batch * key.shape[2])
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    attend_(output, query, key, value, scaling, mask=mask, bias=bias, causal=causal)
    return output
