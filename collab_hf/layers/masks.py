"""Attention masks in one shape and one meaning.

Users give masks where True blocks, as in nn.MultiheadAttention; in the kernels True attends.

Shapes: B batch, T queries, S keys, H num_heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import LayerError
from ..modeling.masks import lower_triangle


def to_internal(mask: Tensor, name: str) -> Tensor:
    """Turn a mask's meaning from torch's to that of the kernels.

    Args:
        mask: boolean (True blocks) or additive.
        name: the argument's name, for the message.

    Returns:
        Boolean (True attends), or the additive mask itself.

    Raises:
        LayerError: another dtype.
    """
    if mask.dtype == torch.bool:
        return ~mask
    if not mask.is_floating_point():
        raise LayerError(f"{name} must be boolean or floating-point, got {mask.dtype}")
    return mask


def head_mask(mask: Tensor | None, num_heads: int, query: Tensor, key: Tensor) -> Tensor | None:
    """The attn_mask of nn.MultiheadAttention in four dimensions.

    Args:
        mask: (T, S) or (B * H, T, S), boolean (True blocks) or additive; or None.
        num_heads: H.
        query: (B, T, width).
        key: (B, S, width).

    Returns:
        (1 or B, 1 or H, T, S), boolean (True attends) or additive; None of None.

    Raises:
        LayerError: another shape or dtype.
    """
    if mask is None:
        return None
    batch, length, _ = query.shape
    whole = (batch * num_heads, length, key.shape[1])
    if mask.shape not in (whole[1:], whole):
        raise LayerError(f"attn_mask must have shape {whole[1:]} or {whole}, got {tuple(mask.shape)}")
    four = mask[None, None] if mask.dim() == 2 else mask.unflatten(0, (batch, num_heads))
    return to_internal(four, "attn_mask")


def padding_mask(key_padding_mask: Tensor | None, batch: int, keys: int) -> Tensor | None:
    """The mask of padded keys in four dimensions.

    Args:
        key_padding_mask: (B, S), boolean (True blocks) or additive; or None.
        batch: B.
        keys: S.

    Returns:
        (B, 1, 1, S), boolean (True attends) or additive; None of None.

    Raises:
        LayerError: another shape or dtype.
    """
    if key_padding_mask is None:
        return None
    if key_padding_mask.shape != (batch, keys):
        raise LayerError(
            f"key_padding_mask must have shape {(batch, keys)}, got {tuple(key_padding_mask.shape)}"
        )
    return to_internal(key_padding_mask, "key_padding_mask")[:, None, None]


def combine(first: Tensor | None, second: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Both masks in one.

    Args:
        first: boolean (True attends), additive, or None.
        second: the same, of a shape that broadcasts with it.
        dtype: of an additive result.

    Returns:
        Boolean where neither is additive; None where both are None.
    """
    if first is None or second is None:
        mask = second if first is None else first
        return mask if mask is None or mask.dtype == torch.bool else mask.to(dtype)
    if first.dtype == second.dtype == torch.bool:
        return first & second
    return _additive(first, dtype) + _additive(second, dtype)


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """Each query attends the keys up to its own position; the last query stands at the last key.

    Args:
        queries: T.
        keys: S, at least T: what was there before the queries is seen by all of them.
        device: of the mask.

    Returns:
        (1, 1, T, S), True attends.
    """
    return lower_triangle(slice(keys - queries, keys), device)[None, None]


def allow_sinks(mask: Tensor | None, sinks: int) -> Tensor | None:
    """Append keys that every query may attend.

    Args:
        mask: boolean (True attends), additive, or None.
        sinks: number of such keys.

    Returns:
        A mask of S + sinks keys; None of None.
    """
    if mask is None or not sinks:
        return mask
    return F.pad(mask, (0, sinks), value=mask.dtype == torch.bool)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, float("-inf"))
