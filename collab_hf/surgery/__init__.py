"""From a dense model to a smaller one, and back."""

from .compress import compress_
from .dense import to_dense_
from .pipeline import CompressedCheckpoint, compress_checkpoint
from .report import CompressionReport
from .report_layers import LayerReport

__all__ = [
    "CompressedCheckpoint",
    "CompressionReport",
    "LayerReport",
    "compress_",
    "compress_checkpoint",
    "to_dense_",
]
