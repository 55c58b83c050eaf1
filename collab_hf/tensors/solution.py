"""What a solver returns, in the coordinates it worked in."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Solution:
    """Factors of a (whitened) score tensor.

    Attributes:
        shared_query: A, shape (query_size, query_rank).
        shared_key: B, shape (key_size, key_rank).
        mixing: the tensors of the plan's `Mixing` by name, without `bias`.
        bias: c_h, the query bias that stands for the content bias, shape (num_heads, score_width); None where
            the tensor had none.
        errors: relative error at the start and after each sweep: the root of ||T - T^||_F^2 + ||l - l^||_F^2
            over ||T||_F, where l is the content bias.
    """

    shared_query: Tensor
    shared_key: Tensor
    mixing: dict[str, Tensor]
    bias: Tensor | None = None
    errors: list[float] = field(default_factory=list)


def relative(squared_error: Tensor, squared_norm: Tensor) -> float:
    """||T - T^|| / ||T|| from squares, 0 for a tensor of zeros; rounding below zero counts as zero."""
    ratio = squared_error.double() / squared_norm.double().clamp_min(torch.finfo(torch.float64).tiny)
    return float(ratio.clamp_min(0).sqrt())


def converged(errors: list[float], tol: float, sweeps: int = 1) -> bool:
    """Whether the last sweeps each lowered the relative error by less than tol of itself on average.

    Args:
        errors: relative errors so far, at least one.
        tol: share of the error, >= 0.
        sweeps: how many sweeps to look back on.

    Returns:
        True there, and where nothing is left to lower.
    """
    if errors[-1] < 1e-7:  # the root of float64's eps: below it errors are rounding
        return True
    return len(errors) > sweeps and errors[-1 - sweeps] - errors[-1] <= sweeps * tol * errors[-1]
