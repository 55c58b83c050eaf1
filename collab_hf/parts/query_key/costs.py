"""What a form costs to run: multiply-adds of the query, the key and the scores."""

from __future__ import annotations

import math

from ...modeling.plan import AttentionShape, LayerPlan


def projection_flops(plan: LayerPlan | None, shape: AttentionShape) -> int:
    """Floating-point operations per token for queries and keys, the part that does not grow with the length.

    Args:
        plan: the layer's form, or None for dense.
        shape: sizes of the dense layer.

    Returns:
        Two operations for each multiply-add. Values and outputs, the same in every form, are not counted.
    """
    if plan is None:
        return 2 * (shape.dense_parameters - shape.biases)
    count = shape.query_size * plan.query_rank + (0 if plan.tied else shape.key_size * plan.key_rank)
    heads, width = shape.num_heads, plan.score_width
    if plan.content_bias == "exact":
        count += shape.key_size * heads
    if plan.method == "cp":
        count += heads * width
    if plan.method == "tucker":
        count += heads * width * plan.query_rank
        if plan.narrows_keys:
            count += heads * width * plan.key_rank
    return 2 * count


def attention_flops(plan: LayerPlan | None, shape: AttentionShape, length: int) -> int:
    """Floating-point operations for queries, keys and scores of one sequence.

    Kernels pad score widths below head_dim with zeros, so time falls less than this count does.

    Args:
        plan: the layer's form, or None for dense.
        shape: sizes of the dense layer.
        length: tokens in the sequence, each attending all of them.

    Returns:
        Two operations for each multiply-add.
    """
    width = shape.head_dim if plan is None else plan.score_width
    return length * projection_flops(plan, shape) + 2 * shape.num_heads * width * length**2


def break_even_length(plan: LayerPlan | None, shape: AttentionShape) -> float:
    """Sequence length from which the form takes more operations than the dense layer.

    Args:
        plan: the layer's form, or None for dense.
        shape: sizes of the dense layer.

    Returns:
        Tokens; inf where the form is never dearer, 0 where it is so from the first token on.
    """
    if plan is None:
        return math.inf
    saved = projection_flops(None, shape) - projection_flops(plan, shape)
    dearer = 2 * shape.num_heads * (plan.score_width - shape.head_dim)
    if dearer <= 0:
        return 0.0 if saved < 0 else math.inf
    return max(0.0, saved / dearer)
