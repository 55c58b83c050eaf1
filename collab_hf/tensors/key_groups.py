"""Which heads share a key: clusters of heads whose scores need the same key subspace."""

from __future__ import annotations

import torch
from torch import Tensor

from .score_tensor import ScoreTensor
from .svd import slice_svd

# Random starts and rounds of the clustering: each takes milliseconds, and more found nothing better on the
# layers of minilm.
_STARTS = 16
_ROUNDS = 20


def cluster_heads(scores: ScoreTensor, groups: int, group_rank: int, seed: int) -> Tensor:
    """Cluster heads so that one key subspace per group holds most of its heads' scores (k-subspaces).

    All inner products are taken once; the search then works in coordinates of size num_heads * head_dim.

    Args:
        scores: per-head factors, whitened or not.
        groups: number of clusters, 1 to num_heads.
        group_rank: width of each cluster's subspace.
        seed: seed of the random starts.

    Returns:
        The group of each head, (H,), every group in use and numbered by its first head.
    """
    heads = len(scores.query)
    if groups == 1 or groups == heads:
        return torch.arange(heads, device=scores.query.device) % groups
    _, values, right = slice_svd(scores)
    keys = (right * values.unsqueeze(1)).transpose(0, 1)  # (E, H, q)
    inner = torch.tensordot(keys, keys, dims=([0], [0]))  # (H, q, H, q)
    generator = torch.Generator().manual_seed(seed)
    best, most = torch.empty(0, dtype=torch.long), -1.0
    for _ in range(_STARTS):
        # A permutation, so that every group starts with as many heads as the others, or one less.
        assigned = torch.randperm(heads, generator=generator) % groups
        for _ in range(_ROUNDS):
            energy = torch.stack([_energy(inner, assigned == g, group_rank) for g in range(groups)], dim=1)
            moved = reassign(energy.cpu(), assigned)
            if bool((moved == assigned).all()):
                break
            assigned = moved
        captured = float(energy.cpu().gather(1, assigned.unsqueeze(1)).sum())
        if captured > most * (1 + 1e-9):
            best, most = assigned, captured
    return renumber(best).to(scores.query.device)


def _energy(inner: Tensor, members: Tensor, rank: int) -> Tensor:
    """What the best subspace for the members holds of every head's keys, (H,)."""
    heads, width = inner.shape[:2]
    chosen = members.nonzero().flatten().to(inner.device)
    gram = inner[chosen][:, :, chosen].reshape(len(chosen) * width, -1)
    values, vectors = torch.linalg.eigh(gram)
    kept = values > values[-1] * gram.shape[0] * torch.finfo(gram.dtype).eps
    values, vectors = values[kept][-rank:], vectors[:, kept][:, -rank:]
    # Coordinates of all heads' keys in the orthonormal basis Y W values^(-1/2) of the members' keys Y.
    cross = inner[chosen].reshape(len(chosen) * width, heads * width)
    held: Tensor = (vectors.T @ cross / values.sqrt().unsqueeze(1)).square()
    return held.sum(0).view(heads, width).sum(1)


def reassign(energy: Tensor, assigned: Tensor) -> Tensor:
    """Move each head to the group that holds most of it, the last head of a group excepted.

    Args:
        energy: what each group holds of each head, (H, groups).
        assigned: the present group of each head, (H,).

    Returns:
        New groups, (H,).
    """
    moved = assigned.clone()
    for head, group in enumerate(energy.argmax(dim=1).tolist()):
        alone = int((moved == moved[head]).sum()) == 1
        if energy[head, group] > energy[head, moved[head]] and not alone:
            moved[head] = group
    return moved


def renumber(assigned: Tensor) -> Tensor:
    """The same clusters, numbered in the order of their first heads."""
    order: dict[int, int] = {}
    return torch.tensor([order.setdefault(group, len(order)) for group in assigned.tolist()])
