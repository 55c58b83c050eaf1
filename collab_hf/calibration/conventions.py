"""How a model reads examples, as its tokenizer and its config say."""

from __future__ import annotations

import copy
from typing import Any

from ..errors import CalibrationError


def with_padding(tokenizer: Any) -> Any:
    """The tokenizer, or where it has no padding token (GPT-2) a copy that pads with its end-of-text token."""
    if tokenizer is None or tokenizer.pad_token is not None:
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token  # masked, so any token will do
    return tokenizer


def length_limit(max_length: int, tokenizer: Any, config: Any) -> int:
    """max_length, or less where the tokenizer or the position embeddings end earlier."""
    limits = [max_length, getattr(tokenizer, "model_max_length", max_length)]
    if config is not None:
        positions = getattr(config.get_text_config(), "max_position_embeddings", None)
        if positions is not None:
            limits.append(positions - 2)  # RoBERTa and its kin number positions from padding_idx + 1 = 2
    return max(1, min(limits))


def asks_questions(config: Any) -> bool:
    """Whether the model is for multiple choice, and reads several texts for each example."""
    names = getattr(config, "architectures", None) or [""]
    return str(names[0]).endswith("ForMultipleChoice")


def decoder_start(config: Any) -> int | None:
    """First token of the decoder's input, None for a model without decoder."""
    if not getattr(config, "is_encoder_decoder", False):
        return None
    start = getattr(config, "decoder_start_token_id", None)
    if start is None:
        raise CalibrationError(
            "an encoder-decoder model needs decoder_start_token_id in its configuration to be calibrated on "
            "plain text; set it, or pass batches of model inputs"
        )
    return int(start)
