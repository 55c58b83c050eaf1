"""Whole blocks removed: layers with their attention and feed-forward."""

from .stack import BlocksPlan, keep_blocks_, kept_blocks

__all__ = ["BlocksPlan", "keep_blocks_", "kept_blocks"]
