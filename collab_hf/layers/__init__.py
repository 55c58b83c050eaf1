"""Attention to train from scratch: plain torch modules, and the surgery of models that are built on them."""

from .collaborative import CollaborativeAttention, KeyValueCache

__all__ = ["CollaborativeAttention", "KeyValueCache"]
