"""Attention to train from scratch: plain torch modules, and the surgery of models that are built on them."""

from .cache import KeyValueCache
from .collaborative import CollaborativeAttention
from .multihead import MultiheadAttention
from .statistics import InputMoments, collect_moments
from .surgery import LayerReport, compress_layers_, convert_layers_, dense_layers

__all__ = [
    "CollaborativeAttention",
    "InputMoments",
    "KeyValueCache",
    "LayerReport",
    "MultiheadAttention",
    "collect_moments",
    "compress_layers_",
    "convert_layers_",
    "dense_layers",
]
