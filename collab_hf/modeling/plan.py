"""The form that one layer takes, and the sizes of the layer that it has to fit.

This file ships with saved checkpoints: it imports torch and siblings alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from .errors import ConfigError, RankError

Method = Literal["cp", "tucker", "svd", "copy"]
ContentBias = Literal["exact", "folded"]
METHODS: tuple[Method, ...] = get_args(Method)


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
    """

    query_size: int
    key_size: int
    num_heads: int
    head_dim: int
    biases: int = 0
    cross: bool = False

    @property
    def full_rank(self) -> int:
        """The rank at which every method is exact: num_heads * head_dim."""
        return self.num_heads * self.head_dim

    @property
    def dense_parameters(self) -> int:
        """Weights and biases of the dense query and key projections."""
        return (self.query_size + self.key_size) * self.full_rank + self.biases


@dataclass(frozen=True)
class LayerPlan:
    """The form that one layer's query and key take; it fixes the shape of every factor.

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

    method: Method
    query_rank: int
    key_rank: int
    score_width: int
    key_groups: int = 1
    head_rank: int | None = None
    tied: bool = False
    content_bias: ContentBias = "exact"

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str = "") -> LayerPlan:
        """Read a plan from config.json.

        Args:
            values: the fields by name, as `to_dict` gives them.
            where: the layer's name, for the message.

        Returns:
            The plan.

        Raises:
            ConfigError: a field is unknown or absent.
        """
        try:
            return cls(**values)
        except TypeError as error:
            raise ConfigError(f"cannot read the collab settings of {where or 'a layer'}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """The fields that differ from their defaults, ready for config.json."""
        defaults = {f.name: f.default for f in fields(self)}
        return {name: value for name, value in asdict(self).items() if value != defaults[name]}

    def num_parameters(self, shape: AttentionShape) -> int:
        """Count the trainable numbers of the layer's query and key in this form.

        Args:
            shape: sizes of the dense layer.

        Returns:
            Shared projections, mixing and content bias.
        """
        heads, width = shape.num_heads, self.score_width
        count = shape.query_size * self.query_rank
        count += 0 if self.tied else shape.key_size * self.key_rank
        count += heads * (width if self.content_bias == "folded" else shape.key_size)
        if self.method == "cp":
            count += heads * width
        if self.method == "tucker":
            count += (self.head_rank or heads) * width * self.query_rank + heads * (self.head_rank or 0)
            if self.narrows_keys:
                count += heads * width * self.key_rank
        return count

    @property
    def form(self) -> str:
        """The method as people read it: `tied tucker` where it is tied."""
        return f"tied {self.method}" if self.tied else self.method

    @property
    def narrows_keys(self) -> bool:
        """Whether tucker's heads read the shared key through cores of their own, not whole."""
        return self.method == "tucker" and self.score_width < self.key_rank // self.key_groups

    def check(self, shape: AttentionShape, where: str = "") -> LayerPlan:
        """Refuse ranks that the layer can't have.

        Args:
            shape: sizes of the dense layer.
            where: the layer's name, for the message.

        Returns:
            The plan itself.

        Raises:
            RankError: a rank is out of its range, or a pair of them does not fit together.
            ConfigError: an unknown method or content bias.
        """
        at = f" ({where})" if where else ""
        if self.method not in METHODS:
            raise ConfigError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}{at}")
        if self.content_bias not in get_args(ContentBias):
            raise ConfigError(f"content_bias must be exact or folded, got {self.content_bias!r}{at}")
        most_query, most_key = shape.full_rank, shape.full_rank
        if self.method == "tucker":
            most_query, most_key = (
                min(most_query, shape.query_size),
                min(most_key, shape.key_size * self.key_groups),
            )
        name = "query_rank" if self.method == "tucker" else "rank"
        _check_range(name, self.query_rank, most_query, at)
        _check_range("key_rank", self.key_rank, most_key, at)
        _check_range("key_groups", self.key_groups, shape.num_heads, at)
        if self.key_rank % self.key_groups:
            raise RankError(
                f"key_rank must be a multiple of key_groups, got {self.key_rank} and {self.key_groups}{at}"
            )
        width_name = "dims_per_head" if self.method == "cp" else "score_width"
        _check_range(width_name, self.score_width, self.key_rank // self.key_groups, at)
        if self.key_groups > 1 and self.score_width != self.key_rank // self.key_groups:
            raise RankError(
                f"score_width must be key_rank / key_groups = {self.key_rank // self.key_groups} where "
                f"key_groups > 1, got {self.score_width}{at}"
            )
        if self.head_rank is not None:
            _check_range("head_rank", self.head_rank, shape.num_heads, at)
        if self.tied:
            self._check_tied(shape, at)
        return self

    def _check_tied(self, shape: AttentionShape, at: str) -> None:
        if self.method != "tucker" or self.key_groups > 1 or self.head_rank is not None:
            raise RankError(f"tied belongs to tucker without key_groups and head_rank{at}")
        if shape.cross or shape.query_size != shape.key_size:
            raise RankError(f"tied needs queries and keys from the same input, not cross-attention{at}")
        if self.key_rank != self.query_rank:
            raise RankError(
                f"key_rank must equal query_rank where they are tied, got {self.key_rank} and "
                f"{self.query_rank}{at}"
            )


def _check_range(name: str, value: int, most: int, at: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise RankError(f"{name} must be between 1 and {most}, got {value}{at}")
