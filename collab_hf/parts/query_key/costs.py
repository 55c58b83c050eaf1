"""What a form of query and key costs to run: floating-point operations, two for each multiply-add."""

from __future__ import annotations

import math

from ...modeling.plan import LayerPlan
from ...modeling.shapes import AttentionShape


def _projections(plan: LayerPlan | None, shape: AttentionShape) -> int:
    return shape.dense_operations if plan is None else plan.projection_operations(shape)


def attention_operations(plan: LayerPlan | None, shape: AttentionShape, length: int) -> int:
    """Operations for queries, keys and scores of one sequence; values and outputs are not counted.

    Kernels pad score widths below head_dim with zeros, so time falls less than this count does.

    Args:
        plan: the layer's form, or None for dense.
        shape: sizes of the dense layer.
        length: tokens in the sequence, each attending all of them.

    Returns:
        Two operations for each multiply-add.
    """
    width = shape.head_dim if plan is None else plan.score_width
    return length * _projections(plan, shape) + 2 * shape.num_heads * width * length**2


def break_even_length(plan: LayerPlan | None, shape: AttentionShape) -> float:
    """Sequence length from which the form takes more operations than the dense layer.

    Args:
        plan: the layer's form, or None for dense.
        shape: sizes of the dense layer.

    Returns:
        Tokens; inf where the form never costs more, 0 where it does from the first token on.
    """
    if plan is None:
        return math.inf
    saved = shape.dense_operations - plan.projection_operations(shape)
    added = 2 * shape.num_heads * (plan.score_width - shape.head_dim)
    if added <= 0:
        return 0.0 if saved < 0 else math.inf
    return max(0.0, saved / added)
