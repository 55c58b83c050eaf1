"""Plans that the host's own class can hold: which blocks stay, and one width for all feed-forwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..calibration.held_out import Batch
from ..calibration.linear_inputs import linear_moments
from ..config import CollabConfig
from ..errors import ConfigError
from ..host.sites import AttentionSite
from ..host.stock import StockSizes
from ..modeling.families import relative_name
from ..modeling.shrinking import FeedForwardPlan
from ..parts.blocks import BlocksPlan, kept_blocks
from ..parts.feed_forward.part import NeuronTrial
from ..parts.registry import FEED_FORWARDS, QUERY_KEY
from .attention_options import AttentionForm
from .divergence import Divergence


@dataclass(frozen=True)
class StockPlan:
    """The sizes of a smaller model of the host's own class.

    Attributes:
        kept: numbers of the blocks that stay.
        width: of every feed-forward.
        operations: of the blocks that stay, for one sequence.
        parameters: trainable numbers of those.
        loss: divergence of the model's output, measured with these sizes before any training.
    """

    kept: tuple[int, ...]
    width: int
    operations: int
    parameters: int
    loss: float = 0.0


@dataclass(eq=False)
class StockMeasured:
    """What planning found out about a model; every target is planned from it.

    Attributes:
        model: the dense model.
        sizes: what its config can say.
        attention: attention sites by name.
        trials: feed-forwards with their orders of removal, by name; none where their width stays.
        divergence: of the model's output.
        length: tokens of the sequence that operations are counted for.
        orders: by number of blocks, which stay.
    """

    model: PreTrainedModel
    sizes: StockSizes
    attention: dict[str, AttentionSite]
    trials: dict[str, NeuronTrial]
    divergence: Divergence | None
    length: int
    orders: dict[int, tuple[int, ...]]
    _losses: dict[tuple[tuple[int, ...], int], float] = field(default_factory=dict)

    @property
    def stack(self) -> nn.ModuleList:
        """The module list that holds the blocks."""
        named = {relative_name(self.model, name): module for name, module in self.model.named_modules()}
        found: Any = named[str(self.sizes.stack)]
        return found  # type: ignore[no-any-return]

    @property
    def widths(self) -> list[int]:
        """Widths that are offered, the widest first."""
        if not self.trials:
            return [self.sizes.width if self.sizes.feed_forwards else 0]
        first = next(iter(self.trials.values()))
        return sorted((o.plan.width if o.plan else self.sizes.width for o in first.options), reverse=True)

    def plan(self, kept: Sequence[int], width: int) -> StockPlan:
        """Count what a model of some sizes takes.

        Args:
            kept: numbers of the blocks that stay.
            width: of the feed-forwards.

        Returns:
            The plan, without a loss.
        """
        blocks, form = list(self.sizes.blocks.values()), AttentionForm()
        operations = 0
        parameters = sum(p.numel() for number in kept for p in blocks[number].parameters())
        narrow = FeedForwardPlan(width) if width < self.widths[0] else None
        inside = self._inside(kept)
        for name, attention in self.attention.items():
            if inside(name):
                operations += form.operations(attention.shape, self.length)
        for name, site in self.sizes.feed_forwards.items():
            if inside(name):
                operations += FEED_FORWARDS.operations(narrow, site.shape, self.length)
                dense = FEED_FORWARDS.parameters(None, site.shape)
                parameters -= dense - FEED_FORWARDS.parameters(narrow, site.shape)
        return StockPlan(tuple(kept), width, operations, parameters)

    @property
    def dense(self) -> StockPlan:
        """The sizes as they are."""
        return self.plan(range(len(self.sizes.blocks)), self.widths[0])

    def choose(self, *, operations: float = np.inf, parameters: float = np.inf) -> StockPlan:
        """The sizes of least measured divergence within a number of operations or of parameters.

        For every number of blocks the widest feed-forwards that fit are tried.

        Args:
            operations: most that all blocks may take for one sequence.
            parameters: most trainable numbers of all blocks.

        Returns:
            The plan with its loss.

        Raises:
            ConfigError: nothing is that small; the message says the nearest that can be met.
        """
        found = []
        for kept in self.orders.values():
            plans = (self.plan(kept, width) for width in self.widths)
            fitting = (p for p in plans if p.operations <= operations and p.parameters <= parameters)
            widest = next(fitting, None)
            if widest is not None:
                found.append(widest)
        if not found:
            least, dense = self.plan(self.orders[min(self.orders)], self.widths[-1]), self.dense
            raise ConfigError(
                "no choice of layers and widths is that small: at least "
                f"{least.operations / dense.operations:.3f} of the layers' operations and "
                f"{least.parameters / dense.parameters:.3f} of their parameters remain"
            )
        losses = [self.loss(plan) for plan in found]
        best = found[int(np.argmin(losses))]
        return StockPlan(best.kept, best.width, best.operations, best.parameters, min(losses))

    def loss(self, plan: StockPlan) -> float:
        """Divergence of the output with sizes of a plan, measured once."""
        key = plan.kept, plan.width
        if key not in self._losses and self.divergence is not None:
            with self.installed(plan):
                self._losses[key] = self.divergence.measure()
        return self._losses[key]

    def solutions(self, plan: StockPlan) -> dict[str, Any]:
        """Weights of the feed-forwards that stay, by name; none where their width stays too."""
        if plan.width == self.widths[0]:
            return {}
        inside = self._inside(plan.kept)
        form = FeedForwardPlan(plan.width)
        return {name: trial.solve(form) for name, trial in self.trials.items() if inside(name)}

    @contextmanager
    def installed(self, plan: StockPlan) -> Iterator[None]:
        """Let the model have the sizes of a plan inside the with block."""
        with FEED_FORWARDS.replaced(self.sizes.feed_forwards, self.solutions(plan)):
            if len(plan.kept) == len(self.sizes.blocks):
                yield
            else:
                with kept_blocks(self.stack, plan.kept):
                    yield

    def plans(self, plan: StockPlan) -> dict[str, dict[str, Any]]:
        """What is smaller, by part and name, as a recipe keeps it."""
        found: dict[str, dict[str, Any]] = {}
        if len(plan.kept) < len(self.sizes.blocks):
            found["blocks"] = {str(self.sizes.stack): BlocksPlan(plan.kept)}
        if plan.width < self.widths[0]:
            inside, form = self._inside(plan.kept), FeedForwardPlan(plan.width)
            found["feed_forward"] = {n: form for n in self.sizes.feed_forwards if inside(n)}
        return found

    def _inside(self, kept: Sequence[int]) -> Callable[[str], bool]:
        names = list(self.sizes.blocks)
        left = tuple(f"{names[number]}." for number in kept)
        return lambda name: f"{name}.".startswith(left)


def measure_stock(
    model: PreTrainedModel,
    config: CollabConfig,
    seen: Sequence[Batch],
    held_out: Sequence[Batch],
    length: int,
    *,
    curves: bool = True,
    progress: bool = False,
) -> StockMeasured:
    """Find out which blocks and neurons matter least.

    Args:
        model: a dense model; left as it was found.
        config: settings with the parts that may be smaller.
        seen: model inputs for statistics.
        held_out: model inputs to measure divergence on.
        length: tokens of the sequence that operations are counted for.
        curves: whether to measure which blocks go first; a plan that is settled doesn't ask.
        progress: whether to draw progress bars on stderr.

    Returns:
        What was measured.

    Raises:
        FamilyError: the host's config can't say what was asked for by name, or nothing at all.
    """
    attention, sizes = QUERY_KEY.sites(model), StockSizes.of(model)
    said = {"blocks": sizes.stack is not None, "feed_forward": sizes.width_entry is not None}
    for part in config.planned_parts:
        if not said[part] and (config.parts is not None or not any(said.values())):
            sizes.refuse(model, part)
    trials = {}
    if said["feed_forward"] and "feed_forward" in config.planned_parts:
        layers = {name: FEED_FORWARDS.output(site) for name, site in sizes.feed_forwards.items()}
        moments = linear_moments(model, layers, seen, progress=progress)
        for name, site in tqdm(
            sizes.feed_forwards.items(), desc="Ordering neurons", unit="layer", disable=not progress
        ):
            trials[name] = FEED_FORWARDS.trial(site, config, moments[name])
    divergence = Divergence(model, held_out) if curves else None
    everything = tuple(range(len(sizes.blocks)))
    found = StockMeasured(
        model, sizes, dict(attention), trials, divergence, length, {len(everything): everything}
    )
    if curves and said["blocks"] and "blocks" in config.planned_parts:
        found.orders |= _orders(found, progress)
    return found


def _orders(measured: StockMeasured, progress: bool) -> dict[int, tuple[int, ...]]:
    """Blocks removed one by one, each time the one whose absence the output shows least."""
    orders, width = {}, measured.widths[0]
    kept = tuple(range(len(measured.sizes.blocks)))
    total = len(kept) * (len(kept) + 1) // 2 - 1
    with tqdm(total=total, desc="Measuring blocks", unit="block", disable=not progress) as bar:
        while len(kept) > 1:
            tries = [tuple(n for n in kept if n != gone) for gone in kept]
            losses = []
            for left in tries:
                losses.append(measured.loss(StockPlan(left, width, 0, 0)))
                bar.update()
            kept = tries[int(np.argmin(losses))]
            orders[len(kept)] = kept
    return orders


def given_stock_plan(measured: StockMeasured, values: Any) -> StockPlan:
    """A plan that a recipe has.

    Args:
        measured: the model's sizes.
        values: what `StockMeasured.plans` gave, as plain values.

    Returns:
        The plan, without a loss.

    Raises:
        ConfigError: sizes that the model can't have.
    """
    unknown = [section for section in values if section not in ("blocks", "feed_forward")]
    stack, number = str(measured.sizes.stack), len(measured.sizes.blocks)
    others = [name for name in values.get("blocks", {}) if name != stack]
    if unknown or others:
        raise ConfigError(f"a portable plan has no {[*unknown, *others][0]!r} in this model")
    kept = tuple(range(number))
    if "blocks" in values:
        kept = BlocksPlan.from_dict(dict(values["blocks"][stack]), number, stack).kept
    widths = {form.get("width") for form in values.get("feed_forward", {}).values()} or {measured.widths[0]}
    if len(widths) > 1:
        raise ConfigError(
            f"a portable plan has one width for all feed-forwards, got {sorted(map(str, widths))}"
        )
    width = widths.pop()
    if width not in measured.widths:
        raise ConfigError(
            f"the width of feed-forwards must be one of {', '.join(map(str, measured.widths))}, got {width}"
        )
    return measured.plan(kept, width)
