"""Compress a model's attention in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..calibration.given import Calibration
from ..calibration.sources import DEFAULT
from ..checkpoint.streaming import Spill
from ..config import CollabConfig
from ..errors import ConfigError
from ..host.adoption import adopt_
from ..host.plain import inner_model
from ..host.rollback import undone_on_error
from ..host.sites import AttentionSites, all_attention_sites, check_plain_sites
from ..measure.bench import image_length
from ..modeling.plan import LayerPlan
from ..modeling.plans import QUERY_KEY
from ..parts.registry import EMBEDDINGS, FEED_FORWARDS, PARTS
from ..processes import ALONE, Processes
from .given import find_batches, read_settings
from .report import CompressionReport
from .report_layers import LayerReport
from .report_sites import query_key_reports
from .solving import candidates, prepare, solutions
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
    processes: Processes = ALONE,
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
        processes: that share the work on queries and keys alone, each with the same model and data.
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
    candidates(PARTS["query_key"], sites, config)  # and ranks that don't fit
    batches = find_batches(model, inner, config, calibration, tokenizer)
    return _compress_query_key_(inner, sites, config, batches, spill, processes, progress)


def _compress_query_key_(
    model: PreTrainedModel,
    sites: AttentionSites,
    config: CollabConfig,
    calibration: Calibration,
    spill: Spill | None,
    processes: Processes,
    progress: bool,
) -> CompressionReport:
    part = PARTS["query_key"]
    target = config.asked_for
    prepared = prepare(model, part, sites, config, calibration, processes, progress)
    config, divergence = prepared.config, prepared.divergence
    before = sum(p.numel() for p in model.parameters())
    forms: dict[str, LayerPlan] = {}
    reports: dict[str, LayerReport] = {}
    # Undoing keeps the old parameters, so that none of the new has an old one's id.
    with undone_on_error(model):
        for name, result, better in solutions(model, part, sites, prepared, processes, progress):
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
    processes: Processes = ALONE,
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
        processes: likewise.
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
        report = compress_(model, rest, calibration, spill=spill, processes=processes, progress=progress)
    return completed(report, model, config, trimmed)
