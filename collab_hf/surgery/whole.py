"""Surgery on all parts of a model under one budget."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from ..calibration.held_out import Batch, split_batches
from ..config import CollabConfig
from ..errors import CalibrationError, ConfigError
from ..host.adoption import adopt_
from ..host.blocks import blocks
from ..host.rollback import undone_on_error
from ..host.sites import AttentionSite
from ..measure.bench import image_length
from ..modeling.plans import SECTIONS, Plans
from ..parts.heads.removal import columns_of
from ..parts.query_key.methods import METHODS
from ..parts.registry import HEADS, QUERY_KEY, VALUES
from ..parts.shrunk import moments_of
from ..planning import Divergence
from ..planning.attention_options import AttentionForm
from ..planning.measured import Measured, measure_parts
from ..planning.whole import choose_whole, dense_sizes, given_plan, most_parameters
from ..planning.whole_plan import WholePlan
from ..progress import stage
from ..recovery.blocks import BLOCK_STEPS, BlockReport, reconstruct_blocks_
from .report import CompressionReport, settled
from .report_layers import LayerReport, WholeReport
from .report_sites import whole_reports
from .speed import Chosen, at_speed, reported_speedup, subsets


def compress_whole_(
    model: PreTrainedModel,
    config: CollabConfig,
    calibration: Iterable[Batch] | Mapping[str, Any] | None,
    *,
    original: PreTrainedModel | None = None,
    parameters_before: int | None = None,
    progress: bool = False,
) -> CompressionReport:
    """Make all parts of a model smaller under one budget, in place.

    Args:
        model: a dense transformers model; if anything fails, it is left as it was.
        config: settings with a target for the whole model, or with plans.
        calibration: batches of model inputs.
        original: a copy of the model; None to make one.
        parameters_before: of the model before its vocabulary was trimmed; None for those that it has.
        progress: whether to draw progress bars on stderr.

    Returns:
        What was done.

    Raises:
        FamilyError: nothing of the parts that can be made smaller, or a layer that is compressed already.
        ConfigError: a target that can't be met; the message says the nearest that can.
        CalibrationError: no calibration data, or data that does not run.
        DecompositionError: weights that are not finite.
    """
    if calibration is None or isinstance(calibration, Mapping):
        raise CalibrationError("surgery on the whole model needs batches of model inputs, got none")
    seen, held = split_batches(list(calibration))
    original = copy.deepcopy(model) if original is None else original
    before = parameters_before or sum(p.numel() for p in model.parameters())
    parts = list(config.planned_parts)
    if config.plans:  # nothing is left to choose; queries and keys alone are solved from what they read
        parts = [QUERY_KEY.name] if config.plans.get("layers") else []
    measured = measure_parts(model, parts, config, seen, held, curves=not config.plans, progress=progress)
    if not config.plans:
        stage(
            "Choosing forms" if config.speedup is None else "Choosing forms, by timing models of their sizes"
        )
    chosen = choose_plan(model, measured, parts, config, before)
    with undone_on_error(model):
        plans = build_(model, measured, chosen.plan, config)
        reports = _reconstruct_(model, original, seen, config, progress)
        loss = Divergence.between(model, original, held)
        speed = reported_speedup(original, model, config)
    plan, length = chosen.plan, chosen.plan.length
    whole = WholeReport(plans, length, plan.dense_operations, plan.operations, reports, chosen.speedup, speed)
    layers = tuple(layer_report(site, plans) for site in measured.attention.values())
    after = sum(p.numel() for p in model.parameters())
    return CompressionReport(
        layers,
        before,
        after,
        True,
        settled(config, plans),
        None if config.plans else plan.predicted_loss,
        loss,
        whole,
        sites=whole_reports(measured, plan, plans, with_losses=not config.plans),
        length=length,
        target=config.asked_for,
    )


def _reconstruct_(
    model: PreTrainedModel,
    original: PreTrainedModel,
    batches: Sequence[Batch],
    config: CollabConfig,
    progress: bool,
) -> tuple[BlockReport, ...]:
    if not config.reconstruct_steps:
        return ()
    known = {name: [block] for name, block in blocks(original).items()}
    mine = blocks(model, known)
    settings: dict[str, Any] = {"steps": BLOCK_STEPS, "seed": config.seed, "progress": progress}
    return tuple(reconstruct_blocks_(model, original, mine, known, batches, **settings))


def choose_plan(
    model: PreTrainedModel, measured: Measured, parts: Sequence[str], config: CollabConfig, before: int
) -> Chosen:
    """The plan that meets the target with the least loss.

    Args:
        model: the dense model; left as it is.
        measured: what planning found out about it.
        parts: that may be smaller.
        config: settings with a target, or with plans.
        before: parameters that the target's share is of.

    Returns:
        The plan.

    Raises:
        ConfigError: a target that can't be met.
    """
    length = image_length(model) or config.length
    if config.plans:
        return Chosen(given_plan(measured, _read_plans(config.plans), length))
    operations, parameters = dense_sizes(measured, length)
    if config.flops is not None:
        return Chosen(choose_whole(measured, length, operations=config.flops * operations))
    if config.speedup is not None:
        tries = [at_speed(model, measured.only(p), config, length) for p in subsets(parts)]
        fitting = [found for found in tries if found is not None]
        if not fitting:
            raise ConfigError(f"no choice of forms is {config.speedup:g} times as fast on this machine")
        return min(fitting, key=lambda found: found.plan.predicted_loss)
    total = sum(p.numel() for p in model.parameters())
    room = most_parameters(model, config, before) - (total - parameters)
    return Chosen(choose_whole(measured, length, parameters=room))


def _read_plans(values: Mapping[str, Mapping[str, Any]]) -> Plans:
    unknown = [section for section in values if section not in SECTIONS]
    if unknown:
        raise ConfigError(f"plans has {unknown[0]!r}, but knows {', '.join(SECTIONS)}")
    return {
        section: {name: SECTIONS[section].from_dict(dict(plan), name) for name, plan in plans.items()}
        for section, plans in values.items()
    }


def layer_report(site: AttentionSite, plans: Plans) -> LayerReport:
    """Queries and keys of one layer before and after.

    Args:
        site: the dense layer.
        plans: of all sites.

    Returns:
        Its report.
    """
    plan, heads = plans.get("layers", {}).get(site.name), plans.get("heads", {}).get(site.name)
    shape, before = AttentionForm(heads=heads).shape(site.shape), site.shape.dense_parameters
    if plan is None:
        return LayerReport(site.name, "dense", shape.full_rank, None, 0.0, before, shape.dense_parameters)
    return LayerReport(site.name, plan.method, plan.query_rank, plan, 0.0, before, plan.num_parameters(shape))


@torch.no_grad()
def build_(model: PreTrainedModel, measured: Measured, plan: WholePlan, config: CollabConfig) -> Plans:
    """Give every site of a model its form, in place: heads, then values, then queries and keys.

    Args:
        model: the dense model that was measured.
        measured: statistics of its sites.
        plan: what every site gets.
        config: settings of the solvers.

    Returns:
        The forms that were installed, by section and site.
    """
    plans: Plans = {}
    for name, option in plan.options.items():
        if isinstance(option.plan, AttentionForm):
            _build_attention_(measured.attention[name], measured, option.plan, config, plans)
    for part, name, site in measured.sites_alone():
        if (form := plan.options[name].plan) is not None:
            trial = part.trial(site, config, measured.statistics[part.name][name])
            part.install_(site, trial.solve(form))
            plans.setdefault(part.name, {})[name] = form
    adopt_(model, plans)
    return plans


def _build_attention_(
    site: AttentionSite, measured: Measured, form: AttentionForm, config: CollabConfig, plans: Plans
) -> None:
    moments, query_key = measured.outputs, form.query_key
    if form.heads is not None:
        HEADS.install_(site, HEADS.trial(site, config, moments[site.name]).solve(form.heads))
        plans.setdefault(HEADS.name, {})[site.name] = form.heads
        left = columns_of(form.heads, site.shape.head_dim)
        moments = {site.name: moments_of(moments[site.name], left)}
        site = replace(site, shape=site.family.shape(site.module))
    if form.values is not None:
        VALUES.install_(site, VALUES.trial(site, config, moments[site.name]).solve(form.values))
        plans.setdefault(VALUES.name, {})[site.name] = form.values
        if query_key is None:  # hosts have values as wide as a head; ours take any
            query_key = METHODS["copy"].given(config, site.shape)
    if query_key is not None:
        statistics = measured.inputs.get(site.name)
        solution = QUERY_KEY.solve(site, config, [query_key.check(site.shape, site.name)], statistics)
        QUERY_KEY.install_(site, solution)
        plans.setdefault("layers", {})[site.name] = solution.plan
