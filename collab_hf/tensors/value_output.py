"""Narrower values: fewer dimensions per head between the value and the output projection.

A head's output z_h, an average of its values W_V^h x + b_V^h, is seen through W_O^h alone. With its
covariance C_h = L_h L_h^T, the singular value decomposition W_O^h L_h = U S V^T orders the directions of
z_h by what they add to the layer's output. In the coordinates V^T L_h^-1 z_h, narrowing is to keep the
first columns of every head; the output projection is refitted over the kept columns of all heads together.
All is float64; the caller casts back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DecompositionError, RankError
from .linalg import top_eigenvectors
from .moments import Moments
from .surgeon import checked_output_weights, checked_weight, path_error, refit, ridge


@dataclass(frozen=True, eq=False)
class NarrowedValues:
    """Value and output projections with fewer dimensions per head, heads in their order.

    Attributes:
        value_weight: W_V of shape (num_heads * width, hidden_size), float64; every row has the root mean
            square of the dense weights.
        value_bias: b_V of shape (num_heads * width,), or None where the dense layer has none.
        output_weight: W_O of shape (out, num_heads * width).
        output_bias: b_O of shape (out,); it takes up the mean of what is lost.
        error: expected squared output error, relative to the variance of the dense output.
    """

    value_weight: Tensor
    value_bias: Tensor | None
    output_weight: Tensor
    output_bias: Tensor
    error: float


def narrow_values(
    moments: Moments,
    value_weight: Tensor,
    value_bias: Tensor | None,
    output_weight: Tensor,
    output_bias: Tensor | None,
    num_heads: int,
    width: int,
    damping: float = 1e-4,
    *,
    output_weights: Tensor | None = None,
) -> NarrowedValues:
    """Keep the directions of each head's values that matter most to the output.

    Args:
        moments: mean and covariance of the concatenated head outputs (the input of the output projection), of
            size num_heads * head_dim.
        value_weight: W_V of shape (num_heads * head_dim, hidden_size), any floating dtype.
        value_bias: b_V of shape (num_heads * head_dim,) or None.
        output_weight: W_O of shape (out, num_heads * head_dim).
        output_bias: b_O of shape (out,); None counts as zeros.
        num_heads: number of heads.
        width: dimensions that each head keeps, 1 to head_dim.
        damping: ridge of the refit relative to the mean variance (dimensionless); at least 1e-9 is used. It
            pulls towards each head's own best answer, so the error is never above that one's.
        output_weights: how much each output counts, s of shape (out,); None counts all alike.

    Returns:
        The narrowed projections; at width = head_dim the dense ones, bit by bit.

    Raises:
        DecompositionError: shapes that don't fit together, values that are not finite, or a covariance that
            is not positive semi-definite.
        RankError: width outside of 1 to head_dim, or num_heads that does not divide the columns.
    """
    turned = _turn(moments, output_weight, num_heads, output_weights)
    value_weight, value_bias = _checked_values(turned.output_weight, value_weight, value_bias)
    kept = _first(turned, num_heads, width)
    if len(kept) == moments.hidden_size:
        columns = torch.arange(len(kept), device=kept.device)
        output_weight, output_bias = refit(moments, output_weight, output_bias, columns)
        return NarrowedValues(value_weight, value_bias, output_weight, output_bias, 0.0)
    output_weight, output_bias = refit(
        turned.moments, turned.output_weight, output_bias, kept, damping=damping
    )
    error = path_error(
        turned.moments, turned.output_weight, kept, damping=damping, output_weights=output_weights
    )
    basis = turned.basis[kept]
    narrow = basis @ value_weight
    # In these coordinates each value has unit variance, whatever its weights: give them the size they had.
    size = narrow.square().mean(1).sqrt()
    scale = torch.where(size > 0, value_weight.square().mean().sqrt() / size, 1.0)
    bias = None if value_bias is None else basis @ value_bias * scale
    return NarrowedValues(narrow * scale.unsqueeze(1), bias, output_weight / scale, output_bias, error)


def narrowing_errors(
    moments: Moments,
    output_weight: Tensor,
    num_heads: int,
    widths: Sequence[int],
    damping: float = 1e-4,
    *,
    output_weights: Tensor | None = None,
) -> list[float]:
    """What `narrow_values` loses at several widths, without building the weights.

    Args:
        moments: as for `narrow_values`.
        output_weight: W_O of shape (out, num_heads * head_dim).
        num_heads: number of heads.
        widths: dimensions that each head keeps, each 1 to head_dim.
        damping: as for `narrow_values`.
        output_weights: as for `narrow_values`.

    Returns:
        The relative expected squared output error of each width.

    Raises:
        DecompositionError: as `narrow_values`.
        RankError: as `narrow_values`.
    """
    turned = _turn(moments, output_weight, num_heads, output_weights)
    return [
        path_error(
            turned.moments,
            turned.output_weight,
            _first(turned, num_heads, width),
            damping=damping,
            output_weights=output_weights,
        )
        for width in widths
    ]


@dataclass(frozen=True, eq=False)
class _Turned:
    """The problem in coordinates where each head's directions are in order of importance.

    Attributes:
        basis: block-diagonal B, (num_heads * head_dim, num_heads * head_dim), in which z becomes B z.
        moments: those of B z.
        output_weight: W_O B^-1.
    """

    basis: Tensor
    moments: Moments
    output_weight: Tensor


def _turn(moments: Moments, output_weight: Tensor, num_heads: int, output_weights: Tensor | None) -> _Turned:
    """Order the directions of each head's outputs by what they add to the output."""
    weight = checked_weight(moments, output_weight)
    if num_heads < 1 or moments.hidden_size % num_heads:
        raise RankError(f"num_heads must divide the {moments.hidden_size} columns, got {num_heads}")
    head_dim = moments.hidden_size // num_heads
    weighted = checked_output_weights(weight, output_weights)
    # The least damping, so that L has an inverse: more would put directions first that the data doesn't show.
    small = ridge(moments, 0.0) * torch.eye(head_dim).to(weight)
    blocks, inverses = [], []
    for columns in torch.arange(moments.hidden_size, device=weight.device).split(head_dim):
        factor, failed = torch.linalg.cholesky_ex(moments.covariance[columns][:, columns] + small)
        if bool(failed):
            raise DecompositionError("a covariance must be positive semi-definite; are its rows centred?")
        seen = weighted[:, columns] @ factor
        order = top_eigenvectors(seen.T @ seen, head_dim)  # V of the singular value decomposition
        inverses.append(factor @ order)
        blocks.append(torch.linalg.solve_triangular(factor.T, order, upper=True).T)
    basis: Tensor = torch.block_diag(*blocks)
    covariance = basis @ moments.covariance @ basis.T
    turned = Moments(basis @ moments.mean, (covariance + covariance.T) / 2, moments.count)
    return _Turned(basis, turned, weight @ torch.block_diag(*inverses))


def _first(turned: _Turned, num_heads: int, width: int) -> Tensor:
    """Indices of the first columns of every head."""
    head_dim = len(turned.basis) // num_heads
    if not 1 <= width <= head_dim:
        raise RankError(f"width must be between 1 and head_dim = {head_dim}, got {width}")
    columns = torch.arange(len(turned.basis), device=turned.basis.device)
    return columns.view(num_heads, head_dim)[:, :width].flatten()


def _checked_values(like: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The value projection in float64, or a DecompositionError where it doesn't fit the output projection."""
    size = like.shape[1]
    if weight.dim() != 2 or len(weight) != size or not bool(torch.isfinite(weight).all()):
        raise DecompositionError(
            f"value_weight must be finite and of shape ({size}, hidden_size), got shape {tuple(weight.shape)}"
        )
    if bias is None:
        return weight.detach().to(like), None
    if bias.shape != (size,) or not bool(torch.isfinite(bias).all()):
        raise DecompositionError(
            f"value_bias must be finite and of shape {(size,)}, got shape {tuple(bias.shape)}"
        )
    return weight.detach().to(like), bias.detach().to(like)
