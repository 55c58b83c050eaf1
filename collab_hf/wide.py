"""Attention whose score product is wider than a head, and masks that carry a content bias.

No stock kernel serves queries and keys wider than the values well: heads are folded into the query length
instead, in pieces that stay in a CPU's cache. Shapes as in attention.py.
This file ships with saved checkpoints: it imports torch alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

# One piece of scores, in bytes: about what the last-level cache share of a core holds. Measured on the
# BERT-base shape; half and twice as much cost a few per cent.
_PIECE_BYTES = 8 << 20


def add_to_mask(bias: Tensor, mask: Tensor | None, query_length: int, causal: bool) -> Tensor:
    """Merge a content bias into an attention mask.

    Args:
        bias: (B, H, 1, S), already scaled.
        mask: None, boolean (True attends) or additive, broadcastable to (B, H, T, S).
        query_length: T.
        causal: whether a missing mask means a causal one.

    Returns:
        An additive mask, (B, H, 1, S) wherever the mask does not differ between queries.
    """
    if mask is None:
        if not causal or query_length == 1:
            return bias
        mask = torch.ones(query_length, bias.shape[-1], dtype=torch.bool, device=bias.device).tril()
    elif mask.dim() == 4 and mask.shape[2] > 1 and mask.stride(2) == 0:
        mask = mask[:, :, :1]  # a padding mask that was expanded over the queries
    if mask.dtype == torch.bool:
        return torch.where(mask, bias, float("-inf"))
    return bias + mask


def wide_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    *,
    bias: Tensor | None = None,
    dropout: float = 0.0,
    causal: bool = False,
) -> Tensor:
    """softmax(query key^T * scaling + bias + mask) value, for queries wider than the values.

    Args:
        query: (B, H, T, W).
        key: (B, 1, S, W) shared by all heads, or (B, H, S, W).
        value: (B, H, S, V).
        mask: None, boolean (True attends) or additive, broadcastable to (B, H, T, S).
        scaling: factor of the scores.
        bias: content bias of (B, H, 1, S), already scaled.
        dropout: probability of dropping an attention weight.
        causal: without a mask, each query attends the keys up to its own position only.

    Returns:
        (B, T, H, V); zeros where a query may attend nothing, as torch's own kernels give.
    """
    batch, _, length, _ = query.shape
    if mask is None and causal and length > 1:
        mask = torch.ones(length, key.shape[2], dtype=torch.bool, device=query.device).tril()
    rows = _piece_rows(query, key.shape[2])
    if rows is None:
        return _fold(query, key, value, bias, mask, scaling, dropout).transpose(1, 2)
    pieces = []
    for b in range(batch):
        sample = slice(b, b + 1)
        part = None if bias is None else bias[sample]
        for start in range(0, length, rows):
            chosen = slice(start, start + rows)
            allowed = _mask_part(mask, b, chosen)
            few = query[sample, :, chosen]
            pieces.append(_fold(few, key[sample], value[sample], part, allowed, scaling, dropout))
    return torch.cat(pieces, dim=2).view(query.shape[1], batch, length, -1).permute(1, 2, 0, 3)


def _piece_rows(query: Tensor, key_length: int) -> int | None:
    """Queries of one sample in a piece; None where all of them are one piece."""
    batch, heads, length, _ = query.shape
    # Data-dependent loops would be unrolled into a graph, and a GPU gains nothing from small pieces.
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if query.device.type != "cpu" or traced:
        return None
    rows = max(16, _PIECE_BYTES // (heads * key_length * query.element_size()))
    return None if rows >= batch * length else rows


def _mask_part(mask: Tensor | None, sample: int, queries: slice) -> Tensor | None:
    if mask is None:
        return None
    if mask.dim() == 4 and mask.shape[0] > 1:
        mask = mask[sample : sample + 1]
    return mask[..., queries, :] if mask.shape[-2] > 1 else mask


def _fold(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    scaling: float,
    dropout: float,
) -> Tensor:
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
    if blocked is not None:
        weights = weights.masked_fill(blocked, 0.0)
    if dropout:
        weights = torch.nn.functional.dropout(weights, dropout)
    return torch.matmul(weights, value)
