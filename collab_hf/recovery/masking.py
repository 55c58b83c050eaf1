"""Masked tokens for masked language models, which are used where tokens are masked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import RecoveryError


def mask_tokens(
    batches: Iterable[Mapping[str, Any]], tokenizer: Any, share: float = 0.15, seed: int = 0
) -> Iterator[dict[str, Any]]:
    """Replace some tokens of every batch with the mask token; special tokens and padding stay.

    Args:
        batches: model inputs with input_ids.
        tokenizer: that made them.
        share: of the tokens that are masked, in (0, 1); 0.15 is BERT's.
        seed: of the choice.

    Yields:
        The batches, with other input_ids.

    Raises:
        RecoveryError: the tokenizer has no mask token.
    """
    if tokenizer.mask_token_id is None:
        raise RecoveryError("the tokenizer has no mask token, so its model is no masked language model")
    generator = torch.Generator().manual_seed(seed)
    special = torch.tensor(sorted(tokenizer.all_special_ids))
    for batch in batches:
        ids: Tensor = batch["input_ids"]
        chosen = (torch.rand(ids.shape, generator=generator) < share) & ~torch.isin(ids, special)
        yield {**batch, "input_ids": ids.masked_fill(chosen, tokenizer.mask_token_id)}
