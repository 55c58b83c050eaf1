"""Drop the rows of a token embedding that a corpus never uses, and rebuild the tokenizer without them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...errors import ConfigError, DataError
from ...host.rollback import undone_on_error
from .rows import TokenRows
from .settings import holders, mentioned, renumber_
from .tokenizer import Pieces, encodings, plain_backend


@dataclass(frozen=True)
class VocabularyReport:
    """What trimming did.

    Attributes:
        rows_before: rows of the token embedding.
        rows_after: those left.
        parameters_before: of the whole model.
        parameters_after: those left.
        texts: examples in the corpus.
    """

    rows_before: int
    rows_after: int
    parameters_before: int
    parameters_after: int
    texts: int

    @property
    def rows_dropped(self) -> int:
        """Rows that are gone."""
        return self.rows_before - self.rows_after

    def to_dict(self) -> dict[str, int]:
        """Plain values, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class TrimmedVocabulary:
    """What belongs to a model whose vocabulary was trimmed.

    Attributes:
        tokenizer: the new one, to be saved beside the model (`write_tokenizer`).
        kept: old ids of the rows that stay, ascending; the new ids are their places.
        report: what was done.
    """

    tokenizer: PreTrainedTokenizerBase
    kept: tuple[int, ...]
    report: VocabularyReport


def trim_vocabulary_(
    model: PreTrainedModel, tokenizer: Any, corpus: Iterable[str] | Iterable[Sequence[int] | Tensor]
) -> TrimmedVocabulary:
    """Drop the rows of a model's token embedding that a corpus never uses, in place.

    Every text of the corpus gives the same pieces as before, so the model's outputs stay as they are; other
    texts are read with the pieces that are left. Special and added tokens, bytes, single ASCII characters
    and tokens that configs name stay in any case. The model keeps its class: the result is an ordinary
    checkpoint that loads without collab_hf. If anything fails, the model is left as it was.

    Args:
        model: a transformers model with a token embedding, compressed or not.
        tokenizer: its fast tokenizer; left as it is.
        corpus: texts, or token ids of one text each. Of ids it isn't known what unknown words begin with, so
            that WordPiece may come to read one of them.

    Returns:
        The new tokenizer and what was done.

    Raises:
        ConfigError: a tokenizer that can't be trimmed.
        DataError: an empty corpus, or ids outside of the vocabulary.
        FamilyError: a model whose rows can't be dropped.
    """
    rows, pieces = TokenRows(model), Pieces(tokenizer)
    texts, used = _used(pieces, corpus)
    configs = holders(model)
    for config in configs:
        used |= mentioned(config, rows.size)
    used.update(range(rows.least_kept))
    if rows.embedding.padding_idx is not None:
        used.add(rows.embedding.padding_idx)
    kept = pieces.kept(used)
    if kept[0] < 0 or kept[-1] >= rows.size:
        raise ConfigError(
            f"the tokenizer or the corpus has token {kept[-1]}, the token embedding {rows.size} rows"
        )
    new_ids = {old: new for new, old in enumerate(kept)}
    made = pieces.trimmed(new_ids)
    _check_same(pieces, made, new_ids, texts)
    before = sum(p.numel() for p in model.parameters())
    with undone_on_error(model):
        rows.keep_(new_ids)
        for config in configs:
            renumber_(config, new_ids)
            if getattr(config, "vocab_size", None) == rows.size:
                config.vocab_size = len(kept)
    after = sum(p.numel() for p in model.parameters())
    report = VocabularyReport(rows.size, len(kept), before, after, len(texts))
    return TrimmedVocabulary(made, tuple(kept), report)


def check_tokenizer(tokenizer: Any) -> None:
    """Refuse a tokenizer that can't be trimmed, before any work.

    Args:
        tokenizer: as AutoTokenizer gives it.

    Raises:
        ConfigError: it has no tokenizer.json, or its model is unknown here.
    """
    Pieces(tokenizer)


def trim_like_(model: PreTrainedModel, tokenizer: Any, trimmed: Any) -> None:
    """Drop the rows of an original that a model made from it has no pieces for, in place.

    Both then read the same ids, so that their outputs can be compared.

    Args:
        model: the original.
        tokenizer: its own.
        trimmed: the tokenizer of the other, as `trim_vocabulary_` gave it.

    Raises:
        ConfigError: trimmed was not made of tokenizer.
    """
    ids = tokenizer.get_vocab()
    left = trimmed.get_vocab()
    foreign = [piece for piece in left if piece not in ids]
    if foreign:
        raise ConfigError(
            f"the original's tokenizer has no piece {foreign[0]!r}, so the model is not made of it"
        )
    found = trim_vocabulary_(model, tokenizer, [[ids[piece] for piece in left]])
    wrong = [piece for piece, new in left.items() if found.tokenizer.get_vocab().get(piece) != new]
    if wrong:
        raise ConfigError(f"the original's tokenizer gives {wrong[0]!r} another place than the model's does")


def _used(pieces: Pieces, corpus: Iterable[Any]) -> tuple[list[Any], set[int]]:
    """The corpus as a list, and the ids in it."""
    examples = list(corpus)
    if not examples:
        raise DataError("trimming a vocabulary needs at least one text, got none")
    if all(isinstance(example, str) for example in examples):
        return examples, pieces.of_texts(examples)
    if any(isinstance(example, str) for example in examples):
        raise DataError("a corpus is made of texts or of token ids, got both")
    found: set[int] = set()
    for example in examples:
        found.update(example.flatten().tolist() if isinstance(example, Tensor) else example)
    return examples, found


def _check_same(
    pieces: Pieces, made: PreTrainedTokenizerBase, new_ids: dict[int, int], texts: Sequence[Any]
) -> None:
    """The promise, kept or refused."""
    if not isinstance(texts[0], str):
        return
    old, new = encodings(pieces.backend, texts), encodings(plain_backend(made), texts)
    for text, before, after in zip(texts, old, new, strict=True):
        if [new_ids.get(number) for number in before.ids] != after.ids:
            raise ConfigError(
                f"{type(made).__name__} reads a text of the corpus otherwise without the pieces that it does "
                f"not use, so that its vocabulary can't be trimmed: {text[:80]!r}"
            )
