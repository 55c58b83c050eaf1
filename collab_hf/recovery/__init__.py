"""Label-free recovery: a compressed model learns from the original on a few minutes of unlabelled data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .config import LossWeights, RecoveryConfig, RecoveryReport

if TYPE_CHECKING:
    from .loop import recover_ as recover_

__all__ = ["LossWeights", "RecoveryConfig", "RecoveryReport", "recover_"]


def __getattr__(name: str) -> Any:
    """Import `recover_` when it is first used: settings are checked before torch is there."""
    if name == "recover_":
        from .loop import recover_

        return recover_
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
