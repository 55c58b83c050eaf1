"""Whether the text that ships with the package is what a tokenizer was made for."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

# Of the default text's characters, the tokenizer of minilm keeps all, one for reactions (SMILES) 0.29, one
# for proteins 0.02.
_KEPT_BY_TEXT_TOKENIZERS = 0.5
# Enough to tell: the first 64 of the default texts give the same share within 0.02.
_TEXTS_LOOKED_AT = 64


def share_kept(tokenizer: Any, texts: Sequence[str]) -> float:
    """Share of the letters of texts that their tokens spell.

    Neither unknown tokens nor characters per token would tell: a SMILES tokenizer drops what it doesn't know.
    """
    looked_at = texts[:_TEXTS_LOOKED_AT]
    ids = tokenizer(looked_at, add_special_tokens=False, verbose=False)["input_ids"]
    kept = sum(_letters(tokenizer.decode(row, skip_special_tokens=True)) for row in ids)
    return kept / sum(map(_letters, looked_at))


def suits(tokenizer: Any, texts: Sequence[str]) -> bool:
    """Whether a tokenizer was made for such texts."""
    return share_kept(tokenizer, texts) >= _KEPT_BY_TEXT_TOKENIZERS


def warn_of_foreign_text(tokenizer: Any, texts: Sequence[str]) -> None:
    """Warn where the tokens do not spell the texts.

    Args:
        tokenizer: of the model.
        texts: some that ship with the package.
    """
    if not suits(tokenizer, texts):
        warnings.warn(
            "the default text does not suit this model: its tokenizer keeps "
            f"{share_kept(tokenizer, texts):.0%} of the characters; give examples of your "
            "own, with --calibration or --data on the command line",
            stacklevel=3,
        )


def _letters(text: str) -> int:
    return len("".join(text.split()))
