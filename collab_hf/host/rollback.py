"""Take back what was done to a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    undo = _undo(model)
    try:
        yield
    except BaseException:
        undo()
        raise


@contextmanager
def undone(model: nn.Module) -> Iterator[None]:
    """Leave a model as it was found in any case, likewise.

    Args:
        model: any module.

    Yields:
        Nothing.
    """
    undo = _undo(model)
    try:
        yield
    finally:
        undo()


def _undo(model: nn.Module) -> Callable[[], None]:
    objects: list[Any] = list(model.modules())
    configs = {id(c): c for m in objects if (c := getattr(m, "config", None)) is not None}
    kept = [(item, item.__class__, _contents(item)) for item in [*objects, *configs.values()]]

    def undo() -> None:
        for item, cls, contents in kept:
            item.__class__ = cls
            _restore(item, contents)

    return undo


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
