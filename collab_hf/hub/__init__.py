"""The Hub: fetching what belongs to a model, publishing it, and its card."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .publish import push as push

__all__ = ["push"]


def __getattr__(name: str) -> Any:
    """Import `push` when it is first used: commands that publish nothing need not wait for it."""
    if name == "push":
        from .publish import push

        return push
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
