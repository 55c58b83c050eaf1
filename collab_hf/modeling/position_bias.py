"""What some hosts add to the scores of their attention besides the mask.

Shapes as in attention.py. This file ships with saved checkpoints: it imports torch alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Given = dict[str, Any]


def _given(module: Any, given: Given, length: int, keys: int, past: Any) -> Tensor | None:
    """MPNet: the model computes it once for all layers."""
    bias: Tensor | None = given.pop("position_bias", None)
    return bias


def _buckets(module: Any, given: Given, length: int, keys: int, past: Any) -> Tensor:
    """T5: the first layer computes it, and hands it on to the others."""
    bias: Tensor | None = given.pop("position_bias", None)
    if bias is None and module.has_relative_attention_bias:
        device = module.relative_attention_bias.weight.device
        bias = module.compute_bias(length, keys, device=device, past_seen_tokens=past)
    if bias is None:
        bias = module.o.weight.new_zeros(1, module.n_heads, length, keys)
    return bias


def _window(module: Any, given: Given, length: int, keys: int, past: Any) -> Tensor | None:
    """Data2Vec for images: by the distance of two patches, of the layer's own and of one for all layers."""
    shared: Tensor | None = given.pop("relative_position_bias", None)
    interpolate, resolution = given.pop("interpolate_pos_encoding", False), given.pop("resolution", None)
    if not module.has_relative_position_bias:
        return shared
    size = module.config.patch_size
    window = (resolution[0] // size, resolution[1] // size)
    own: Tensor = module.relative_position_bias(window, interpolate, dim_size=length)
    return own if shared is None else own + shared


def _spatial(module: Any, given: Given, length: int, keys: int, past: Any) -> Tensor | None:
    """LayoutLMv3: by the distance in the text and on the page, scaled as the scores are."""
    near, place = given.pop("rel_pos", None), given.pop("rel_2d_pos", None)
    if not module.has_relative_attention_bias:
        return None
    bias = near + place if module.has_spatial_attention_bias else near
    return bias / module.attention_head_size**0.5  # type: ignore[no-any-return]


def _local(module: Any, given: Given, length: int, keys: int, past: Any) -> Tensor:
    """GPT-Neo: a buffer of what each position may attend, a window in every other layer."""
    allowed = module.bias[:, :, keys - length : keys, :keys]
    dtype = module.q_proj.weight.dtype
    return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)


# A function gets the module, the arguments that forward was given and nothing else has read (it takes out
# what it reads), the number of queries and of keys, and how many tokens the cache held before.
BIASES: dict[str, Callable[[Any, Given, int, int, Any], Tensor | None]] = {
    "buckets": _buckets,
    "given": _given,
    "local": _local,
    "spatial": _spatial,
    "window": _window,
}


def merged(bias: Tensor, mask: Tensor | None, length: int, causal: bool) -> Tensor:
    """One additive mask, as transformers makes it for its sdpa attention.

    Args:
        bias: (1 or B, 1 or H, T, S).
        mask: None, boolean (True attends) or additive, broadcastable to (B, H, T, S).
        length: T.
        causal: whether a missing mask means a causal one.

    Returns:
        (1 or B, 1 or H, T, S).
    """
    if mask is None and causal and length > 1:
        mask = torch.ones(bias.shape[-2:], dtype=torch.bool, device=bias.device).tril()
    if mask is None:
        return bias
    if mask.dtype == torch.bool:
        return torch.where(mask, bias, torch.finfo(bias.dtype).min)
    return bias + mask
