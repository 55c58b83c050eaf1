"""Numbers that a user gives, and the ranges they must lie in.

Also of values from Python and from recipes: NaN, infinity, text and booleans are no numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .modeling.errors import ConfigError

# Generators of torch and NumPy take no more than 64 bits, those of some accelerators less.
LARGEST_SEED = 2**63 - 1


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: Any, least: int = 1) -> bool:
    """Whether a value is a whole number of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def check_whole(name: str, value: Any, least: int = 1) -> None:
    """Refuse what is no whole number, or too small a one.

    Args:
        name: what the user calls it.
        value: what was given.
        least: what is allowed.

    Raises:
        ConfigError: says all three.
    """
    if not is_whole(value, least):
        raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}")


def check_seed(value: Any) -> None:
    """Refuse a seed that a generator of random numbers does not take.

    Args:
        value: what was given.

    Raises:
        ConfigError: it is no whole number from 0 to 2^63 - 1.
    """
    if not is_whole(value, 0) or value > LARGEST_SEED:
        raise ConfigError(f"seed must be a whole number from 0 to {LARGEST_SEED}, got {value!r}")


def check_kind(name: str, value: Any, kind: type) -> None:
    """Refuse a value of another kind.

    Args:
        name: what the user calls it.
        value: what was given.
        kind: bool, str or Mapping.

    Raises:
        ConfigError: says name, kind and value.
    """
    if not isinstance(value, kind):
        words = {bool: "true or false", str: "text"}
        raise ConfigError(f"{name} must be {words.get(kind, 'a mapping')}, got {value!r}")


def check_plain(config: Any) -> None:
    """Refuse settings whose value is wrong whatever the others are.

    Args:
        config: a `CollabConfig`.

    Raises:
        ConfigError: says name, kind and value.
    """
    if not is_number(config.damping) or config.damping < 0:
        raise ConfigError(f"damping must be at least 0, got {config.damping!r}")
    check_whole("reconstruct_steps", config.reconstruct_steps, 0)
    check_seed(config.seed)
    for name in ("tied", "hold_out", "portable"):
        check_kind(name, getattr(config, name), bool)
    for name in ("solver", "vocabulary_from"):
        if getattr(config, name) is not None:
            check_kind(name, getattr(config, name), str)
    parts = config.parts
    if parts is not None and not (isinstance(parts, list | tuple) and all(isinstance(p, str) for p in parts)):
        raise ConfigError(f"parts must be a list of names, got {parts!r}")
    _check_layers(config.layers)
    check_kind("plans", config.plans, Mapping)
    for part, forms in config.plans.items():
        check_kind(f"{part} in plans", forms, Mapping)
        for name, form in forms.items():
            check_kind(f"{name} of {part} in plans", form, Mapping)
    check_kind("target", config.target, Mapping)
    for name, value in config.target.items():  # reports, which are JSON, take it over
        if not isinstance(name, str) or not (is_number(value) or isinstance(value, str)):
            raise ConfigError(f"target must have numbers or text by name, got {name!r}: {value!r}")


def _check_layers(layers: Any) -> None:
    check_kind("layers", layers, Mapping)
    for pattern, override in layers.items():
        fits = isinstance(override, str) or (
            isinstance(override, Mapping) and all(isinstance(name, str) for name in override)
        )
        if not isinstance(pattern, str) or not fits:
            raise ConfigError(
                f"a layer's settings must be a mapping or 'dense', got {override!r} for {pattern!r}"
            )


def check_above(name: str, value: Any, low: float = 0.0, high: float = math.inf) -> None:
    """Refuse what is no number above `low`, or a greater one than `high`.

    Args:
        name: what the user calls it.
        value: what was given.
        low: itself not allowed.
        high: itself allowed, where it is finite.

    Raises:
        ConfigError: says name, range and value.
    """
    if not is_number(value) or not low < value <= high:
        most = f" and at most {high:g}" if math.isfinite(high) else " and finite"
        raise ConfigError(f"{name} must be above {low:g}{most}, got {value!r}")


def check_share(share: Any) -> None:
    """Refuse a share of heads that leaves none, or takes none.

    Args:
        share: what was given.

    Raises:
        ConfigError: it is no number between 0 and 1.
    """
    if not is_number(share) or not 0 < share < 1:
        raise ConfigError(f"share must be between 0 and 1, the share of all heads that go, got {share}")


def read_flops_target(text: str) -> tuple[int, float]:
    """Read a target such as `128:0.5`.

    Args:
        text: LENGTH:SHARE.

    Returns:
        The length in tokens and the share of the operations.

    Raises:
        ConfigError: another form, no length, or a share out of (0, 1].
    """
    length, _, share = str(text).partition(":")
    try:
        found = int(length), float(share)
    except ValueError:
        found = 0, 0.0
    if found[0] < 1 or not 0 < found[1] <= 1:
        raise ConfigError(
            f"target_flops must be LENGTH:SHARE with a length of at least 1 and a share in (0, 1], such as "
            f"128:0.5, got {text}"
        )
    return found


def check_targets(config: Any) -> None:
    """Refuse targets for queries and keys that are out of range.

    Args:
        config: a `CollabConfig`.

    Raises:
        ConfigError: says which, and what was given.
    """
    if config.budget is not None and not (is_number(config.budget) and 0 < config.budget <= 1):
        raise ConfigError(
            f"budget must be in (0, 1], the share of query/key parameters to keep, got {config.budget!r}"
        )
    if config.target_params is not None:
        check_whole("target_params", config.target_params)
    if config.target_flops is not None:
        read_flops_target(config.target_flops)
    if config.max_loss is not None:
        check_above("max_loss", config.max_loss)
