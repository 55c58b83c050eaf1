"""tucker with key groups, or with a core of low rank along the heads, or both.

T_h ~ A G_h B_g^T with g the key group of head h; with a head rank, G_h = sum_s U_hs S_s. The content bias of
head h is c_h B_g^T with c_h free.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .key_groups import cluster_heads, reassign
from .linalg import top_eigenvectors
from .score_tensor import ScoreTensor
from .solution import Solution, converged, relative


@dataclass(frozen=True, eq=False)
class GroupedFactors:
    """One iterate; the core and the content bias follow from it by projection.

    Attributes:
        query: A, orthonormal, (D, R_q).
        keys: B_g, each orthonormal, (groups, E, R_g).
        group: the key group of each head, (H,).
        head: U, orthonormal, (H, r); None for cores of their own.
    """

    query: Tensor
    keys: Tensor
    group: Tensor
    head: Tensor | None

    def seen_keys(self, scores: ScoreTensor) -> Tensor:
        """K_h^T B_g with g the head's group, (H, d, R_g)."""
        every = scores.project_key(torch.cat(list(self.keys), dim=1))
        every = every.view(*every.shape[:2], len(self.keys), -1)
        return every[torch.arange(len(self.group)), :, self.group]

    def cores(self, scores: ScoreTensor) -> Tensor:
        """A^T T_h B_g, (H, R_q, R_g)."""
        return scores.project_query(self.query).mT @ self.seen_keys(scores)

    def biases(self, scores: ScoreTensor) -> Tensor:
        """c_h = l_h B_g, (H, R_g)."""
        return torch.einsum("hj,hjr->hr", scores.content_bias(), self.keys[self.group])

    def error(self, scores: ScoreTensor) -> float:
        """Relative error, that of the content bias included."""
        cores = self.cores(scores).flatten(1)
        held = cores if self.head is None else self.head.T @ cores
        held_bias = self.biases(scores).square().sum()
        total = scores.squared_norm + scores.content_bias().square().sum()
        return relative(total - held.square().sum() - held_bias, scores.squared_norm)


def decompose_grouped_tucker(
    scores: ScoreTensor,
    query_rank: int,
    group_rank: int,
    groups: int,
    head_rank: int | None,
    *,
    seed: int = 0,
    max_sweeps: int = 30,
    tol: float = 1e-4,
) -> Solution:
    """Factor the score tensor into one query subspace, a key subspace per group of heads, and cores.

    Args:
        scores: per-head factors, whitened or not; a query bias is fitted along.
        query_rank: width of the shared query, 1 to query_size.
        group_rank: width of each group's key, 1 to key_size.
        groups: number of key groups, 1 to num_heads.
        head_rank: rank of the core along the heads, 1 to num_heads, or None for a core per head.
        seed: seed of the clustering's random starts.
        max_sweeps: most sweeps.
        tol: stop when a sweep lowers the relative error by less than this fraction of it.

    Returns:
        Factors; shared_key has the groups' keys side by side. `mixing` has `query_core`, `group` where groups
        > 1, and `head` with a head rank.

    Source:
        De Lathauwer, De Moor & Vandewalle 2000, for HOOI; grouped keys as in Ainslie et al. 2023,
        arXiv:2305.13245.
    """
    factors = _start(scores, query_rank, group_rank, groups, seed)
    if head_rank is not None:
        factors = replace(factors, head=_head_basis(factors.cores(scores), head_rank))
    errors = [factors.error(scores)]
    for _ in range(max_sweeps):
        if converged(errors, tol):
            break
        factors = _sweep(scores, factors)
        errors.append(min(factors.error(scores), errors[-1]))
    cores = factors.cores(scores)
    mixing = {} if groups == 1 else {"group": factors.group}
    if factors.head is not None:
        mixing["head"] = factors.head
        cores = torch.einsum("hs,hrw->srw", factors.head, cores)
    mixing["query_core"] = cores.mT.contiguous()
    bias = None if scores.query_bias is None else factors.biases(scores)
    return Solution(factors.query, torch.cat(list(factors.keys), dim=1), mixing, bias, errors)


def _start(scores: ScoreTensor, query_rank: int, group_rank: int, groups: int, seed: int) -> GroupedFactors:
    """Clustered heads and the leading subspaces of the unfoldings."""
    group = cluster_heads(scores, groups, group_rank, seed)
    query = top_eigenvectors(scores.query_gram(scores.key.mT @ scores.key), query_rank)
    inner = scores.query.mT @ scores.query
    if scores.query_bias is not None:
        inner = inner + scores.query_bias.unsqueeze(2) * scores.query_bias.unsqueeze(1)
    keys = [top_eigenvectors(scores.key_gram(_only(inner, group == g)), group_rank) for g in range(groups)]
    return GroupedFactors(query, torch.stack(keys), group, None)


def _only(inner: Tensor, members: Tensor) -> Tensor:
    """Zeros for heads that are not members, (H, d, d)."""
    return inner * members.view(-1, 1, 1)


def _head_basis(cores: Tensor, rank: int) -> Tensor:
    flat = cores.flatten(1)
    return top_eigenvectors(flat @ flat.T, rank)


def _sweep(scores: ScoreTensor, factors: GroupedFactors) -> GroupedFactors:
    """Update A, then every B_g, then the groups or U; each step is exact with the rest fixed."""
    seen = factors.seen_keys(scores)
    if factors.head is None:
        gram = scores.query_gram(seen @ seen.mT)
    else:
        gram = _combined_gram(scores.combine_query, factors.head, seen)
    factors = replace(factors, query=top_eigenvectors(gram, factors.query.shape[1]))
    factors = replace(factors, keys=_updated_keys(scores, factors))
    if factors.head is not None:
        return replace(factors, head=_head_basis(factors.cores(scores), factors.head.shape[1]))
    return replace(factors, group=_updated_groups(scores, factors))


def _combined_gram(combine: Callable[[Tensor], Tensor], head: Tensor, seen: Tensor) -> Tensor:
    """Sum over s of Y_s Y_s^T with Y_s = sum_h U_hs W_h seen_h, for W = W_Q or W_K by `combine`."""
    mixed = combine((head.view(len(head), 1, -1, 1) * seen.unsqueeze(2)).flatten(2))
    return mixed @ mixed.T


def _updated_keys(scores: ScoreTensor, factors: GroupedFactors) -> Tensor:
    """The best B_g with A (and U, or with groups too the whole core) fixed, (groups, E, R_g)."""
    groups, _, rank = factors.keys.shape
    left = scores.project_query(factors.query)  # (H, d, R_q)
    content_bias = scores.content_bias()
    if factors.head is None:
        inner = left @ left.mT
        if scores.query_bias is not None:
            inner = inner + scores.query_bias.unsqueeze(2) * scores.query_bias.unsqueeze(1)
        grams = [scores.key_gram(_only(inner, factors.group == g)) for g in range(groups)]
    elif groups == 1:
        grams = [_combined_gram(scores.combine_key, factors.head, left) + content_bias.T @ content_bias]
    else:
        # The core ties the groups together, so no eigenproblem is left: with the core fixed, the best
        # orthonormal B_g is the polar factor of what it should reproduce (Procrustes).
        cores = torch.einsum("hs,ks,krw->hrw", factors.head, factors.head, factors.cores(scores))
        biases = factors.biases(scores)
        keys = []
        for g in range(groups):
            members = factors.group == g
            target = scores.combine_key(left @ cores * members.view(-1, 1, 1))
            target = target + content_bias[members].T @ biases[members]
            u, _, vh = torch.linalg.svd(target, full_matrices=False)
            keys.append(u @ vh)
        return torch.stack(keys)
    return torch.stack([top_eigenvectors(gram, rank) for gram in grams])


def _updated_groups(scores: ScoreTensor, factors: GroupedFactors) -> Tensor:
    """Each head in the group whose key holds most of its scores."""
    left = scores.project_query(factors.query)
    energies = []
    for g in range(len(factors.keys)):
        trial = replace(factors, group=torch.full_like(factors.group, g))
        cores = left.mT @ trial.seen_keys(scores)
        energies.append(cores.square().sum((1, 2)) + trial.biases(scores).square().sum(1))
    return reassign(torch.stack(energies, dim=1), factors.group)
