"""Checkpoints: loaded with plain errors, written whole or not at all, verified, exported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .load import load_model as load_model
    from .load import load_processor as load_processor

__all__ = ["load_model", "load_processor"]


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: who checks where an output goes need not wait for torch."""
    if name in __all__:
        from . import load

        return getattr(load, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
