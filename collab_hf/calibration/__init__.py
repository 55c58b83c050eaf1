"""Examples of what a model reads, and the statistics that they give."""

from .examples import load_batches
from .statistics import collect_statistics

__all__ = ["collect_statistics", "load_batches"]
