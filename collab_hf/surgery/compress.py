"""Compress a model's attention in place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..calibration.given import Calibration
from ..calibration.held_out import split_batches
from ..calibration.sources import DEFAULT
from ..calibration.statistics import collect_statistics
from ..checkpoint.streaming import Spill
from ..config import CollabConfig
from ..errors import ConfigError
from ..host.adoption import adopt_
from ..host.plain import inner_model
from ..host.rollback import undone_on_error
from ..host.sites import AttentionSites, all_attention_sites, check_plain_sites
from ..measure.bench import image_length
from ..modeling.kinds import check_kinds
from ..modeling.plan import LayerPlan
from ..modeling.plans import QUERY_KEY
from ..parts.part import LayerwisePart
from ..parts.registry import EMBEDDINGS, FEED_FORWARDS, PARTS
from ..planning import Divergence, plan_model, planned_layers
from ..progress import Steps
from ..recovery.reconstruction import Reconstruction, reconstruct
from ..tensors.factors import SharedFactors
from ..tensors.moments import LayerStatistics
from .given import find_batches, read_settings
from .report import CompressionReport
from .report_layers import LayerReport
from .report_sites import query_key_reports
from .stock import compress_stock_
from .vocabulary import Trimmed, completed, trimmed_alone, without_vocabulary
from .whole import compress_whole_


def compress_(
    model: nn.Module,
    config: CollabConfig | Mapping[str, Any] | None = None,
    calibration: Any = DEFAULT,
    *,
    tokenizer: Any = None,
    spill: Spill | None = None,
    progress: bool = False,
    **settings: Any,
) -> CompressionReport:
    """Replace the query and key projections of a model's attention layers with shared ones, in place.

    The model keeps its device, dtype, training mode, requires_grad, hooks and attention backend, becomes an
    instance of a collaborative subclass of its class, and saves and loads as before. If anything fails, it
    is left as it was.

    Args:
        model: a transformers model of a known family, with any task head; or an encoder of
            sentence-transformers, which works on with the smaller model inside.
        config: method and ranks, also as a mapping; by default the forms at the knee of the measured loss.
        calibration: what the model reads, whose activations tell what the softmax sees: `default` for the
            examples that ship with the package, a file, a folder, a data set or its id, texts, images,
            batches of model inputs (dicts of tensors), or statistics that `collect_statistics` gave; None to
            decompose the weights alone.
        tokenizer: tokenizer, image processor or processor for texts and images; None to load the model's own
            from where the model came from.
        spill: takes the new weights of each layer to the disk; None keeps them in memory.
        progress: whether to draw a progress bar on stderr.
        **settings: fields of `CollabConfig`, such as `budget=0.25`, instead of `config`.

    Returns:
        Errors and parameter counts by layer.

    Raises:
        FamilyError: no attention layer that collab_hf knows, or one that is compressed already; adapters, or
            weights that are quantised or not in memory.
        RankError: a rank outside of what a layer allows.
        ConfigError: settings that contradict each other, or something else than a model.
        CalibrationError: calibration data that is empty or does not run.
        DecompositionError: weights that are not finite.

    Warns:
        UserWarning: no tokenizer was found for the default examples, so that the weights alone decide.
    """
    config = read_settings(config, settings)
    if config.vocabulary_from is not None:
        raise ConfigError(
            "compress_ has no tokenizer to trim; use compress_checkpoint, or trim_vocabulary_ of "
            "collab_hf.parts.vocabulary before it"
        )
    inner = inner_model(model)
    if config.is_whole:
        check_plain_sites(all_attention_sites(inner))  # what can't be worked on comes out before any work
        FEED_FORWARDS.sites(inner)
        EMBEDDINGS.sites(inner)
        batches = find_batches(model, inner, config, calibration, tokenizer)
        surgery = compress_stock_ if config.portable else compress_whole_
        return surgery(inner, config, batches, progress=progress)
    sites = PARTS["query_key"].sites(inner)
    _candidates(PARTS["query_key"], sites, config)  # and ranks that don't fit
    batches = find_batches(model, inner, config, calibration, tokenizer)
    return _compress_query_key_(inner, sites, config, batches, spill, progress)


def _compress_query_key_(
    model: PreTrainedModel,
    sites: AttentionSites,
    config: CollabConfig,
    calibration: Calibration,
    spill: Spill | None,
    progress: bool,
) -> CompressionReport:
    part = PARTS["query_key"]
    prepared, target = _prepare(model, part, sites, config, calibration, progress), config.asked_for
    config, divergence = prepared.config, prepared.divergence
    before = sum(p.numel() for p in model.parameters())
    forms: dict[str, LayerPlan] = {}
    reports: dict[str, LayerReport] = {}
    # Undoing keeps the old parameters, so that none of the new has an old one's id.
    with undone_on_error(model):
        for name, result, better in _solutions(model, part, sites, prepared, progress):
            module = sites[name].module
            old = {id(parameter) for parameter in module.parameters()}
            part.install_(sites[name], result if better is None else better.solution)
            if spill is not None:
                spill.take_(p for p in module.parameters() if id(p) not in old)
            forms[name] = result.plan
            reports[name] = LayerReport.of(sites[name], result, better)
        adopt_(model, {QUERY_KEY: forms})
        measured = None if divergence is None else divergence.measure()
    layers = [reports.get(name) or LayerReport.of(site, None, None) for name, site in sites.items()]
    after = sum(p.numel() for p in model.parameters())
    length = image_length(model) or config.length
    return CompressionReport(
        tuple(layers),
        before,
        after,
        prepared.statistics is not None,
        config,
        prepared.predicted_loss,
        measured,
        sites=query_key_reports(model, sites, forms, prepared.losses, length),
        length=length,
        target=target,
    )


def compress_trimmed_(
    model: PreTrainedModel,
    config: CollabConfig,
    trimmed: Trimmed | None,
    calibration: Iterable[Mapping[str, Any]] | None,
    *,
    original: PreTrainedModel | None,
    spill: Spill | None,
    progress: bool,
) -> CompressionReport:
    """Compress a model whose vocabulary was trimmed, if that was asked for.

    Args:
        model: as for `compress_`.
        config: settings, the vocabulary's among them.
        trimmed: what trimming did; None where it was not asked for.
        calibration: batches of model inputs.
        original: a copy of the model, needed where the whole model has a target.
        spill: as for `compress_`.
        progress: whether to draw progress bars on stderr.

    Returns:
        What was done, trimming included.

    Raises:
        ConfigError: as for `compress_`, and so are the others.
    """
    rest, before = without_vocabulary(config), None if trimmed is None else trimmed.report.parameters_before
    if config.vocabulary_alone and trimmed is not None:
        report = trimmed_alone(model, config, trimmed.report)
    elif rest.is_whole:
        surgery = compress_stock_ if rest.portable else compress_whole_
        settings: dict[str, Any] = {"original": original, "parameters_before": before}
        report = surgery(model, rest, calibration, **settings, progress=progress)
    else:
        report = compress_(model, rest, calibration, spill=spill, progress=progress)
    return completed(report, model, config, trimmed)


@dataclass(frozen=True)
class _Prepared:
    """What compression goes by once layers are planned and calibration data are read."""

    config: CollabConfig
    statistics: Mapping[str, LayerStatistics] | None
    seen: Sequence[Mapping[str, Any]] = ()
    predicted_loss: float | None = None
    divergence: Divergence | None = None
    losses: Mapping[str, float | None] = field(default_factory=dict)


def _prepare(
    model: PreTrainedModel,
    part: LayerwisePart,
    sites: AttentionSites,
    config: CollabConfig,
    calibration: Calibration,
    progress: bool,
) -> _Prepared:
    if planned_layers(config, sites):
        plan = plan_model(model, part, sites, config, calibration, progress=progress)
        if not plan.measured:
            return _Prepared(plan.config, plan.statistics, plan.seen)
        divergence = Divergence(model, plan.held_out)
        losses = {name: option.loss for name, option in plan.options.items()}
        return _Prepared(plan.config, plan.statistics, plan.seen, plan.predicted_loss, divergence, losses)
    if calibration is None or isinstance(calibration, Mapping):
        return _Prepared(config, calibration)
    seen = split_batches(calibration)[0] if config.hold_out else calibration
    chosen = {name: sites[name].module for name in _candidates(part, sites, config)[0]}
    return _Prepared(config, collect_statistics(model, chosen, seen, progress=progress), seen)


def _solutions(
    model: PreTrainedModel, part: LayerwisePart, sites: AttentionSites, prepared: _Prepared, progress: bool
) -> Iterator[tuple[str, SharedFactors, Reconstruction | None]]:
    """Every layer's factors: each once it is solved, or all at the end where they are fitted to outputs."""
    config, statistics = prepared.config, prepared.statistics
    chosen, plans = _candidates(part, sites, config)

    def solved() -> Iterator[tuple[str, SharedFactors]]:
        for name in Steps(chosen, title="Decomposing", unit="layer", progress=progress):
            moments = None if statistics is None else statistics[name]
            yield name, part.solve(sites[name], chosen[name], plans[name], moments)

    if not prepared.seen or not config.reconstruct_steps:
        for name, result in solved():
            yield name, result, None
        return
    factors = dict(solved())
    better = _reconstruct(model, part, sites, factors, prepared, progress)
    for name, result in factors.items():
        yield name, result, better.get(name)


def _reconstruct(
    model: PreTrainedModel,
    part: LayerwisePart,
    sites: AttentionSites,
    factors: Mapping[str, SharedFactors],
    prepared: _Prepared,
    progress: bool,
) -> dict[str, Reconstruction]:
    """Fit the factors of all forms but the exact ones to the layers' outputs."""
    inexact = {name: result for name, result in factors.items() if not result.plan.form.exact}
    if not inexact:
        return {}
    config = prepared.config
    return reconstruct(
        model,
        part,
        sites,
        inexact,
        prepared.seen,
        steps=config.reconstruct_steps,
        seed=config.seed,
        progress=progress,
    )


def _candidates(
    part: LayerwisePart, sites: AttentionSites, config: CollabConfig
) -> tuple[dict[str, CollabConfig], dict[str, list[Any]]]:
    """Settings of the layers that are not dense, and the forms of those that the planner leaves alone."""
    unmatched = [p for p in config.layers if not any(fnmatchcase(name, p) for name in sites)]
    if unmatched:
        raise ConfigError(
            f"layers has settings for {unmatched[0]!r}, which matches none of {', '.join(sites)}"
        )
    check_kinds(sites, config.attention)
    config.check_goals(sites)
    chosen = {name: settings for name in sites if (settings := config.for_layer(name)) is not None}
    open_to_plan = planned_layers(config, sites)
    plans = {
        name: part.candidates(settings, sites[name].shape, name)
        for name, settings in chosen.items()
        if name not in open_to_plan
    }
    return chosen, plans
