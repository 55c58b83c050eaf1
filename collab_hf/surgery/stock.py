"""Surgery that leaves a checkpoint of the host's own class: fewer blocks, one width for all feed-forwards."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..calibration.held_out import Batch, split_batches
from ..config import CollabConfig
from ..errors import CalibrationError
from ..host.rollback import undone_on_error
from ..host.stock import check_stock, shapes_by_config
from ..measure.bench import image_length
from ..modeling.families import relative_name
from ..parts.blocks import keep_blocks_
from ..parts.registry import FEED_FORWARDS
from ..planning import Divergence
from ..planning.stock import StockMeasured, StockPlan, given_stock_plan, measure_stock
from ..planning.whole import most_parameters
from ..recovery.blocks import BLOCK_STEPS, BlockReport, reconstruct_blocks_
from .report import CompressionReport, settled
from .report_layers import WholeReport
from .speed import look_for_speed, reported_speedup, speedup


def compress_stock_(
    model: PreTrainedModel,
    config: CollabConfig,
    calibration: Iterable[Batch] | Mapping[str, Any] | None,
    *,
    original: PreTrainedModel | None = None,
    parameters_before: int | None = None,
    progress: bool = False,
) -> CompressionReport:
    """Make a model smaller in place, so that it stays of the host's own class.

    Args:
        model: a dense transformers model; if anything fails, it is left as it was.
        config: portable settings with a target for the whole model, or with plans.
        calibration: batches of model inputs.
        original: a copy of the model; None to make one.
        parameters_before: of the model before its vocabulary was trimmed; None for those that it has.
        progress: whether to draw progress bars on stderr.

    Returns:
        What was done.

    Raises:
        FamilyError: no layer that collab_hf knows, or a config that can't say what is asked for.
        ConfigError: a target that can't be met; the message says the nearest that can.
        CalibrationError: no calibration data, or data that does not run.
        DecompositionError: weights that are not finite.
    """
    seen, held = _split(calibration)
    original = copy.deepcopy(model) if original is None else original
    before = parameters_before or sum(p.numel() for p in model.parameters())
    measured, plan, fast = plan_stock(model, config, seen, held, before, progress=progress)
    plans, dense = measured.plans(plan), measured.dense
    with undone_on_error(model):
        build_stock_(model, measured, plan)
        reports: Sequence[BlockReport] = ()
        if config.reconstruct_steps and plans:
            reports = _reconstruct_(model, original, measured, plan, seen, config, progress)
        loss = Divergence.between(model, original, held)
        speed = reported_speedup(original, model, config)
    counts, length = (dense.operations, plan.operations), image_length(model) or config.length
    whole = WholeReport(plans, length, *counts, tuple(reports), fast, speed, teacher_blocks(measured, plan))
    resolved = settled(config, plans)
    after = sum(p.numel() for p in model.parameters())
    return CompressionReport(
        (),
        before,
        after,
        True,
        resolved,
        None if config.plans else plan.loss,
        loss,
        whole,
        length=length,
        target=config.asked_for,
        portable=True,
    )


def plan_stock(
    model: PreTrainedModel,
    config: CollabConfig,
    seen: Sequence[Batch],
    held: Sequence[Batch],
    before: int,
    *,
    progress: bool = False,
) -> tuple[StockMeasured, StockPlan, float | None]:
    """Choose sizes that meet the target.

    Args:
        model: the dense model; left as it was found.
        config: as for `compress_stock_`.
        seen: model inputs for statistics.
        held: model inputs to measure on.
        before: parameters that the target's share is of.
        progress: whether to draw progress bars on stderr.

    Returns:
        What was measured, the sizes, and how many times as fast they are where that was asked for.
    """
    length = image_length(model) or config.length
    curves = not config.plans
    measured = measure_stock(model, config, seen, held, length, curves=curves, progress=progress)
    if config.plans:
        return measured, given_stock_plan(measured, config.plans), None
    dense = measured.dense
    if config.flops is not None:
        return measured, measured.choose(operations=config.flops * dense.operations), None
    if config.speedup is not None:
        plan, fast = look_for_speed(
            lambda share: measured.choose(operations=share * dense.operations),
            lambda chosen: speedup(model, _sized(model, measured, chosen), config),
            config.speedup,
        )
        return measured, plan, fast
    total = sum(p.numel() for p in model.parameters())
    room = most_parameters(model, config, before) - (total - dense.parameters)
    return measured, measured.choose(parameters=room), None


@torch.no_grad()
def build_stock_(model: PreTrainedModel, measured: StockMeasured, plan: StockPlan) -> None:
    """Give a model its sizes, in place, and have its config say them.

    Args:
        model: the dense model that was measured.
        measured: statistics of its sites.
        plan: the sizes.

    Raises:
        FamilyError: the host's class builds another model from the config.
    """
    built = shapes_by_config(model, model.config) or {}
    sites = measured.sizes.feed_forwards
    for name, solution in measured.solutions(plan).items():
        FEED_FORWARDS.install_(sites[name], solution)
        _forget_marks_(sites[name].around)
    if len(plan.kept) < len(measured.sizes.blocks):
        keep_blocks_(measured.stack, plan.kept)
    measured.sizes.write_(model.config, plan.kept, plan.width)
    check_stock(model, built)


def teacher_blocks(measured: StockMeasured, plan: StockPlan) -> tuple[int, ...]:
    """Blocks of the original whose outputs the blocks that stay are to give.

    A block that stays does the work of those dropped after it too: it is to give what the next one that stays
    read in the original.

    Args:
        measured: the model's sizes.
        plan: which blocks stay.

    Returns:
        One number for each block that stays; none where all do.
    """
    number = len(measured.sizes.blocks)
    if len(plan.kept) == number:
        return ()
    return tuple(after - 1 for after in (*plan.kept[1:], number))


def _reconstruct_(
    model: PreTrainedModel,
    original: PreTrainedModel,
    measured: StockMeasured,
    plan: StockPlan,
    batches: Sequence[Batch],
    config: CollabConfig,
    progress: bool,
) -> list[BlockReport]:
    """Fit each block that stays to the run of the original's blocks that it stands for."""
    names = list(measured.sizes.blocks)
    modules = {relative_name(original, name): module for name, module in original.named_modules()}
    theirs = [modules[name] for name in names]
    ends = teacher_blocks(measured, plan) or plan.kept
    starts = (0, *(end + 1 for end in ends[:-1]))
    mine = {names[number]: measured.sizes.blocks[names[number]] for number in plan.kept}
    runs = {name: theirs[s : e + 1] for name, s, e in zip(mine, starts, ends, strict=True)}
    settings: dict[str, Any] = {"steps": BLOCK_STEPS, "seed": config.seed, "progress": progress}
    return reconstruct_blocks_(model, original, mine, runs, batches, **settings)


def _split(calibration: Any) -> tuple[list[Batch], list[Batch]]:
    if calibration is None or isinstance(calibration, Mapping):
        raise CalibrationError("surgery on the whole model needs batches of model inputs, got none")
    seen, held = split_batches(list(calibration))
    return list(seen), list(held)


def _forget_marks_(around: nn.Module) -> None:
    """The module is the host's own again, as it will be when it is loaded."""
    for module in around.modules():
        for mark in ("collab_plans", "collab_resized"):
            vars(module).pop(mark, None)


@torch.no_grad()
def _sized(model: PreTrainedModel, measured: StockMeasured, plan: StockPlan) -> PreTrainedModel:
    """A copy with the planned sizes, to be timed."""
    with measured.installed(plan):
        return copy.deepcopy(model)
