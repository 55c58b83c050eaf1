"""Take back what was done to a model when a later step fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def undone_on_error(model: nn.Module) -> Iterator[None]:
    """Leave a model as it was found if anything inside the with block fails.

    Modules, parameters and configs are kept by reference, so nothing is copied: what happens inside may
    replace parameters, sub-modules, classes and settings, but not write into the parameters that it found.

    Args:
        model: any module.

    Yields:
        Nothing.
    """
    objects: list[Any] = list(model.modules())
    configs = {id(c): c for m in objects if (c := getattr(m, "config", None)) is not None}
    kept = [(item, item.__class__, _contents(item)) for item in [*objects, *configs.values()]]
    try:
        yield
    except BaseException:
        for item, cls, contents in kept:
            item.__class__ = cls
            _restore(item, contents)
        raise


def _contents(item: Any) -> list[tuple[str, Any, dict[Any, Any] | None]]:
    """Attributes; of dictionaries also what they hold, since handles of hooks know them as objects."""
    return [
        (name, value, dict(value) if isinstance(value, dict) else None) for name, value in vars(item).items()
    ]


def _restore(item: Any, contents: list[tuple[str, Any, dict[Any, Any] | None]]) -> None:
    attributes = vars(item)
    attributes.clear()
    for name, value, held in contents:
        attributes[name] = value
        if held is not None:
            value.clear()
            value.update(held)
