"""`LayerPlan`: the form and the ranks of one layer's query and key.

This file ships with saved checkpoints: it imports siblings alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

from .errors import ConfigError
from .forms import FORMS, Form
from .shapes import AttentionShape, ContentBias, Ranks, checked_fields


@dataclass(frozen=True)
class LayerPlan(Ranks):
    """The ranks of one layer's query and key; they fix the shape of every factor."""

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str = "") -> LayerPlan:
        """Read a plan from config.json.

        Args:
            values: the fields by name, as `to_dict` gives them.
            where: the layer's name, for the message.

        Returns:
            The plan.

        Raises:
            ConfigError: a field is unknown, absent or of a wrong type.
        """
        at = where or "a layer"
        found = checked_fields(cls, values, at)
        for name, value in found.items():
            kind = {"method": str, "content_bias": str, "tied": bool}.get(name, int)
            absent = name == "head_rank" and value is None
            if not absent and type(value) is not kind:
                word = {str: "text", bool: "true or false", int: "a whole number"}[kind]
                raise ConfigError(f"{name} must be {word}, got {value!r} ({at})")
        return cls(**found)

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
        count = shape.query_size * self.query_rank
        count += 0 if self.tied else shape.key_size * self.key_rank
        count += shape.num_heads * (self.score_width if self.content_bias == "folded" else shape.key_size)
        return count + self.form.mixing_parameters(self, shape.num_heads)

    def projection_operations(self, shape: AttentionShape) -> int:
        """Floating-point operations per token for queries and keys, two for each multiply-add.

        Args:
            shape: sizes of the dense layer.

        Returns:
            The part of the cost that does not grow with the length.
        """
        count = shape.query_size * self.query_rank
        count += 0 if self.tied else shape.key_size * self.key_rank
        count += shape.num_heads * shape.key_size if self.content_bias == "exact" else 0
        return 2 * (count + self.form.mixing_products(self, shape.num_heads))

    @property
    def form(self) -> Form:
        """What the method asks of the ranks, and what it costs."""
        return FORMS[self.method]

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
        if self.method not in FORMS:
            raise ConfigError(f"method must be one of {', '.join(FORMS)}, got {self.method!r}{at}")
        if self.content_bias not in get_args(ContentBias):
            raise ConfigError(f"content_bias must be exact or folded, got {self.content_bias!r}{at}")
        self.form.check(self, shape, at)
        return self
