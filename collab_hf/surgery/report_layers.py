"""What a compression did to one layer, and to all parts of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..host.sites import AttentionSite
from ..modeling.plan import LayerPlan
from ..parts.query_key.costs import break_even_length
from ..recovery.blocks import BlockReport
from ..recovery.reconstruction import Reconstruction
from ..tensors.factors import SharedFactors


@dataclass(frozen=True)
class LayerReport:
    """What happened to one attention layer.

    Attributes:
        name: the layer's name relative to the base model.
        method: `cp`, `tucker`, `svd`, `copy`, or `dense` where it was left alone.
        rank: width of the shared query projection.
        plan: every setting of the form; None where dense.
        relative_error: ||T - T^||_F / ||T||_F of the decomposition, whitened by the calibration data where
            there is some.
        qk_parameters_before: weights and biases of the dense query and key projections.
        qk_parameters_after: shared projections, mixing and content bias.
        break_even_length: tokens from which the form takes more operations than dense; None for never.
        output_error: relative error of the attention output after decomposition and after reconstruction,
            on calibration tokens that no gradient step saw (the statistics did, and they chose between
            stages); None without reconstruction.
    """

    name: str
    method: str
    rank: int
    plan: LayerPlan | None
    relative_error: float
    qk_parameters_before: int
    qk_parameters_after: int
    break_even_length: int | None = None
    output_error: tuple[float, float] | None = None

    @classmethod
    def of(
        cls, site: AttentionSite, factors: SharedFactors | None, better: Reconstruction | None
    ) -> LayerReport:
        """Report on one layer.

        Args:
            site: the layer, with the sizes that it had.
            factors: its decomposition; None where it was left dense.
            better: its reconstruction, if there was one.

        Returns:
            The report.
        """
        name, shape, before = site.name, site.shape, site.shape.dense_parameters
        if factors is None:
            return cls(name, "dense", shape.full_rank, None, 0.0, before, before)
        plan = factors.plan
        costly_from = break_even_length(plan, shape)
        return cls(
            name,
            plan.method,
            plan.query_rank,
            plan,
            factors.relative_error,
            before,
            factors.num_parameters,
            None if math.isinf(costly_from) else math.ceil(costly_from),
            None if better is None else (better.error_before, better.error_after),
        )


@dataclass(frozen=True)
class WholeReport:
    """What happened to all parts of a model under one budget.

    Attributes:
        plans: forms by part and module, as config.json keeps them.
        length: tokens of the sequence that operations are counted for.
        operations_before: floating-point operations of all layers for one sequence, two a multiply-add.
        operations_after: the same afterwards.
        blocks: relative error of each block's output before and after reconstruction, on held-out
            calibration examples; empty without reconstruction.
        predicted_speedup: of the forms, on this machine; None where speed was not asked for.
        measured_speedup: of the compressed model, timed in turns with the original at the settings' length
            and batch size; None where random inputs of that length do not run, or a pass takes too long.
        teacher_blocks: numbers of the original's blocks whose outputs the blocks that stay are to give; none
            where no block was dropped.
    """

    plans: Mapping[str, Mapping[str, Any]]
    length: int
    operations_before: int
    operations_after: int
    blocks: tuple[BlockReport, ...] = ()
    predicted_speedup: float | None = None
    measured_speedup: float | None = None
    teacher_blocks: tuple[int, ...] = ()
