"""From a dense model to a smaller one, and back."""

from .compress import CompressionReport, LayerReport, compress_
from .dense import to_dense_

__all__ = ["CompressionReport", "LayerReport", "compress_", "to_dense_"]
