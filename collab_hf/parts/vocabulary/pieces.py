"""Which pieces of a tokenizer must stay so that a corpus is read as before.

Works on the `model` entry of a tokenizer.json. Why less pieces give the same answer, model by model:

- WordPiece takes the longest piece at every place; the pieces taken stay, and so do those of words that end
  as unknown, which could otherwise be read after all.
- BPE applies the first of the merges that fit. Every merge applied inside of a word builds a part of one of
  its final pieces; all of these stay, in order, so at each step the first one that fits is still the same.
- Unigram takes the best path; fewer pieces leave fewer paths, of unchanged scores. The penalty of unknown
  characters hangs on the lowest score of all, so that one piece of this score stays.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

from ...errors import ConfigError

Model = dict[str, Any]

KINDS = ("WordPiece", "BPE", "Unigram", "WordLevel")
# What sentencepiece writes for a space.
_SPACE = "\u2581"
_SINGLE = frozenset(string.printable + _SPACE)


def check_kind(model: Model) -> None:
    """Refuse a tokenizer whose model is none of those known here.

    Args:
        model: the entry of tokenizer.json.

    Raises:
        ConfigError: it is another, or one that draws its pieces by chance.
    """
    if model.get("type") not in KINDS:
        raise ConfigError(
            f"only vocabularies of {', '.join(KINDS)} tokenizers can be trimmed, got {model.get('type')}"
        )
    if model.get("dropout"):
        raise ConfigError(
            "a BPE tokenizer with dropout splits a text differently each time; set dropout to None"
        )


def vocabulary(model: Model) -> dict[str, int]:
    """Pieces and their ids.

    Args:
        model: the entry of tokenizer.json.

    Returns:
        Ids by piece.
    """
    if model["type"] == "Unigram":
        return {piece: number for number, (piece, _) in enumerate(model["vocab"])}
    return dict(model["vocab"])


def always_kept(model: Model, byte_level: bool) -> set[int]:
    """Pieces that stay whatever the corpus is: the unknown one, bytes, and single characters.

    Args:
        model: the entry of tokenizer.json.
        byte_level: whether pieces are made of characters that stand for bytes; then all 256 stay.

    Returns:
        Ids.
    """
    pieces = vocabulary(model)
    kept = {pieces[model["unk_token"]]} if model.get("unk_token") in pieces else set()
    if model["type"] == "Unigram":
        if model.get("unk_id") is not None:
            kept.add(model["unk_id"])
        scores = [score for _, score in model["vocab"]]
        kept.add(scores.index(min(scores)))
    prefix, suffix = model.get("continuing_subword_prefix"), model.get("end_of_word_suffix")
    for piece, number in pieces.items():
        bare = piece.removeprefix(prefix or "").removesuffix(suffix or "") or piece
        if len(bare) == 1 and (byte_level or bare in _SINGLE):
            kept.add(number)
        if model.get("byte_fallback") and piece.startswith("<0x") and piece.endswith(">"):
            kept.add(number)
    return kept


def with_parts(model: Model, used: Iterable[int]) -> set[int]:
    """The pieces that must stay for others to come about.

    Args:
        model: the entry of tokenizer.json.
        used: ids of the pieces that a corpus uses.

    Returns:
        The ids, with those of all pieces that BPE merges on the way to them.
    """
    kept = set(used)
    if model["type"] != "BPE":
        return kept
    pieces = vocabulary(model)
    names = {number: piece for piece, number in pieces.items()}
    ranks = {(left, right): rank for rank, (left, right) in enumerate(model["merges"])}
    for number in list(kept):
        for part in _merged_parts(names.get(number, ""), ranks, model):
            if part in pieces:
                kept.add(pieces[part])
    return kept


def _merged_parts(piece: str, ranks: Mapping[tuple[str, str], int], model: Model) -> Iterator[str]:
    """Every piece that BPE has in hand while it builds one, single characters first."""
    symbols = _symbols(piece, model)
    yield from symbols
    while len(symbols) > 1:
        rank, place = min((ranks.get(pair, len(ranks)), i) for i, pair in enumerate(pairwise(symbols)))
        if rank == len(ranks):
            return  # no merges lead to it, as to an added token
        symbols[place : place + 2] = [_joined(symbols[place], symbols[place + 1], model)]
        yield symbols[place]


def _symbols(piece: str, model: Model) -> list[str]:
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    inside = bool(prefix) and piece.startswith(prefix)
    ends = bool(suffix) and piece.endswith(suffix)
    characters = list(piece.removeprefix(prefix).removesuffix(suffix))
    if ends and characters:
        characters[-1] += suffix
    return [prefix + c if i or inside else c for i, c in enumerate(characters)]


def _joined(left: str, right: str, model: Model) -> str:
    return left + right.removeprefix(model.get("continuing_subword_prefix") or "")


def pieces_of_unknown(word: str, model: Model) -> list[int]:
    """What WordPiece takes from a word before it gives up and calls all of it unknown.

    Args:
        word: a word after normalisation.
        model: the entry of tokenizer.json; of other tokenizers nothing has to stay.

    Returns:
        Ids of the pieces.
    """
    if model["type"] != "WordPiece" or len(word) > model["max_input_chars_per_word"]:
        return []
    pieces, found, start = model["vocab"], [], 0
    while start < len(word):
        prefix = model["continuing_subword_prefix"] if start else ""
        ends = (end for end in range(len(word), start, -1) if prefix + word[start:end] in pieces)
        end = next(ends, None)
        if end is None:
            break
        found.append(pieces[prefix + word[start:end]])
        start = end
    return found


def trimmed_model(model: Model, new_ids: Mapping[int, int]) -> Model:
    """The model without the pieces that go.

    Args:
        model: the entry of tokenizer.json.
        new_ids: the new id of every id that stays, in the order of the old ones.

    Returns:
        The entry with new ids.
    """
    if model["type"] == "Unigram":
        unknown = model.get("unk_id")
        pieces = [entry for number, entry in enumerate(model["vocab"]) if number in new_ids]
        return {**model, "vocab": pieces, "unk_id": None if unknown is None else new_ids[unknown]}
    kept = {piece: new_ids[number] for piece, number in model["vocab"].items() if number in new_ids}
    if model["type"] != "BPE":
        return {**model, "vocab": kept}
    merges = [
        pair
        for pair in model["merges"]
        if pair[0] in kept and pair[1] in kept and _joined(pair[0], pair[1], model) in kept
    ]
    return {**model, "vocab": kept, "merges": merges}
