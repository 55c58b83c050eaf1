"""Checks of sizes and inputs that both attention modules make, and how they print."""

from __future__ import annotations

from torch import Tensor

from ..errors import ConfigError, LayerError
from ..modeling.plan import LayerPlan
from ..modeling.shapes import AttentionShape


def checked_head_dim(hidden_size: int, num_heads: int, head_dim: int | None) -> int:
    """The width of one head.

    Args:
        hidden_size: width of the input.
        num_heads: number of heads.
        head_dim: any width, or None for hidden_size / num_heads.

    Returns:
        The width.

    Raises:
        ConfigError: sizes below 1, or hidden_size that is no multiple of num_heads where head_dim is None.
    """
    if min(hidden_size, num_heads, 1 if head_dim is None else head_dim) < 1:
        raise ConfigError(
            f"hidden_size, num_heads and head_dim must be at least 1, got {hidden_size}, {num_heads} and "
            f"{head_dim}"
        )
    if head_dim is None and hidden_size % num_heads:
        raise ConfigError(
            f"hidden_size must be a multiple of num_heads, got {hidden_size} and {num_heads}; "
            "or give head_dim"
        )
    return head_dim or hidden_size // num_heads


def checked_dropout(dropout: float) -> float:
    """A probability.

    Args:
        dropout: in [0, 1].

    Returns:
        The same.

    Raises:
        ConfigError: outside of [0, 1].
    """
    if not 0 <= dropout <= 1:
        raise ConfigError(f"dropout must be between 0 and 1, got {dropout}")
    return dropout


def describe(shape: AttentionShape, plan: LayerPlan) -> str:
    """A layer's sizes as `print` shows them.

    Args:
        shape: sizes with heads of their own.
        plan: the form.

    Returns:
        One line.
    """
    ranks = f"{plan.query_rank}x{plan.key_rank}" if plan.query_rank != plan.key_rank else f"{plan.query_rank}"
    return (
        f"{shape.query_size}, num_heads={shape.num_heads}, head_dim={shape.head_dim}, "
        f"{plan.form_name} {ranks}, score_width={plan.score_width}"
    )


def check_inputs(
    query: Tensor, key: Tensor, value: Tensor, widths: tuple[int, int, int], batch_first: bool
) -> None:
    """Refuse inputs that nn.MultiheadAttention would refuse.

    Args:
        query: batched with three dimensions, or unbatched with two.
        key: the same.
        value: the same.
        widths: last dimensions that they must have.
        batch_first: whether the first of three dimensions is the batch, rather than the second.

    Raises:
        LayerError: shapes that do not fit.
    """
    if query.dim() not in (2, 3) or not query.dim() == key.dim() == value.dim():
        raise LayerError(
            "query, key and value must all have 2 or all have 3 dimensions, got "
            f"{query.dim()}, {key.dim()} and {value.dim()}"
        )
    got = (query.shape[-1], key.shape[-1], value.shape[-1])
    if got != widths:
        raise LayerError(f"query, key and value must have widths {widths}, got {got}")
    batch = 0 if batch_first else 1
    fits = key.shape[:-1] == value.shape[:-1]
    if not fits or (query.dim() == 3 and query.shape[batch] != key.shape[batch]):
        raise LayerError(
            "query, key and value must have one batch size, and key and value one length, got shapes "
            f"{tuple(query.shape)}, {tuple(key.shape)} and {tuple(value.shape)}"
        )
