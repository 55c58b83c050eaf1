"""Surgery on all parts of a model under one budget."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from ..calibration.held_out import Batch, split_batches
from ..config import PART_NAMES, CollabConfig, read_size
from ..errors import CalibrationError, ConfigError
from ..host.adoption import adopt_
from ..host.blocks import blocks
from ..host.rollback import undone_on_error
from ..host.sites import AttentionSite
from ..measure.bench import Case, compare_calls, forward_call, image_length
from ..modeling.modeling_collab import changed_modules
from ..modeling.plans import SECTIONS, Plans, apply_plans_
from ..parts.heads.removal import columns_of
from ..parts.query_key.methods import METHODS
from ..parts.registry import FEED_FORWARDS, HEADS, QUERY_KEY, VALUES
from ..parts.shrunk import moments_of
from ..planning import Divergence
from ..planning.attention_options import AttentionForm
from ..planning.whole import Measured, WholePlan, choose_whole, dense_sizes, given_plan, measure_parts
from ..recovery.blocks import BlockReport, reconstruct_blocks_
from .report import CompressionReport, LayerReport, WholeReport

# Gradient steps for each block, in the place of those for each layer's queries and keys.
BLOCK_STEPS = 60

# Parts that the hosts' own kernels serve: on short inputs their forms can be faster at more operations.
_STOCK = ("heads", "feed_forward", "embeddings")

# Looks for the share of the operations that gives a speed: by the secant rule, until within this of it.
_SPEED_STEPS = 5
_SPEED_SLACK = 0.02
_TIMED_SECONDS = 2.0


def compress_whole_(
    model: PreTrainedModel,
    config: CollabConfig,
    calibration: Iterable[Batch] | Mapping[str, Any] | None,
    *,
    original: PreTrainedModel | None = None,
    progress: bool = False,
) -> CompressionReport:
    """Make all parts of a model smaller under one budget, in place.

    Args:
        model: a dense transformers model; if anything fails, it is left as it was.
        config: settings with a target for the whole model, or with plans.
        calibration: batches of model inputs.
        original: a copy of the model; None to make one.
        progress: whether to draw progress bars on stderr.

    Returns:
        What was done.

    Raises:
        FamilyError: no attention layer that collab_hf knows, or one that is compressed already.
        ConfigError: a target that can't be met; the message says the nearest that can.
        CalibrationError: no calibration data, or data that does not run.
        DecompositionError: weights that are not finite.
    """
    if calibration is None or isinstance(calibration, Mapping):
        raise CalibrationError("surgery on the whole model needs batches of model inputs, got none")
    seen, held = split_batches(list(calibration))
    original = copy.deepcopy(model) if original is None else original
    before = sum(p.numel() for p in model.parameters())
    parts = list(config.parts or PART_NAMES)
    measured = measure_parts(model, parts, config, seen, held, progress=progress)
    chosen = _choose(model, measured, parts, config)
    with undone_on_error(model):
        plans = build_(model, measured, chosen.plan, config)
        reports = _reconstruct_(model, original, seen, config, progress)
        loss = Divergence.between(model, original, held)
        speed = None if config.speedup is None else _speedup(original, model, config)
    whole = WholeReport(
        plans,
        config.length,
        chosen.plan.dense_operations,
        chosen.plan.operations,
        reports,
        chosen.speedup,
        speed,
    )
    layers = tuple(_layer_report(site, plans) for site in measured.attention.values())
    after = sum(p.numel() for p in model.parameters())
    resolved = replace(
        config, speedup=None, flops=None, params=None, size=None, hold_out=True, plans=_settings(plans)
    )
    return CompressionReport(layers, before, after, True, resolved, chosen.plan.predicted_loss, loss, whole)


def _reconstruct_(
    model: PreTrainedModel,
    original: PreTrainedModel,
    batches: Sequence[Batch],
    config: CollabConfig,
    progress: bool,
) -> tuple[BlockReport, ...]:
    if not config.reconstruct_steps:
        return ()
    known = blocks(original)
    mine = blocks(model, known)
    settings: dict[str, Any] = {"steps": BLOCK_STEPS, "seed": config.seed, "progress": progress}
    return tuple(reconstruct_blocks_(model, original, mine, known, batches, **settings))


@dataclass(frozen=True)
class _Chosen:
    plan: WholePlan
    speedup: float | None = None


def _choose(
    model: PreTrainedModel, measured: Measured, parts: Sequence[str], config: CollabConfig
) -> _Chosen:
    """The plan that meets the target with the least loss."""
    length = image_length(model) or config.length
    if config.plans:
        return _Chosen(given_plan(measured, _read_plans(config.plans), length))
    operations, parameters = dense_sizes(measured, length)
    if config.flops is not None:
        return _Chosen(choose_whole(measured, length, operations=config.flops * operations))
    if config.speedup is not None:
        tries = [_at_speed(model, measured.only(p), config, length) for p in _subsets(parts)]
        fitting = [found for found in tries if found is not None]
        if not fitting:
            raise ConfigError(f"no choice of forms is {config.speedup:g} times as fast on this machine")
        return min(fitting, key=lambda found: found.plan.predicted_loss)
    total = sum(p.numel() for p in model.parameters())
    most = (config.params or 1.0) * total
    if config.size is not None:
        itemsize = max(p.element_size() for p in model.parameters())
        most = read_size(config.size) / itemsize * (1 - _HEADER)
    room = most - (total - parameters)
    return _Chosen(choose_whole(measured, length, parameters=room))


# Share of a file of weights that is not weights: names and shapes.
_HEADER = 0.005


def _subsets(parts: Sequence[str]) -> list[tuple[str, ...]]:
    stock = tuple(part for part in parts if part in _STOCK)
    return [tuple(parts)] if stock in ((), tuple(parts)) else [tuple(parts), stock]


def _at_speed(
    model: PreTrainedModel, measured: Measured, config: CollabConfig, length: int
) -> _Chosen | None:
    """The plan of least loss that is as fast as asked for, by timing models of the planned sizes."""
    dense, _ = dense_sizes(measured, length)
    wanted = 1 / float(config.speedup or 1.0)
    share, points = wanted, [(1.0, 1.0)]
    best: _Chosen | None = None
    for _ in range(_SPEED_STEPS):
        try:
            plan = choose_whole(measured, length, operations=share * dense)
        except ConfigError:
            break
        time = 1 / _speedup(model, sized(model, plan.plans()), config)
        points.append((plan.operations / dense, time))
        if time <= wanted and (best is None or plan.predicted_loss < best.plan.predicted_loss):
            best = _Chosen(plan, 1 / time)
        if wanted * (1 - _SPEED_SLACK) <= time <= wanted:
            break
        (x0, y0), (x1, y1) = sorted(points, key=lambda point: abs(point[1] - wanted))[:2]
        slope = (y1 - y0) / (x1 - x0) if x1 != x0 else 1.0
        aim = wanted * (1 - _SPEED_SLACK / 2)
        share = float(np.clip(x0 + (aim - y0) / max(slope, 0.1), share / 2, min(1.0, 1.5 * share)))
    return best


@torch.no_grad()
def sized(model: PreTrainedModel, plans: Plans) -> PreTrainedModel:
    """A model of the planned sizes with numbers of no meaning, to be timed.

    Args:
        model: the dense model; left as it is.
        plans: forms by section and site.

    Returns:
        A copy.
    """
    made = copy.deepcopy(model)
    apply_plans_(made, with_copies(plans, made))
    for _, module in changed_modules(made):
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.02)
    return made


def with_copies(plans: Plans, model: nn.Module) -> Plans:
    """Plans with the form `copy` for queries and keys where values alone are narrower.

    Hosts have values as wide as a head; our attention takes any.

    Args:
        plans: forms by section and site.
        model: the dense model.

    Returns:
        The plans.
    """
    found = {**plans, "layers": dict(plans.get("layers", {}))}
    sites = QUERY_KEY.sites(model)
    for name in plans.get("value_output", {}):
        if name not in found["layers"]:
            heads = plans.get("heads", {}).get(name)
            shape = AttentionForm(heads=heads).shape(sites[name].shape)
            found["layers"][name] = METHODS["copy"].given(CollabConfig(method="copy"), shape)
    return found


def _speedup(original: PreTrainedModel, compressed: PreTrainedModel, config: CollabConfig) -> float:
    """How many times as fast a model is, timed in turns with the original."""
    case = Case(config.batch_size, config.length, threads=torch.get_num_threads())
    calls = [forward_call(model.eval(), case) for model in (original, compressed)]
    with torch.inference_mode():
        return compare_calls(*calls, seconds=_TIMED_SECONDS).throughput.median


def _read_plans(values: Mapping[str, Mapping[str, Any]]) -> Plans:
    unknown = [section for section in values if section not in SECTIONS]
    if unknown:
        raise ConfigError(f"plans has {unknown[0]!r}, but knows {', '.join(SECTIONS)}")
    return {
        section: {name: SECTIONS[section].from_dict(dict(plan), name) for name, plan in plans.items()}
        for section, plans in values.items()
    }


def _settings(plans: Plans) -> dict[str, dict[str, dict[str, Any]]]:
    return {
        section: {name: plan.to_dict() for name, plan in forms.items()} for section, forms in plans.items()
    }


def _layer_report(site: AttentionSite, plans: Plans) -> LayerReport:
    """Queries and keys of one layer before and after."""
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
        elif option.plan is not None:
            site = measured.feed_forward[name]
            trial = FEED_FORWARDS.trial(site, measured.neurons[name])
            FEED_FORWARDS.install_(site, trial.solve(option.plan))
            plans.setdefault(FEED_FORWARDS.name, {})[name] = option.plan
    adopt_(model, plans)
    return plans


def _build_attention_(
    site: AttentionSite, measured: Measured, form: AttentionForm, config: CollabConfig, plans: Plans
) -> None:
    moments, query_key = measured.outputs[site.name], form.query_key
    if form.heads is not None:
        HEADS.install_(site, HEADS.trial(site, moments).solve(form.heads))
        plans.setdefault(HEADS.name, {})[site.name] = form.heads
        moments = moments_of(moments, columns_of(form.heads, site.shape.head_dim))
        site = replace(site, shape=site.family.shape(site.module))
    if form.values is not None:
        VALUES.install_(site, VALUES.trial(site, moments).solve(form.values))
        plans.setdefault(VALUES.name, {})[site.name] = form.values
        if query_key is None:  # hosts have values as wide as a head; ours take any
            query_key = METHODS["copy"].given(config, site.shape)
    if query_key is not None:
        statistics = measured.statistics.get(site.name)
        solution = QUERY_KEY.solve(site, config, [query_key.check(site.shape, site.name)], statistics)
        QUERY_KEY.install_(site, solution)
        plans.setdefault("layers", {})[site.name] = solution.plan
