"""How well a language model predicts text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from ..errors import DataError
from ..host.inputs import move
from ..progress import Steps
from .texts import batches_of_texts


@dataclass(frozen=True)
class Perplexity:
    """How well a language model predicts each token from those before it.

    Attributes:
        perplexity: exp of the mean cross-entropy (nats a token), at least 1; less is better.
        accuracy: share of tokens that are the likeliest one, in [0, 1].
        tokens: number of tokens predicted, the first of each text not among them.
        examples: number of texts.
    """

    perplexity: float
    accuracy: float
    tokens: int
    examples: int


def measure_perplexity(
    model: PreTrainedModel,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    batch_size: int = 32,
    max_length: int = 128,
    progress: bool = False,
) -> Perplexity:
    """Let a causal language model predict every token of some texts but the first of each.

    Args:
        model: a decoder with a language modelling head, in eval mode.
        tokenizer: as AutoTokenizer gives it.
        texts: what to predict; each starts anew.
        batch_size: texts per batch.
        max_length: tokens that a text is cut to.
        progress: whether to draw a progress bar on stderr.

    Returns:
        Perplexity and accuracy over all predicted tokens.

    Raises:
        DataError: not a causal language model, no text of two tokens, or logits that are not finite.
        CalibrationError: a tokenizer that does not take text.
    """
    if not model.can_generate() or getattr(model.config, "is_encoder_decoder", False):
        raise DataError(f"perplexity needs a causal language model, got a {type(model).__name__}")
    batches, _ = batches_of_texts(texts, tokenizer, model, batch_size, max_length)
    loss, right, tokens = 0.0, 0, 0
    for batch in Steps(batches, title="Evaluating", unit="batch", progress=progress):
        inputs = move(batch, model.device, model.dtype)
        with torch.inference_mode():
            output = model(**inputs)
        logits = (output[0] if isinstance(output, tuple) else output.logits)[:, :-1].float()
        ids = inputs["input_ids"]
        mask = inputs.get("attention_mask", torch.ones_like(ids)).bool()
        counted = mask[:, 1:] & mask[:, :-1]
        found, wanted = logits[counted], ids[:, 1:][counted]
        loss += F.cross_entropy(found, wanted, reduction="sum").double().item()
        right += int((found.argmax(-1) == wanted).sum())
        tokens += len(wanted)
    if not tokens:
        raise DataError("perplexity needs a text of at least two tokens, got none")
    if not math.isfinite(loss):
        raise DataError(f"the predictions of {type(model).__name__} are not finite")
    return Perplexity(math.exp(loss / tokens), right / tokens, tokens, len(texts))
