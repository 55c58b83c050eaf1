"""Taking columns out of a least-squares problem one after another: what the surgeon computes with.

Throughout, H = C + d I; W_K' = W_K + W_R C_RK (C_KK + d I)^-1 is what the kept columns K become without R.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import DecompositionError

# Candidates for each column of a block. Columns that stand in for each other (duplicates) all look free until
# one of them is gone, so a block is chosen one by one among several times as many.
_POOL = 4

# A downdated diagonal entry that fell to this share of its fresh value has lost 7 of 16 digits (or its sign).
_WORN = 1e-7


class Columns:
    """The columns that are left while others go.

    Positions are permuted: a column that goes is overwritten by the last one, which spares copies of the
    whole inverse. `names` tells which column stands where.
    """

    def __init__(self, covariance: Tensor, weight: Tensor, ridge: float) -> None:
        self.covariance, self.all, self.ridge = covariance, weight, ridge
        self.names = torch.arange(weight.shape[1], device=weight.device)
        self.renew()

    def renew(self) -> None:
        """Compute everything afresh for the columns that are left."""
        kept = self.names
        left_out = self.all.clone()
        left_out[:, kept] = 0
        self.inverse = torch.cholesky_inverse(damped_factor(self.covariance, kept, self.ridge))
        self.dense = self.all[:, kept]
        self.weight, self.error = self.dense.clone(), 0.0
        if len(kept) < self.all.shape[1]:
            change = (left_out @ self.covariance)[:, kept] @ self.inverse
            self.weight += change
            left_out[:, kept] = -change
            self.error = output_variance(self.covariance, left_out)
        self.worn = _WORN * self.inverse.diagonal()

    def renew_if_worn(self) -> None:
        """Start afresh where downdates have cancelled too many digits."""
        if bool((self.inverse.diagonal() <= self.worn).any()):
            self.renew()

    def cheapest(self, count: int) -> Tensor:
        """Positions of columns to remove next, in this order: exact greedy choice within a pool."""
        scores = (self.weight * self.weight).sum(0) / self.inverse.diagonal()
        pool = scores.argsort(stable=True)[: _POOL * count]
        inverse, weight = self.inverse[pool][:, pool], self.weight[:, pool]
        gram = weight.T @ weight
        taken = torch.zeros(len(pool), dtype=torch.bool, device=pool.device)
        chosen = []
        for _ in range(count):
            scores = gram.diagonal() / inverse.diagonal()
            first = int(scores.masked_fill(taken, float("inf")).argmin())
            chosen.append(first)
            taken[first] = True
            # w_k becomes w_k - w_j r_k, with r = [H^-1]_j / [H^-1]_jj
            ratio = inverse[first] / inverse[first, first]
            inverse = inverse - torch.outer(ratio, inverse[first])
            gram = gram - torch.outer(ratio, gram[first])
            gram = gram - torch.outer(gram[:, first], ratio)
        return pool[chosen]

    def cheapest_group(self, group: int) -> Tensor:
        """Positions of the group of neighbouring columns to remove next."""
        shape = (len(self.names) // group, group)
        blocks = self.inverse.unflatten(1, shape).unflatten(0, shape).diagonal(dim1=0, dim2=2).movedim(-1, 0)
        parts = self.weight.unflatten(1, shape).permute(1, 2, 0)
        scores = torch.linalg.solve_triangular(cholesky(blocks), parts, upper=False).square().sum((1, 2))
        return int(scores.argmin()) * group + torch.arange(group, device=scores.device)

    def remove(self, chosen: Tensor) -> Tensor:
        """Remove columns by position; the squared errors after the first, the second, ... of them.

        With H^-1_SS = L L^T, X = L^-1 H^-1_S: and U = W_S L^-T, the t-th column takes U_t X_t off W and
        X_t^T X_t off H^-1. That costs ||U_t||^2 in the metric of H; the share of d in it, d times the growth
        of ||W' - W||^2, is no error of the output.
        """
        factor = cholesky(self.inverse[chosen][:, chosen])
        rows = torch.linalg.solve_triangular(factor, self.inverse[chosen], upper=False)
        parts = torch.linalg.solve_triangular(factor, self.weight[:, chosen].T, upper=False)
        cross = (parts @ parts.T) * (rows @ rows.T)
        drift = (parts * (rows @ (self.dense - self.weight).T)).sum(1)
        growth = cross.diagonal() + 2 * (cross.tril(-1).sum(1) + drift)
        errors: Tensor = self.error + (parts.square().sum(1) - self.ridge * growth).cumsum(0)
        self.error = float(errors[-1])
        self.inverse.addmm_(rows.T, rows, alpha=-1)
        self.weight.addmm_(parts.T, rows, alpha=-1)
        self._overwrite(chosen)
        return errors

    def _overwrite(self, chosen: Tensor) -> None:
        """Move the last columns to where columns were removed, and drop the end."""
        size = len(self.names) - len(chosen)
        stays = torch.ones(len(self.names), dtype=torch.bool, device=chosen.device)
        stays[chosen] = False
        holes, tail = chosen[chosen < size], size + stays[size:].nonzero().flatten()
        self.inverse[holes] = self.inverse[tail]
        for values in (self.inverse, self.weight, self.dense, self.names, self.worn):
            values[..., holes] = values[..., tail]
        self.inverse = self.inverse[:size, :size]
        self.weight, self.dense = self.weight[:, :size], self.dense[:, :size]
        self.names, self.worn = self.names[:size], self.worn[:size]


def weight_change(covariance: Tensor, weight: Tensor, kept: Tensor, gone: Tensor, ridge: float) -> Tensor:
    """What the kept columns take over from those that are gone: W_R C_RK (C_KK + d I)^-1."""
    target = weight[:, gone] @ covariance[gone][:, kept]
    change: Tensor = torch.cholesky_solve(target.T, damped_factor(covariance, kept, ridge)).T
    return change


def damped_factor(covariance: Tensor, kept: Tensor, ridge: float) -> Tensor:
    """Lower Cholesky factor of C_KK + d I."""
    damped = covariance[kept][:, kept]
    damped.diagonal().add_(ridge)
    return cholesky(damped)


def cholesky(matrices: Tensor) -> Tensor:
    """Lower Cholesky factors, (..., n, n), or a DecompositionError."""
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(matrices)
    if bool(failed.any()):
        raise DecompositionError("a covariance must be positive semi-definite; are its rows centred?")
    return factor


def output_variance(covariance: Tensor, weight: Tensor) -> float:
    """Expected squared size tr(W C W^T) of the centred output."""
    return float((weight @ covariance * weight).sum())
