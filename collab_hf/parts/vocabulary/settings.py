"""Token ids that configs hold: of the model, of its text part, and of generation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

NewIds = Mapping[int, int]

# Lists of tokens or of sequences of tokens that must not come up: what is gone can't.
_FORBIDDEN = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "sequence_bias")
# Ids by name, such as languages.
_BY_NAME = ("lang_to_id", "task_to_id")


def holders(model: Any) -> list[Any]:
    """The configs of a model that hold token ids.

    Args:
        model: a transformers model.

    Returns:
        Its config, the config of its text part where that is another, and its generation config.
    """
    found = [model.config, model.config.get_text_config(), getattr(model, "generation_config", None)]
    return list({id(config): config for config in found if config is not None}.values())


def mentioned(config: Any, vocab_size: int) -> set[int]:
    """Tokens that a config needs.

    Args:
        config: one of `holders`.
        vocab_size: rows of the token embedding; other numbers, such as -1, are no tokens.

    Returns:
        Ids.
    """
    return {
        number
        for name, value in _entries(config)
        if name not in _FORBIDDEN
        for number in _numbers(_tokens(name, value))
        if 0 <= number < vocab_size
    }


def renumber_(config: Any, new_ids: NewIds) -> None:
    """Give a config the new ids, in place; forbidden tokens that are gone leave its lists.

    Args:
        config: one of `holders`.
        new_ids: the new id of every id that stays.
    """
    for name, value in list(_entries(config)):
        setattr(config, name, _renumbered(name, value, new_ids))


def _entries(config: Any) -> Iterator[tuple[str, Any]]:
    """Settings that have token ids in them."""
    for name, value in vars(config).items():
        known = name in (*_FORBIDDEN, *_BY_NAME, "forced_decoder_ids", "force_words_ids")
        if value is not None and (known or name.endswith(("token_id", "token_ids"))):
            yield name, value


def _tokens(name: str, value: Any) -> Any:
    if name in _BY_NAME:
        return list(value.values())
    if name == "forced_decoder_ids":  # pairs of a place and a token
        return [token for _, token in value]
    return value


def _numbers(value: Any) -> Iterator[int]:
    if isinstance(value, int) and not isinstance(value, bool):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item)


def _mapped(value: Any, new: Callable[[int], int]) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return new(value)
    if isinstance(value, list | tuple):
        return type(value)(_mapped(item, new) for item in value)
    return value


def _renumbered(name: str, value: Any, new_ids: NewIds) -> Any:
    def new(number: int) -> int:
        return new_ids.get(number, number)

    if name == "sequence_bias":
        # By sequence in memory, pairs of a sequence and its bias in JSON.
        pairs = value.items() if isinstance(value, dict) else value
        kept = [(_mapped(seq, new), bias) for seq, bias in pairs if all(n in new_ids for n in _numbers(seq))]
        return dict(kept) if isinstance(value, dict) else [list(pair) for pair in kept]
    if name in _FORBIDDEN:
        kept_items = [item for item in value if all(n in new_ids or n < 0 for n in _numbers(item))]
        return _mapped(kept_items, new)
    if name in _BY_NAME:
        return {key: new(number) for key, number in value.items()}
    if name == "forced_decoder_ids":
        return [[place, _mapped(token, new)] for place, token in value]
    return _mapped(value, new)
