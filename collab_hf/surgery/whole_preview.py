"""What a target for the whole model would give, without doing it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedModel

from ..calibration.held_out import Batch, split_batches
from ..config import CollabConfig
from ..measure.bench import image_length
from ..planning.measured import measure_parts
from .report import CompressionReport
from .report_layers import WholeReport
from .report_sites import SiteReport, whole_reports
from .stock import plan_stock
from .whole import choose_plan, layer_report


def preview_whole(
    model: PreTrainedModel,
    config: CollabConfig,
    calibration: Iterable[Batch],
    *,
    parameters_before: int | None = None,
    progress: bool = False,
) -> CompressionReport:
    """Choose the forms as `compress_` would for a target of the whole model, and stop there.

    Args:
        model: a dense transformers model; left as it was found.
        config: settings with a target for the whole model.
        calibration: batches of model inputs.
        parameters_before: of the model before its vocabulary was trimmed; None for those that it has.
        progress: whether to draw progress bars on stderr.

    Returns:
        A report with what is planned and predicted, and nothing measured on a result.

    Raises:
        FamilyError: no layer that collab_hf knows, or one that is compressed already.
        ConfigError: a target that can't be met; the message says the nearest that can.
        CalibrationError: calibration data that is empty or does not run.
    """
    seen, held = split_batches(list(calibration))
    total = sum(p.numel() for p in model.parameters())
    before = parameters_before or total
    layers: tuple[Any, ...] = ()
    sites: tuple[SiteReport, ...] = ()
    if config.portable:
        found, sizes, fast = plan_stock(model, config, list(seen), list(held), before, progress=progress)
        plans, loss, operations = found.plans(sizes), sizes.loss, (found.dense.operations, sizes.operations)
        after = total - found.dense.parameters + sizes.parameters
    else:
        measured = measure_parts(model, list(config.planned_parts), config, seen, held, progress=progress)
        chosen = choose_plan(model, measured, list(config.planned_parts), config, before)
        plan, fast = chosen.plan, chosen.speedup
        plans, loss, operations = plan.plans(), plan.predicted_loss, (plan.dense_operations, plan.operations)
        after = total - plan.dense_parameters + plan.parameters
        layers = tuple(layer_report(site, plans) for site in measured.attention.values())
        sites = whole_reports(measured, plan, plans, with_losses=not config.plans)
    length = image_length(model) or config.length
    whole = WholeReport(plans, length, *operations, predicted_speedup=fast)
    return CompressionReport(
        layers,
        before,
        after,
        True,
        config,
        None if config.plans else loss,
        whole=whole,
        sites=sites,
        length=length,
        target=config.asked_for,
        portable=config.portable,
    )
