"""The modules of a model before and after surgery, as reports show them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ..host.sites import AttentionSite, AttentionSites
from ..modeling.plan import LayerPlan
from ..parts.part import Option, Part
from ..parts.registry import FEED_FORWARDS, HEADS, QUERY_KEY, VALUES
from ..planning.attention_options import AttentionForm
from ..planning.measured import Measured
from ..planning.whole_plan import WholePlan

Change = tuple[int, int]


@dataclass(frozen=True)
class SiteReport:
    """One module before and after.

    Attributes:
        name: relative to the base model.
        kind: `attention`, or the part that has the module to itself.
        sizes: before and after, by what is counted: heads, score width and value width of one head, neurons,
            rank of the embeddings.
        parameters: trainable numbers before and after; of an attention layer all but the output's bias.
        operations: floating-point operations of one sequence before and after, two for each multiply-add.
        loss: divergence of the model's output with this module alone smaller, as planning measured it; None
            where it did not.
    """

    name: str
    kind: str
    sizes: Mapping[str, Change]
    parameters: Change
    operations: Change
    loss: float | None = None

    @property
    def changed(self) -> bool:
        """Whether it takes fewer numbers than before, or other ones."""
        return self.parameters[0] != self.parameters[1] or any(a != b for a, b in self.sizes.values())


def whole_reports(measured: Measured, plan: WholePlan, *, with_losses: bool) -> tuple[SiteReport, ...]:
    """Report on every module that a plan for the whole model has a say in.

    Args:
        measured: the model's sites.
        plan: what they became.
        with_losses: whether the plan's losses were measured.

    Returns:
        Attention layers first, then those of the other parts.
    """
    options = {
        name: option if with_losses else replace(option, loss=None) for name, option in plan.options.items()
    }
    length = plan.length
    found = [
        attention_report(site, options[name].plan, length, options[name].loss)
        for name, site in measured.attention.items()
    ]
    alone = measured.sites_alone()
    return (
        *found,
        *(part_report(part, name, site.shape, options[name], length) for part, name, site in alone),
    )


def query_key_reports(
    model: nn.Module,
    sites: AttentionSites,
    plans: Mapping[str, LayerPlan],
    losses: Mapping[str, float | None],
    length: int,
) -> tuple[SiteReport, ...]:
    """Report on the layers of a model whose queries and keys alone were made smaller.

    Args:
        model: the model, before or after.
        sites: its attention layers, as they were.
        plans: forms of queries and keys, by layer.
        losses: as planning measured them, by layer.
        length: tokens of the sequence that operations are counted for.

    Returns:
        Attention layers first, then feed-forwards.
    """
    found = [
        attention_report(site, AttentionForm(query_key=plans.get(name)), length, losses.get(name))
        for name, site in sites.items()
    ]
    others = FEED_FORWARDS.sites(model)
    return (*found, *(part_report(FEED_FORWARDS, n, site.shape, None, length) for n, site in others.items()))


def attention_report(site: AttentionSite, form: AttentionForm, length: int, loss: float | None) -> SiteReport:
    """Report on an attention layer.

    Args:
        site: the layer, with the sizes that it had.
        form: what it became.
        length: tokens of the sequence that operations are counted for.
        loss: as planning measured it.

    Returns:
        The report.
    """
    dense, shape = AttentionForm(), form.shape(site.shape)
    forms: tuple[tuple[Part, Any], ...] = (
        (HEADS, form.heads),
        (QUERY_KEY, form.query_key),
        (VALUES, form.values),
    )
    sizes = {part.size_name: (part.size(None, site.shape), part.size(plan, shape)) for part, plan in forms}
    return SiteReport(
        site.name,
        "attention",
        sizes,
        (dense.parameters(site.shape), form.parameters(site.shape)),
        (dense.operations(site.shape, length), form.operations(site.shape, length)),
        loss,
    )


def part_report(part: Part, name: str, shape: Any, option: Option | None, length: int) -> SiteReport:
    """Report on a module that one part has to itself.

    Args:
        part: the part.
        name: of the module.
        shape: sizes that it had.
        option: what it became; None where it stayed.
        length: tokens of the sequence that operations are counted for.

    Returns:
        The report.
    """
    plan, loss = (None, None) if option is None else (option.plan, option.loss)
    return SiteReport(
        name,
        part.name,
        {part.size_name: (part.size(None, shape), part.size(plan, shape))},
        (part.parameters(None, shape), part.parameters(plan, shape)),
        (part.operations(None, shape, length), part.operations(plan, shape, length)),
        loss,
    )


def total(changes: Iterable[Change]) -> Change:
    """Sums before and after."""
    pairs = list(changes)
    return sum(before for before, _ in pairs), sum(after for _, after in pairs)
