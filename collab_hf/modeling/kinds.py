"""What a layer attends and where it stands, told by its name."""

from __future__ import annotations

from collections.abc import Iterable

from .errors import ConfigError

# Words by the names of the modules around a layer; the first of encoder and decoder counts.
_AROUND = {"encoder": "encoder", "decoder": "decoder", "text_model": "text", "vision_model": "vision"}
# Names that layers have for attention between two sequences.
CROSS_NAMES = frozenset({"crossattention", "cross_attention", "encoder_attn", "EncDecAttention"})
WORDS = ("self", "cross", "encoder", "decoder", "text", "vision")


def is_cross(name: str) -> bool:
    """Whether a module's name says that it attends another sequence.

    Args:
        name: the module's, in a model.

    Returns:
        Whether it does.
    """
    return not CROSS_NAMES.isdisjoint(name.split(".")[-2:])


def kinds_of(name: str) -> frozenset[str]:
    """What a layer's name says of it.

    Args:
        name: the layer's, relative to the base model.

    Returns:
        Of `WORDS`: `self` or `cross`, and where the model has such parts `encoder` or `decoder`, `text` or
        `vision`.
    """
    found = {"cross" if is_cross(name) else "self"}
    for part in name.split("."):
        word = _AROUND.get(part)
        if word is not None and not (word in ("encoder", "decoder") and found & {"encoder", "decoder"}):
            found.add(word)
    return frozenset(found)


def matches(name: str, kinds: tuple[str, ...]) -> bool:
    """Whether a layer is of one of some kinds.

    Args:
        name: the layer's, relative to the base model.
        kinds: words joined by `-`, all of which must be true of it; without any, every layer matches.

    Returns:
        Whether it is.
    """
    found = kinds_of(name)
    return not kinds or any(found.issuperset(kind.split("-")) for kind in kinds)


def checked_kinds(given: object) -> tuple[str, ...]:
    """Kinds of attention as settings have them.

    Args:
        given: a kind, several with commas between them, or a list of them.

    Returns:
        The kinds.

    Raises:
        ConfigError: a word that says nothing of a layer.
    """
    kinds = tuple(given.split(",")) if isinstance(given, str) else given
    if isinstance(kinds, list | tuple) and all(
        isinstance(k, str) and set(k.split("-")) <= set(WORDS) for k in kinds
    ):
        return tuple(kinds)
    raise ConfigError(
        f"attention must be kinds made of {', '.join(WORDS)}, such as decoder-cross, got {given!r}"
    )


def check_kinds(names: Iterable[str], kinds: tuple[str, ...]) -> None:
    """Refuse kinds that no layer of a model is of.

    Args:
        names: the layers.
        kinds: as for `matches`.

    Raises:
        ConfigError: there is no layer to compress.
    """
    names = list(names)
    if not any(matches(name, kinds) for name in names):
        raise ConfigError(f"no layer is {' or '.join(kinds)} attention: {', '.join(names)}")
