"""Set examples aside that nothing is fitted to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# Held-out examples: with more, the curves of the measured models no longer changed in their first digit.
_MOST_HELD_OUT = 64
_HELD_OUT_SHARE = 4

Batch = Mapping[str, Any]


def split_batches(batches: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    """Set examples aside that the statistics don't see: every fourth, 64 at most, spread over all batches.

    Args:
        batches: model inputs; tensors of one batch have the examples along their first dimension.

    Returns:
        Batches for the statistics, and batches held out. With fewer than 4 examples in all, or inputs that
        can't be taken apart, both are all batches.
    """
    sizes = [_num_examples(batch) for batch in batches]
    if None in sizes or sum(filter(None, sizes)) < _HELD_OUT_SHARE:
        return list(batches), list(batches)
    total = sum(filter(None, sizes))
    stride = max(_HELD_OUT_SHARE, -(-total // _MOST_HELD_OUT))
    kept, held, position = [], [], 0
    for batch, size in zip(batches, sizes, strict=True):
        aside = (torch.arange(position, position + (size or 0)) % stride) == stride // 2
        position += size or 0
        if aside.any():
            held.append(_rows(batch, aside))
        if not aside.all():
            kept.append(_rows(batch, ~aside))
    return kept, held


def _num_examples(batch: Batch) -> int | None:
    sizes = {len(v) if v.dim() else 0 for v in batch.values() if isinstance(v, Tensor)}
    return sizes.pop() if len(sizes) == 1 else None


def _rows(batch: Batch, chosen: Tensor) -> Batch:
    return {k: v[chosen.to(v.device)] if isinstance(v, Tensor) else v for k, v in batch.items()}
