"""Feed-forwards as a part: neurons go in the order of the optimal brain surgeon, the others take over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ...config import CollabConfig
from ...host.sites import FeedForwardSite, feed_forward_sites
from ...modeling.shapes import FeedForwardShape
from ...modeling.shrinking import FeedForwardPlan
from ...tensors.moments import Moments
from ...tensors.surgeon import RemovalPath, refit, removal_path
from ..part import Option
from ..shrunk import ShrinkingPart, Shrunk, factors_of, rows_of

# Neurons between two widths that are offered, as a share of all: kernels like multiples of 16 and more, and
# finer steps change the loss by less than it can be measured to.
_STEPS = 24
_STEP = 16

# Neurons that go at a time: with 16, errors are within a per mille of those one by one.
_BLOCK = 16


class FeedForwards(ShrinkingPart):
    """The neurons of feed-forward layers, plain or gated."""

    name = "feed_forward"
    size_name = "neurons"
    place = "feed-forwards"
    done = "In {layers} feed-forwards have fewer neurons."

    def sites(self, model: nn.Module) -> dict[str, FeedForwardSite]:
        """The feed-forwards of a model, by name."""
        return feed_forward_sites(model)

    def output(self, site: FeedForwardSite) -> Any:
        """The projection that reads the neurons."""
        return site.at(site.family.down)

    def size(self, plan: FeedForwardPlan | None, shape: FeedForwardShape) -> int:
        """Neurons."""
        return shape.width if plan is None else plan.width

    def parameters(self, plan: FeedForwardPlan | None, shape: FeedForwardShape) -> int:
        """Weights of the projections and the biases of the neurons."""
        width = shape.width if plan is None else plan.width
        return width * shape.hidden_size * (3 if shape.gated else 2) + width * (2 if shape.gated else 1)

    def operations(self, plan: FeedForwardPlan | None, shape: FeedForwardShape, length: int) -> int:
        """Floating-point operations for one sequence, two for each multiply-add."""
        width = shape.width if plan is None else plan.width
        return 2 * length * width * shape.hidden_size * (3 if shape.gated else 2)

    def check(self, plan: FeedForwardPlan, shape: FeedForwardShape, where: str) -> None:
        """Refuse a width that the feed-forward can't have."""
        plan.check(shape.width, where)

    def trial(self, site: FeedForwardSite, config: CollabConfig, statistics: Moments) -> NeuronTrial:
        """The order in which neurons go, and what each width costs.

        Args:
            site: a dense feed-forward.
            config: not read.
            statistics: moments of what the down projection reads.

        Returns:
            The options, and the means to solve them.

        Raises:
            DecompositionError: weights or statistics that are not finite.
        """
        weight, _ = factors_of(self.output(site), site.name)
        path = removal_path(statistics, weight, block=_BLOCK, output_weights=site.gain())
        options = []
        for width in widths(site.shape.width):
            plan = None if width == site.shape.width else FeedForwardPlan(width)
            options.append(Option(plan, self.parameters(plan, site.shape), path.error(width)))
        return NeuronTrial(site, statistics, path, tuple(options))


@dataclass(frozen=True, eq=False)
class NeuronTrial:
    """One feed-forward with its order of removal.

    Attributes:
        site: the feed-forward.
        moments: of the neurons.
        path: the order in which they go.
        options: widths with their predicted errors, the dense one included.
    """

    site: FeedForwardSite
    moments: Moments
    path: RemovalPath
    options: tuple[Option, ...]

    def solve(self, plan: FeedForwardPlan) -> Shrunk:
        """The neurons that stay at a width, and the projection refitted to them."""
        kept: Tensor = self.path.kept(plan.width)
        row = self.site.family
        weight, bias = factors_of(self.site.at(row.down), self.site.name)
        down = refit(self.moments, weight, bias, kept)
        weights: dict[str, tuple[Tensor, Tensor | None]] = {row.up: rows_of(self.site.at(row.up), kept)}
        if row.gate is not None:
            weights[row.gate] = rows_of(self.site.at(row.gate), kept)
        return Shrunk(plan, {**weights, row.down: down}, self.path.error(plan.width))


def widths(width: int) -> list[int]:
    """Widths that are offered for a feed-forward, in rising order.

    Args:
        width: number of neurons of the dense one.

    Returns:
        Multiples of 16 or more, about 24 of them, and the dense width; small ones get every width.
    """
    if width < 2 * _STEP:
        return list(range(1, width + 1))
    step = max(_STEP, -(-width // _STEPS) // _STEP * _STEP)
    return sorted({*range(step, width, step), width})
