"""Values as a part: each head keeps the directions of its values that its output needs most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from ...host.sites import AttentionSite, AttentionSites, attention_sites
from ...modeling.shapes import AttentionShape
from ...modeling.shrinking import ValuePlan
from ...tensors.moments import Moments
from ...tensors.value_output import narrow_values, narrowing_errors
from ..part import Option
from ..shrunk import ShrinkingPart, Shrunk, factors_of

# Widths that are offered, as parts of a head: eighths.
_STEPS = 8


class Values(ShrinkingPart):
    """The values of attention layers and the columns of the output projection that read them."""

    name = "value_output"

    def sites(self, model: nn.Module) -> AttentionSites:
        """The attention layers of a model, by name."""
        return attention_sites(model)

    def output(self, site: AttentionSite) -> Any:
        """The projection that reads all heads."""
        return site.at(site.family.output)

    def parameters(self, plan: ValuePlan | None, shape: AttentionShape) -> int:
        """Weights of value and output and the biases of the values."""
        width = shape.num_heads * (shape.head_dim if plan is None else plan.width)
        return width * (shape.key_size + shape.query_size + 1)

    def operations(self, plan: ValuePlan | None, shape: AttentionShape, length: int) -> int:
        """Floating-point operations of values, their weighted means and the output, for one sequence."""
        width = shape.num_heads * (shape.head_dim if plan is None else plan.width)
        return 2 * length * width * (shape.key_size + shape.query_size + length)

    def trial(self, site: AttentionSite, moments: Moments) -> ValueTrial:
        """What each width of the values costs.

        Args:
            site: a dense attention layer, perhaps with fewer heads.
            moments: of what the output projection reads.

        Returns:
            The options, and the means to solve them.

        Raises:
            DecompositionError: weights or moments that are not finite.
        """
        heads, head_dim = site.shape.num_heads, site.shape.head_dim
        step = max(1, head_dim // _STEPS)
        offered = list(range(step, head_dim, step))
        weight, _ = factors_of(self.output(site), site.name)
        errors = narrowing_errors(moments, weight, heads, offered, output_weights=site.gain())
        options = [
            Option(ValuePlan(width), self.parameters(ValuePlan(width), site.shape), float(error))
            for width, error in zip(offered, errors, strict=True)
        ]
        dense = Option(None, self.parameters(None, site.shape), 0.0)
        return ValueTrial(site, moments, (*options, dense))


@dataclass(frozen=True, eq=False)
class ValueTrial:
    """One attention layer with the moments of its heads' outputs.

    Attributes:
        site: the layer.
        moments: of all heads' outputs side by side.
        options: widths with their predicted errors, the dense one included.
    """

    site: AttentionSite
    moments: Moments
    options: tuple[Option, ...]

    def solve(self, plan: ValuePlan) -> Shrunk:
        """Values of a width, and the output projection refitted to them."""
        row, site = self.site.family, self.site
        value_weight, value_bias = factors_of(site.at(row.value), site.name)
        weight, bias = factors_of(site.at(row.output), site.name)
        found = narrow_values(
            self.moments,
            value_weight,
            value_bias,
            weight,
            bias,
            site.shape.num_heads,
            plan.width,
            output_weights=site.gain(),
        )
        return Shrunk(
            plan,
            {
                row.value: (found.value_weight, found.value_bias),
                row.output: (found.output_weight, found.output_bias),
            },
            float(found.error),
        )
