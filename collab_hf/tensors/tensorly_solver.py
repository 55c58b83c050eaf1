"""Any CP or Tucker decomposition of tensorly, by name, on the dense tensor."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import torch
from torch import Tensor

from ..errors import DecompositionError
from ..modeling.plan import LayerPlan
from .score_tensor import ScoreTensor
from .solution import Solution, relative


def solve_with_tensorly(
    scores: ScoreTensor, plan: LayerPlan, solver: str, seed: int, max_sweeps: int | None, tol: float
) -> Solution:
    """Decompose with a function of `tensorly.decomposition`.

    Args:
        scores: per-head factors, whitened or not; a query bias is fitted afterwards.
        plan: cp without dims_per_head, or tucker with one key group and score_width = key_rank.
        solver: `tensorly.` and the function's name, such as `tensorly.parafac` or `tensorly.partial_tucker`.
        seed: seed of its random start, where it has one.
        max_sweeps: its n_iter_max; None leaves tensorly's own.
        tol: its tol.

    Returns:
        Factors with one entry of errors.

    Raises:
        DecompositionError: an unknown function, one that gives neither a CP nor a Tucker tensor of three
            modes, a plan of another form, or a failure inside of tensorly.
    """
    function = _find(solver)
    structured = (
        plan.key_groups > 1 or plan.tied or plan.form.mixing(plan) not in ("DiagonalMixing", "CoreMixing")
    )
    if structured or plan.score_width != plan.key_rank:
        raise DecompositionError(
            f"solver {solver} needs method cp without dims_per_head, or tucker with score_width = key_rank, "
            f"no key_groups, not tied, got {plan}"
        )
    if ("tucker" in solver) != (plan.form.container == "tucker"):
        raise DecompositionError(f"solver {solver} does not fit method {plan.method}")
    ranks: Any = plan.query_rank
    options: dict[str, Any] = {"random_state": seed, "tol": tol, "n_iter_max": max_sweeps}
    known = inspect.signature(function).parameters
    if plan.form.container == "tucker":
        ranks = [plan.query_rank, plan.head_rank or scores.shape.num_heads, plan.key_rank]
        if "modes" in known:
            ranks, options["modes"] = [plan.query_rank, plan.key_rank], [0, 2]
    options = {name: value for name, value in options.items() if name in known and value is not None}
    dense = _to_tensorly(scores.to_dense().transpose(0, 1))  # (D, H, E)
    try:
        with warnings.catch_warnings():
            # Its start by SVD says that it fills up with random numbers where a rank is above num_heads.
            warnings.filterwarnings("ignore", message="Trying to compute SVD", category=UserWarning)
            result = function(dense, rank=ranks, **options)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise DecompositionError(f"{solver} failed: {error}") from error
    return _read(result, scores, plan, solver)


def _find(solver: str) -> Any:
    import tensorly.decomposition

    package, _, name = solver.partition(".")
    function = getattr(tensorly.decomposition, name, None)
    if package != "tensorly" or not inspect.isfunction(function):
        raise DecompositionError(
            f"solver must be tensorly. and a function of tensorly.decomposition, such as tensorly.parafac, "
            f"got {solver!r}"
        )
    return function


def _read(result: Any, scores: ScoreTensor, plan: LayerPlan, solver: str) -> Solution:
    """The mixing of a CPTensor or TuckerTensor; partial_tucker gives ((core, factors), errors)."""
    if isinstance(result, tuple) and isinstance(result[0], (tuple, list)):
        result = result[0]
    if len(result) != 2:
        raise DecompositionError(f"{solver} gives neither a CP nor a Tucker tensor")
    core, factors = result
    core = None if core is None else _from_tensorly(core, scores)
    modes = [_from_tensorly(factor, scores) for factor in factors]
    heads = scores.shape.num_heads
    if plan.form.container == "cp":
        if len(modes) != 3 or any(m.shape[1] != plan.query_rank for m in modes):
            raise DecompositionError(f"{solver} must give a CP tensor of rank {plan.query_rank} for cp")
        query, weights, key = modes
        mixing = {"weight": weights if core is None else weights * core}
        cores = torch.diag_embed(mixing["weight"])
    else:
        if core is None or core.dim() != 3 or len(modes) not in (2, 3):
            raise DecompositionError(f"{solver} must give a Tucker tensor for tucker")
        query, head, key = modes if len(modes) == 3 else (modes[0], torch.eye(heads).to(core), modes[1])
        small = core.permute(1, 2, 0)  # (r, R_k, R_q)
        cores = torch.einsum("hs,swr->hrw", head, small)
        mixing = {"query_core": small, "head": head} if plan.head_rank else {"query_core": cores.mT}
    squared_error = (scores.to_dense() - query @ cores @ key.T).square().sum()
    bias = None
    if scores.query_bias is not None:
        content_bias = scores.content_bias()
        bias = torch.linalg.lstsq(key, content_bias.T).solution.T
        squared_error = squared_error + (content_bias - bias @ key.T).square().sum()
    return Solution(query, key, mixing, bias, [relative(squared_error, scores.squared_norm)])


def _to_tensorly(tensor: Tensor) -> Any:
    import tensorly

    return tensorly.tensor(tensor.cpu().numpy())  # numpy is what every backend reads


def _from_tensorly(array: Any, like: ScoreTensor) -> Tensor:
    import tensorly

    return torch.as_tensor(tensorly.to_numpy(array).copy()).to(like.query)
