"""What planning finds out about a model: the sites of all parts, their statistics, and what options lose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..calibration.held_out import Batch
from ..calibration.linear_inputs import linear_moments
from ..calibration.statistics import collect_statistics
from ..config import CollabConfig
from ..errors import FamilyError
from ..host.sites import AttentionSite, all_attention_sites, check_plain_sites, first_refusal
from ..modeling.kinds import check_kinds, matches
from ..modeling.plan import LayerPlan
from ..modeling.plans import SECTIONS
from ..parts.embeddings.counts import token_counts
from ..parts.part import Option, Part
from ..parts.registry import EMBEDDINGS, FEED_FORWARDS, HEADS, QUERY_KEY, VALUES
from ..progress import Steps
from ..tensors.moments import LayerStatistics, Moments
from . import cache
from .attention_options import attention_options, undominated
from .curves import Curve, measured_curves
from .divergence import Divergence

# Shares of a site's parameters whose option is measured; between them a power of the error is fitted.
_MEASURED_SHARES = (0.2, 0.4, 0.6, 0.8)

# Parts whose sites they have to themselves; heads, values, queries and keys share theirs.
_ALONE = (FEED_FORWARDS, EMBEDDINGS)


@dataclass(frozen=True, eq=False)
class Measured:
    """What planning found out about a model; every budget is planned from it.

    Attributes:
        attention: attention sites by name.
        inputs: moments of what attention layers read, by site name.
        outputs: moments of what output projections read, by site name.
        alone: sites of the other parts, by part and name.
        statistics: what calibration found for those, likewise.
        curves: by part and site, options with their losses.
    """

    attention: Mapping[str, AttentionSite]
    inputs: Mapping[str, LayerStatistics]
    outputs: Mapping[str, Moments]
    alone: Mapping[str, Mapping[str, Any]]
    statistics: Mapping[str, Mapping[str, Any]]
    curves: Mapping[str, Mapping[str, Curve]]

    def sites_alone(self) -> Iterator[tuple[Any, str, Any]]:
        """Part, name and site of every site that is no attention layer."""
        for part in _ALONE:
            for name, site in self.alone[part.name].items():
                yield part, name, site

    def groups(self, length: int) -> dict[str, list[Option]]:
        """What can be chosen, site by site: exactly one option of each.

        Args:
            length: tokens of the sequence that operations are counted for.

        Returns:
            Options with operations and losses, by site.
        """
        found = {}
        for name, attention in self.attention.items():
            heads, values, query_key = (
                self.curves.get(part.name, {}).get(name) for part in (HEADS, VALUES, QUERY_KEY)
            )
            found[name] = attention_options(attention.shape, heads, values, query_key, length)
        for part, name, site in self.sites_alone():
            curve = self.curves.get(part.name, {}).get(name)
            options = [Option(None, part.parameters(None, site.shape), 0.0, None, 0.0)]
            if curve is not None:
                pairs = zip(curve.options, curve.losses_alone(), strict=True)
                options = [replace(option, loss=float(loss)) for option, loss in pairs]
            counted = [replace(o, operations=part.operations(o.plan, site.shape, length)) for o in options]
            found[name] = undominated(counted)
        return found

    def only(self, parts: Sequence[str]) -> Measured:
        """The same with the options of some parts alone.

        Args:
            parts: their names.

        Returns:
            What can be chosen then.
        """
        return replace(self, curves={part: curves for part, curves in self.curves.items() if part in parts})


def measure_parts(
    model: PreTrainedModel,
    parts: Sequence[str],
    config: CollabConfig,
    seen: Sequence[Batch],
    held_out: Sequence[Batch],
    *,
    curves: bool = True,
    progress: bool = False,
) -> Measured:
    """Measure what the options of all parts lose, each alone.

    Args:
        model: a dense transformers model; left as it was found.
        parts: names of the parts that may be made smaller.
        config: settings of the solvers.
        seen: model inputs for statistics.
        held_out: model inputs to measure divergence on.
        curves: whether to measure what options lose; forms that are settled already don't ask.
        progress: whether to draw progress bars on stderr.

    Returns:
        What was measured.

    Raises:
        FamilyError: nothing of the parts that can be made smaller, or a layer that is compressed already.
        CalibrationError: calibration data that is empty or does not run.
        DecompositionError: weights that are not finite.
    """
    attention = all_attention_sites(model)
    check_plain_sites(attention)
    alone: dict[str, Mapping[str, Any]] = {part.name: part.sites(model) for part in _ALONE}
    open_sites = _open_sites(model, parts, attention, alone, config)
    neurons = alone[FEED_FORWARDS.name]
    # What heads and values go by, where either can become smaller.
    read = [
        name
        for name, site in attention.items()
        if None in (site.family.refusal(site.module, part.name) for part in (HEADS, VALUES))
    ]
    layers: dict[str, nn.Module] = {f"output {name}": HEADS.output(attention[name]) for name in read}
    layers |= {f"neurons {name}": FEED_FORWARDS.output(site) for name, site in neurons.items()}
    moments = linear_moments(model, layers, seen, progress=progress) if layers else {}
    outputs = {name: moments[f"output {name}"] for name in read}
    padding = getattr(model.config, "pad_token_id", None)
    found: dict[str, Mapping[str, Any]] = {
        FEED_FORWARDS.name: {name: moments[f"neurons {name}"] for name in neurons},
        EMBEDDINGS.name: {
            name: token_counts(seen, site.shape.vocab_size, padding)
            for name, site in alone[EMBEDDINGS.name].items()
        },
    }
    divergence = Divergence(model, held_out) if curves else None
    fingerprint = cache.Fingerprint(model, [*seen, *held_out]) if curves else None
    losses: dict[str, Mapping[str, Curve]] = {}
    for part, statistics in (
        *((part, found[part.name]) for part in _ALONE),
        (HEADS, outputs),
        (VALUES, outputs),
    ):
        if part.name in parts and divergence is not None and fingerprint is not None:
            sites = open_sites[part.name]
            key = _key(fingerprint, part, sites, config)
            losses[part.name] = _kept(part, sites, key) or _part_curves(
                part, sites, statistics, divergence, config, progress, key
            )
    inputs: Mapping[str, LayerStatistics] = {}
    chosen: Mapping[str, AttentionSite] = open_sites.get(QUERY_KEY.name, {})
    if chosen:
        modules = {name: site.module for name, site in chosen.items()}
        inputs = collect_statistics(model, modules, seen, progress=progress)
    if chosen and fingerprint is not None:
        key = _key(fingerprint, QUERY_KEY, chosen, config)
        losses[QUERY_KEY.name] = _kept(QUERY_KEY, chosen, key) or _query_key_curves(
            model, chosen, inputs, seen, held_out, config, progress, key
        )
    return Measured(attention, inputs, outputs, alone, found, losses)


def _open_sites(
    model: nn.Module,
    parts: Sequence[str],
    attention: Mapping[str, AttentionSite],
    alone: Mapping[str, Mapping[str, Any]],
    config: CollabConfig,
) -> dict[str, dict[str, Any]]:
    """The sites that may become smaller, by part; at least one where parts are named."""
    found: dict[str, dict[str, Any]] = {part: dict(alone[part]) for part in parts if part in alone}
    for part in (QUERY_KEY, HEADS, VALUES):
        if part.name in parts:
            found[part.name] = {name: site for name, site in attention.items() if _allows(site, part, config)}
    if parts and not any(found.values()):
        reason = "collab_hf knows no such layer of it"
        first = next((part for part in parts if part not in alone), None)
        if attention and first is not None:
            check_kinds(attention, config.attention)
            matching = {n: site for n, site in attention.items() if matches(n, config.attention)}
            reason = first_refusal(matching, first)
        raise FamilyError(f"{type(model).__name__} can't lose any of its {', '.join(parts)}: {reason}")
    return found


def _allows(site: AttentionSite, part: Part, config: CollabConfig) -> bool:
    """Whether a part of a site may be made smaller, by its host and by the kinds that settings choose."""
    return site.family.refusal(site.module, part.name) is None and matches(site.name, config.attention)


def _key(fingerprint: cache.Fingerprint, part: Part, sites: Mapping[str, Any], config: CollabConfig) -> str:
    """Name of a part's curves in the cache."""
    settings = dict.fromkeys((f"{part.name} {name}" for name in sites), replace(config, reconstruct_steps=0))
    return fingerprint.key(settings)


def _kept(part: Part, sites: Mapping[str, Any], key: str) -> dict[str, Curve] | None:
    """Curves of an earlier run with the same weights and data, for any budget."""
    shapes = {name: site.shape for name, site in sites.items()}
    found = cache.load(key, shapes, LayerPlan if part is QUERY_KEY else SECTIONS[part.name])
    return None if found is None else {curve.name: curve for curve in found[0]}


def _query_key_curves(
    model: PreTrainedModel,
    sites: Mapping[str, AttentionSite],
    inputs: Mapping[str, LayerStatistics],
    seen: Sequence[Batch],
    held_out: Sequence[Batch],
    config: CollabConfig,
    progress: bool,
    key: str,
) -> dict[str, Curve]:
    settings = dict.fromkeys(sites, replace(config, reconstruct_steps=0))
    measured = measured_curves(model, QUERY_KEY, sites, settings, inputs, seen, held_out, progress=progress)
    cache.save(key, measured, {})
    return {curve.name: curve for curve in measured}


def _part_curves(
    part: Any,
    sites: Mapping[str, Any],
    statistics: Mapping[str, Any],
    divergence: Divergence,
    config: CollabConfig,
    progress: bool,
    key: str,
) -> dict[str, Curve]:
    """Options of a part's sites with the divergence of a few of them, one at a time."""
    found: dict[str, Curve] = {}
    if not sites:
        return found
    title = f"Measuring {part.name.replace('_', ' ')}"
    for name, site in Steps(sites.items(), title=title, unit="layer", progress=progress):
        trial = part.trial(site, config, statistics[name])
        dense = part.parameters(None, site.shape)
        knots = []
        for option in _measured_options(trial.options, dense):
            with part.replaced(sites, {name: trial.solve(option.plan)}):
                knots.append((option.error, divergence.measure()))
        found[name] = Curve(name, site.shape, dense, trial.options, tuple(knots))
    cache.save(key, list(found.values()), {})
    return found


def _measured_options(options: Sequence[Option], dense: int) -> list[Option]:
    smaller = [option for option in options if option.plan is not None]
    nearest = [
        min(smaller, key=lambda o: abs(o.parameters - share * dense)) for share in _MEASURED_SHARES if smaller
    ]
    return list({id(option): option for option in nearest}.values())
