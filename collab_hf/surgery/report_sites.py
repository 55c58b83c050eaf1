"""The modules of a model before and after surgery, as reports show them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import FamilyError
from ..host.sites import AttentionSite, AttentionSites
from ..layout import Change
from ..modeling.plan import LayerPlan
from ..modeling.plans import Plans
from ..parts.part import Part
from ..parts.registry import FEED_FORWARDS, HEADS, QUERY_KEY, VALUES
from ..planning.attention_options import AttentionForm
from ..planning.measured import Measured
from ..planning.whole_plan import WholePlan


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


def whole_reports(
    measured: Measured, plan: WholePlan, installed: Plans, *, with_losses: bool
) -> tuple[SiteReport, ...]:
    """Report on every module that a plan for the whole model has a say in.

    Args:
        measured: the model's sites.
        plan: what they were to become.
        installed: the forms that they have, by section and site; narrow values bring one of queries and keys.
        with_losses: whether the plan's losses were measured.

    Returns:
        Attention layers first, then those of the other parts.
    """
    losses = {name: option.loss if with_losses else None for name, option in plan.options.items()}
    found = []
    for name, attention in measured.attention.items():
        form = AttentionForm(*(installed.get(section, {}).get(name) for section in AttentionForm.sections))
        found.append(attention_report(attention, form, plan.length, losses[name]))
    for part, name, site in measured.sites_alone():
        alone = installed.get(part.name, {}).get(name)
        found.append(part_report(part, name, site.shape, alone, plan.length, losses[name]))
    return tuple(found)


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
        Attention layers first, then feed-forwards where their projections are plain.
    """
    found = [
        attention_report(site, AttentionForm(query_key=plans.get(name)), length, losses.get(name))
        for name, site in sites.items()
    ]
    try:
        others = FEED_FORWARDS.sites(model)
    except FamilyError:  # projections that are not plain, which queries and keys have nothing to do with
        others = {}
    found += [part_report(FEED_FORWARDS, n, site.shape, None, length, None) for n, site in others.items()]
    return tuple(found)


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


def part_report(part: Part, name: str, shape: Any, plan: Any, length: int, loss: float | None) -> SiteReport:
    """Report on a module that one part has to itself.

    Args:
        part: the part.
        name: of the module.
        shape: sizes that it had.
        plan: what it became; None where it stayed.
        length: tokens of the sequence that operations are counted for.
        loss: as planning measured it.

    Returns:
        The report.
    """
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
