"""Sizes of the dense layers that surgery works on.

This file ships with saved checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AttentionShape:
    """Sizes of one dense attention layer.

    Args:
        query_size: width of the input of the query projection.
        key_size: width of the input of the key projection (differs from query_size in some cross-attention).
        num_heads: number of attention heads.
        head_dim: width of one dense head.
        biases: entries of the biases of the query and key projections together.
        cross: queries and keys come from different sequences.
        key_value_heads: heads of keys and values where several queries' heads share one; 0 for num_heads.
    """

    query_size: int
    key_size: int
    num_heads: int
    head_dim: int
    biases: int = 0
    cross: bool = False
    key_value_heads: int = 0

    @property
    def sharing(self) -> int:
        """How many queries' heads share one head of keys and values."""
        return self.num_heads // (self.key_value_heads or self.num_heads)

    @property
    def full_rank(self) -> int:
        """The rank at which every method is exact: num_heads * head_dim."""
        return self.num_heads * self.head_dim

    @property
    def dense_parameters(self) -> int:
        """Weights and biases of the dense query and key projections."""
        return self._projected + self.biases

    @property
    def dense_operations(self) -> int:
        """Floating-point operations per token of the dense query and key projections, biases aside."""
        return 2 * self._projected

    @property
    def _projected(self) -> int:
        """Weights of the dense query and key projections."""
        return self.query_size * self.full_rank + self.key_size * self.full_rank // self.sharing


@dataclass(frozen=True)
class FeedForwardShape:
    """Sizes of one dense feed-forward.

    Args:
        hidden_size: width of its input and output.
        width: number of neurons.
        gated: whether every neuron is scaled by a gate, a projection of its own.
    """

    hidden_size: int
    width: int
    gated: bool = False
