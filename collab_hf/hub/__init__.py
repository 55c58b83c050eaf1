"""The Hub: fetching what belongs to a model, publishing it, and its card."""

from .publish import push

__all__ = ["push"]
