"""cp with dims_per_head: every head uses k of the shared dimensions, so its score product is only k wide."""

from __future__ import annotations

import torch
from torch import Tensor

from .cp import CPFactors, initial_factors, iterate
from .score_tensor import ScoreTensor
from .solution import Solution, relative

# Dense sweeps first, then steps from all shared dimensions down to dims_per_head (each step keeps the same
# share) with some sweeps at each. On layers of minilm one step instead of ten costs 1 to 2 % of the error,
# and twenty steps gain 0.1 %.
_DENSE_SWEEPS = 20
_SELECTION_STEPS = 10
_SWEEPS_PER_STEP = 4


def decompose_sparse_cp(
    scores: ScoreTensor, rank: int, dims_per_head: int, *, max_sweeps: int = 60, tol: float = 1e-4
) -> Solution:
    """Factor the score tensor into shared projections of which every head uses a few dimensions.

    The dimensions that a head uses are selected from the dense answer step by step: those whose removal costs
    least go first, and all factors adapt in between.

    Args:
        scores: per-head factors, whitened or not; a query bias is fitted along.
        rank: shared query/key width, 1 to num_heads * head_dim.
        dims_per_head: shared dimensions that each head uses, 1 to rank.
        max_sweeps: most sweeps on the final selection; no step before takes more than that either.
        tol: stop when a sweep lowers the relative error by less than this fraction of it.

    Returns:
        Factors with `mixing["index"]` and `mixing["weight"]` of shape (num_heads, dims_per_head), indices
        ascending. errors has the sweeps on the final selection only: the error rises while dimensions go.
    """
    factors, squared_error = initial_factors(scores, rank)
    start = relative(squared_error, scores.squared_norm)
    factors = iterate(scores, factors, [start], max_sweeps=min(_DENSE_SWEEPS, max_sweeps), tol=tol)
    support = torch.arange(rank, device=factors.query.device).expand(len(factors.weights), rank)
    errors: list[float] = []
    for step in range(1, _SELECTION_STEPS + 1):
        count = round(rank * (dims_per_head / rank) ** (step / _SELECTION_STEPS))
        support = select(factors, support, count)
        kept = torch.zeros_like(factors.weights).scatter(1, support, 1.0)
        factors = factors._replace(weights=factors.weights * kept, bias=factors.bias * kept)
        sweeps = max_sweeps if count == dims_per_head else min(_SWEEPS_PER_STEP, max_sweeps)
        errors = [float("inf")]  # the error after cutting a support is not known before the first sweep
        factors = iterate(scores, factors, errors, support=support, max_sweeps=sweeps, tol=tol)
        if count == dims_per_head:
            break
    weight = factors.weights.gather(1, support)
    bias = None if scores.query_bias is None else factors.bias.gather(1, support)
    return Solution(factors.query, factors.key, {"index": support, "weight": weight}, bias, errors[1:])


def removal_costs(factors: CPFactors, support: Tensor) -> Tensor:
    """How much the squared error grows when one head gives up one dimension and refits its others.

    Args:
        factors: the result of a sweep on the support, so that weights and biases are optimal on it.
        support: shared dimensions that each head uses, (H, k).

    Returns:
        Costs (H, k): m^2 / (G_h^-1)_rr with G_h the normal equations of head h, and the same of the bias.

    Source:
        Hassibi & Stork 1992, "Optimal brain surgeon", for the formula.
    """
    key_gram = factors.key.T @ factors.key
    costs = torch.zeros_like(factors.weights).gather(1, support)
    for gram, values in (
        ((factors.query.T @ factors.query) * key_gram, factors.weights),
        (key_gram, factors.bias),
    ):
        block = gram[support.unsqueeze(2), support.unsqueeze(1)]
        diagonal = block.diagonal(dim1=1, dim2=2)
        ridge = torch.finfo(gram.dtype).eps ** (2 / 3) * diagonal + torch.finfo(gram.dtype).tiny
        inverse = torch.linalg.inv(block + torch.diag_embed(ridge)).diagonal(dim1=1, dim2=2)
        costs = costs + values.gather(1, support).square() / inverse
    return costs


def select(factors: CPFactors, support: Tensor, count: int) -> Tensor:
    """Cut every head's support to the dimensions that are worth most, and keep all dimensions in use.

    Args:
        factors: the result of a sweep on the support.
        support: shared dimensions that each head uses, (H, k).
        count: dimensions to keep per head, 1 to k.

    Returns:
        (H, count), ascending. Every shared dimension is used by some head, as far as H * count slots allow.
    """
    worth = torch.full_like(factors.weights, -1.0).scatter(1, support, removal_costs(factors, support))
    kept = torch.zeros_like(worth, dtype=torch.bool).scatter(1, worth.topk(count, dim=1).indices, True)
    for dimension in (~kept.any(dim=0)).nonzero().flatten().tolist():
        # The heads that value the unused dimension most are asked first for one that others use as well.
        for head in worth[:, dimension].argsort(descending=True, stable=True).tolist():
            spare = kept[head] & (kept.sum(dim=0) > 1)
            if bool(spare.any()) and worth[head, dimension] >= 0:
                kept[head, worth[head].where(spare, torch.inf).argmin()] = False
                kept[head, dimension] = True
                break
    return kept.nonzero()[:, 1].view(len(kept), count)
