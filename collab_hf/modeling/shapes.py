"""Sizes of the dense layers that surgery works on, and of what they become.

This file ships with saved checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal

from .errors import ConfigError

ContentBias = Literal["exact", "folded"]


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
class Ranks:
    """The form that one layer's query and key take, and its ranks.

    Args:
        method: `cp`, `tucker`, `svd` or `copy`.
        query_rank: width of the shared query projection.
        key_rank: width of the shared key projection, of all key groups together; query_rank but for tucker.
        score_width: width of the dot product that gives one head's score.
        key_groups: tucker; number of slices of the shared key, each read whole by some of the heads.
        head_rank: tucker; rank of the core along the heads, or None for a core of its own for every head.
        tied: tucker; queries and keys are read from one and the same shared projection.
        content_bias: `exact` adds the content bias to the scores, `folded` makes it a bias of the query.
    """

    method: str
    query_rank: int
    key_rank: int
    score_width: int
    key_groups: int = 1
    head_rank: int | None = None
    tied: bool = False
    content_bias: ContentBias = "exact"

    @property
    def group_rank(self) -> int:
        """Width of the shared key that one group of heads reads."""
        return self.key_rank // self.key_groups

    @property
    def narrows_keys(self) -> bool:
        """Tucker; whether heads read the shared key through cores of their own, not whole."""
        return self.score_width < self.group_rank

    @property
    def form_name(self) -> str:
        """The method as people read it: `tied tucker` where it is tied."""
        return f"tied {self.method}" if self.tied else self.method


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


def checked_fields(kind: Any, values: Any, where: str) -> dict[str, Any]:
    """Refuse what config.json says of a module unless it gives the fields of a dataclass.

    Args:
        kind: the dataclass.
        values: what was read.
        where: the module's name, for the message.

    Returns:
        The fields by name; their types are not looked at.

    Raises:
        ConfigError: no mapping, or a field that is unknown or absent.
    """
    begin = f"cannot read the collab settings of {where}: "
    if not isinstance(values, Mapping):
        raise ConfigError(f"{begin}they must be a mapping, got {values!r}")
    known = {field.name: field.default is MISSING for field in fields(kind)}
    if unknown := [name for name in values if name not in known]:
        raise ConfigError(f"{begin}there is no {unknown[0]!r}; there are {', '.join(known)}")
    if missing := [name for name, needed in known.items() if needed and name not in values]:
        raise ConfigError(f"{begin}{missing[0]} is missing")
    return dict(values)
