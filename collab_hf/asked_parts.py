"""Which parts of a model settings ask for, and which of them go together."""

from __future__ import annotations

from typing import Any

from .modeling.errors import ConfigError

# Targets for the whole model.
WHOLE_TARGETS = ("speedup", "flops", "params", "size")
# What they make smaller where nobody says otherwise: forms that collab_hf's own classes hold, or what the
# host's config can say.
PART_NAMES = ("query_key", "heads", "value_output", "feed_forward", "embeddings")
PORTABLE_PARTS = ("blocks", "feed_forward")
VOCABULARY = "vocabulary"

_KNOWN = tuple(dict.fromkeys((*PART_NAMES, *PORTABLE_PARTS, VOCABULARY)))


def check_parts(config: Any) -> None:
    """Refuse parts that are unknown, that need something else, or that don't go together.

    Args:
        config: a `CollabConfig` whose other fields are checked already.

    Raises:
        ConfigError: what is wrong, in one sentence.
    """
    parts = config.parts
    if parts is not None and (not parts or any(part not in _KNOWN for part in parts)):
        raise ConfigError(f"parts must be some of {', '.join(_KNOWN)}, got {', '.join(map(str, parts))}")
    asked = VOCABULARY in (parts or ())
    if asked and config.vocabulary_from is None:
        raise ConfigError(
            "the part vocabulary needs vocabulary_from (--vocabulary-from), a file or data set with the text "
            "whose tokens stay"
        )
    if config.vocabulary_from is not None and not asked:
        raise ConfigError(
            "vocabulary_from (--vocabulary-from) belongs to the part vocabulary, got it with parts "
            f"{', '.join(parts or ('none',))}"
        )
    _check_portable(config)
    if config.vocabulary_alone:
        _check_nothing_else(config)
    elif not config.is_whole and set(parts or ()) - {"query_key", VOCABULARY}:
        raise ConfigError(
            f"parts {', '.join(parts or ())} need a target for the whole model: give one of "
            f"{', '.join(WHOLE_TARGETS)}"
        )


def _check_portable(config: Any) -> None:
    others = [part for part in config.planned_parts if part not in PORTABLE_PARTS]
    if config.portable and others:
        raise ConfigError(
            f"portable checkpoints can have {', '.join((*PORTABLE_PARTS, VOCABULARY))} smaller, got the part "
            f"{others[0]}"
        )
    if config.portable and not config.is_whole and not config.vocabulary_alone:
        raise ConfigError(
            f"portable needs a target for the whole model: give one of {', '.join(WHOLE_TARGETS)}"
        )
    if not config.portable and "blocks" in (config.parts or ()):
        raise ConfigError("the part blocks belongs to portable (--portable), got it without")


def _check_nothing_else(config: Any) -> None:
    rest = [n for n in config.to_dict() if n not in ("parts", "vocabulary_from", "portable", "seed")]
    if rest:
        raise ConfigError(
            f"with the part vocabulary alone nothing else becomes smaller, got {rest[0]}: add a part, or "
            f"leave {rest[0]} out"
        )
