"""Checkpoints: loaded with plain errors, written whole or not at all, verified, exported."""

from .load import load_model, load_processor

__all__ = ["load_model", "load_processor"]
