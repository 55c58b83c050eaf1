"""How often each token occurs in calibration data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...errors import CalibrationError

# Ids that are looked up in the token embedding, with the mask that says which of them are padding.
_INPUTS = {"input_ids": "attention_mask", "decoder_input_ids": "decoder_attention_mask"}


def token_counts(batches: Iterable[Mapping[str, Any]], vocab_size: int, padding: int | None = None) -> Tensor:
    """Count tokens, padding left out.

    Args:
        batches: model inputs by name, with `input_ids`, as for `collect_statistics`.
        vocab_size: rows of the token embedding.
        padding: id of the padding token, left out where a batch has no attention mask.

    Returns:
        Counts, (vocab_size,), int64, on the CPU.

    Raises:
        CalibrationError: no batch has token ids, or one has ids outside of the vocabulary.
    """
    counts = torch.zeros(vocab_size, dtype=torch.int64)
    for number, batch in enumerate(batches, start=1):
        for name, mask_name in _INPUTS.items():
            if (ids := batch.get(name)) is None:
                continue
            seen = _unpadded(torch.as_tensor(ids), batch.get(mask_name), padding).cpu()
            if seen.numel() and not 0 <= int(seen.min()) <= int(seen.max()) < vocab_size:
                raise CalibrationError(
                    f"token ids must be between 0 and {vocab_size - 1}, "
                    f"got {int(seen.min())} to {int(seen.max())} in calibration batch {number}"
                )
            counts += torch.bincount(seen, minlength=vocab_size)
    if not counts.any():
        raise CalibrationError("token frequencies need batches with input_ids, got none")
    return counts


def _unpadded(ids: Tensor, mask: Any, padding: int | None) -> Tensor:
    mask = None if mask is None else torch.as_tensor(mask)
    if mask is not None and mask.shape == ids.shape:
        return ids[mask.to(ids.device) != 0]
    return ids.flatten() if padding is None else ids[ids != padding]
