"""Attention written out, for hosts that look up no backend.

This file ships with saved checkpoints: it imports torch alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .masks import merge


def by_hand(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """softmax(query key^T * scaling + mask) value, with the weights.

    Args:
        module: the attention module; kept for the signature of transformers' backends.
        query: (B, H, T, W).
        key: (B, H, S, W).
        value: (B, H, S, V).
        mask: None, boolean (True attends) or additive, broadcastable to (B, H, T, S).
        scaling: factor of the scores.
        dropout: probability of dropping an attention weight.
        **kwargs: what backends may be given besides.

    Returns:
        (B, T, H, V), and the weights of (B, H, T, S).
    """
    del module, kwargs
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if mask is not None:
        scores = merge(scores, mask) if mask.dtype == torch.bool else scores + mask
    weights = nn.functional.dropout(scores.softmax(-1), dropout)
    return torch.matmul(weights, value).transpose(1, 2), weights
