"""Values as a part: each head keeps the directions of its values that its output needs most."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...config import CollabConfig
from ...host.rollback import undone
from ...host.sites import AttentionSite, AttentionSites, attention_sites
from ...modeling.shapes import AttentionShape
from ...modeling.shrinking import ValuePlan, fill_, resize_
from ...tensors.moments import Moments
from ...tensors.value_output import narrow_values, narrowing_errors
from ..part import Option
from ..shrunk import ShrinkingPart, Shrunk, factors_of

# Widths that are offered, as parts of a head: eighths.
_STEPS = 8


class Values(ShrinkingPart):
    """The values of attention layers and the columns of the output projection that read them."""

    name = "value_output"
    size_name = "value width"
    place = "attention"
    done = "In {layers} value and output projections were made narrower."

    def sites(self, model: nn.Module) -> AttentionSites:
        """The attention layers of a model, by name."""
        return attention_sites(model, self.name)

    def output(self, site: AttentionSite) -> Any:
        """The projection that reads all heads."""
        return site.at(site.family.output)

    def size(self, plan: ValuePlan | None, shape: AttentionShape) -> int:
        """Width of one head's values."""
        return shape.head_dim if plan is None else plan.width

    def parameters(self, plan: ValuePlan | None, shape: AttentionShape) -> int:
        """Weights of value and output and the biases of the values."""
        width = shape.num_heads * (shape.head_dim if plan is None else plan.width)
        return width // shape.sharing * (shape.key_size + 1) + width * shape.query_size

    def operations(self, plan: ValuePlan | None, shape: AttentionShape, length: int) -> int:
        """Floating-point operations of values, their weighted means and the output, for one sequence."""
        width = shape.num_heads * (shape.head_dim if plan is None else plan.width)
        projected = width // shape.sharing * shape.key_size + width * shape.query_size
        return 2 * length * (projected + width * length)

    @contextmanager
    def replaced(self, sites: AttentionSites, solutions: Mapping[str, Shrunk]) -> Iterator[None]:
        """Let sites compute what solutions give inside the with block, padded with zeros up to a head.

        Args:
            sites: of the model.
            solutions: for some of them.

        Yields:
            Nothing.
        """
        with ExitStack() as stack:
            for name, solution in solutions.items():
                site = sites[name]
                stack.enter_context(undone(site.around))
                row, heads, width = site.family, site.shape.num_heads, solution.plan.width
                missing = site.shape.head_dim - width
                for path, rows in ((row.value, True), (row.output, False)):
                    weight, bias = solution.weights[path]
                    weight = pad_heads(weight, heads, missing, rows=rows)
                    bias = (
                        pad_heads(bias.unsqueeze(1), heads, missing, rows=True).squeeze(1)
                        if rows and bias is not None
                        else bias
                    )
                    linear = site.at(path)
                    resize_(linear)
                    if linear.bias is not None:
                        linear.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=False)
                    fill_(linear, weight, bias)
            yield

    def trial(self, site: AttentionSite, config: CollabConfig, statistics: Moments) -> ValueTrial:
        """What each width of the values costs.

        Args:
            site: a dense attention layer, perhaps with fewer heads.
            config: not read.
            statistics: moments of what the output projection reads.

        Returns:
            The options, and the means to solve them.

        Raises:
            DecompositionError: weights or statistics that are not finite.
        """
        heads, head_dim = site.shape.num_heads, site.shape.head_dim
        step = max(1, head_dim // _STEPS)
        offered = list(range(step, head_dim, step))
        weight, _ = factors_of(self.output(site), site.name)
        errors = narrowing_errors(statistics, weight, heads, offered, output_weights=site.gain())
        options = [
            Option(ValuePlan(width), self.parameters(ValuePlan(width), site.shape), float(error))
            for width, error in zip(offered, errors, strict=True)
        ]
        dense = Option(None, self.parameters(None, site.shape), 0.0)
        return ValueTrial(site, statistics, (*options, dense))


def pad_heads(weight: Tensor, num_heads: int, missing: int, *, rows: bool) -> Tensor:
    """Zeros behind the values of every head.

    Args:
        weight: (num_heads * width, n), or (n, num_heads * width).
        num_heads: number of heads.
        missing: zeros for each.
        rows: whether heads lie along the rows.

    Returns:
        The same with num_heads * (width + missing).
    """
    if not rows:
        return pad_heads(weight.T, num_heads, missing, rows=True).T
    heads = weight.view(num_heads, -1, weight.shape[1])
    return torch.nn.functional.pad(heads, (0, 0, 0, missing)).flatten(0, 1)


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
