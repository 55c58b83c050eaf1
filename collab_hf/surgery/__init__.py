"""From a dense model to a smaller one, and back."""

from .compress import compress_
from .dense import to_dense_
from .report import CompressionReport, LayerReport

__all__ = ["CompressionReport", "LayerReport", "compress_", "to_dense_"]
