"""Token embeddings of low rank, weighted by how often tokens occur."""

from .part import Embeddings

__all__ = ["Embeddings"]
