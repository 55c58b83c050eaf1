"""Attention masks: merged with a content bias, cut, brought to four dimensions.

Shapes as in attention.py. This file ships with saved checkpoints: it imports torch alone.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
    return merge(bias, mask)


def part_of(tensor: Tensor | None, *where: slice) -> Tensor | None:
    """The part of a tensor that belongs to some samples, heads and queries.

    Args:
        tensor: None, or of sizes along its first dimensions that are whole, or 1 for all alike.
        *where: slices of the first dimensions, in order.

    Returns:
        A view; None of None.
    """
    if tensor is None:
        return None
    return tensor[tuple(s if size > 1 else slice(None) for s, size in zip(where, tensor.shape, strict=False))]


def four_dimensional(mask: Tensor | None) -> Tensor | None:
    """One row of a mask where all queries have the same, and four dimensions.

    Hosts repeat a padding mask for every query, and then each head would turn all of it into numbers.

    Args:
        mask: None, boolean (True attends) or additive, broadcastable to (B, H, T, S).

    Returns:
        A view of (1 or B, 1 or H, 1 or T, S); None of None.
    """
    if mask is None:
        return None
    mask = mask[(None,) * (4 - mask.dim())]
    first = mask[:, :, :1]
    repeated = mask.stride(2) == 0 or (mask.dtype == torch.bool and bool((mask == first).all()))
    return first if repeated else mask


def merge(bias: Tensor | None, mask: Tensor) -> Tensor:
    """What a mask and a bias add to the scores.

    Args:
        bias: additive, or None.
        mask: boolean (True attends) or additive, broadcastable to the bias.

    Returns:
        An additive mask.
    """
    if mask.dtype == torch.bool:
        return torch.where(mask, 0.0 if bias is None else bias, float("-inf"))
    return mask if bias is None else bias + mask


def lower_triangle(rows: slice, device: torch.device) -> Tensor:
    """Some rows of a causal mask.

    Args:
        rows: the queries, by position.
        device: of the result.

    Returns:
        Boolean (queries, keys up to the last query); True attends.
    """
    queries = torch.arange(rows.start, rows.stop, device=device)
    return queries.unsqueeze(1) >= torch.arange(rows.stop, device=device)


def blocked_rows(mask: Tensor | None) -> Tensor | None:
    """Queries that may attend nothing.

    Args:
        mask: None, boolean (True attends) or additive, of four dimensions.

    Returns:
        Boolean (1 or B, 1 or H, 1 or T, 1); None where there is no such query.
    """
    if mask is None:
        return None
    blocked = (
        ~mask.any(-1, keepdim=True) if mask.dtype == torch.bool else mask.amax(-1, keepdim=True).isneginf()
    )
    return blocked if blocked.any() else None
