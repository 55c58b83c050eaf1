"""Small dense linear algebra that the solvers share; every function is deterministic, signs included."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import DecompositionError


def fix_signs(columns: Tensor) -> Tensor:
    """The sign of each column that makes its entry of largest magnitude positive.

    Eigen- and singular vectors are defined up to a sign, which libraries choose differently.

    Args:
        columns: shape (..., rows, columns).

    Returns:
        Signs of shape (..., 1, columns), +1 or -1.
    """
    peak = columns.abs().argmax(dim=-2, keepdim=True)
    return torch.where(columns.gather(-2, peak) < 0, -1.0, 1.0).to(columns)


def top_eigenvectors(gram: Tensor, count: int) -> Tensor:
    """Orthonormal eigenvectors of the largest eigenvalues.

    Args:
        gram: symmetric positive semi-definite, shape (size, size).
        count: how many, between 1 and size.

    Returns:
        Shape (size, count), largest eigenvalue first.
    """
    vectors: Tensor = torch.linalg.eigh(gram)[1][:, -count:].flip(-1)
    return vectors * fix_signs(vectors)


def leading_directions(root: Tensor, count: int) -> Tensor:
    """Orthonormal eigenvectors of the largest eigenvalues of root @ root^T, from what is smaller of the two.

    Args:
        root: shape (size, columns).
        count: how many, between 1 and size.

    Returns:
        Shape (size, count), largest eigenvalue first.
    """
    if not count <= root.shape[1] < root.shape[0]:
        return top_eigenvectors(root @ root.T, count)
    basis, core = torch.linalg.qr(root)
    vectors: Tensor = basis @ top_eigenvectors(core @ core.T, count)
    return vectors * fix_signs(vectors)


def better_subspace(root: Tensor, basis: Tensor) -> Tensor:
    """A basis that holds more of root @ root^T than the one given, or as much: one Rayleigh-Ritz step.

    It takes the best directions of span[basis, gram(basis)], for much less than a full eigendecomposition.

    Args:
        root: shape (size, columns); its Gram matrix is never formed.
        basis: orthonormal columns, (size, count).

    Returns:
        Orthonormal columns, (size, count), largest Ritz value first.

    Source:
        Knyazev 2001, "Toward the optimal preconditioned eigensolver", without preconditioner or memory.
    """
    span: Tensor = torch.linalg.qr(torch.cat([basis, root @ (root.T @ basis)], dim=1))[0]
    small = root.T @ span
    vectors = torch.linalg.eigh(small.T @ small)[1][:, -basis.shape[1] :].flip(-1)
    better: Tensor = span @ vectors
    return better * fix_signs(better)


def product_svd(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin singular value decomposition of left @ right^T, without forming the product.

    Args:
        left: shape (..., m, d).
        right: shape (..., n, d).

    Returns:
        U (..., m, q), singular values (..., q) from large to small, V (..., n, q), with q = min(m, n, d);
        left @ right^T = U diag(s) V^T.
    """
    left_basis, left_core = torch.linalg.qr(left)
    right_basis, right_core = torch.linalg.qr(right)
    u, values, vh = torch.linalg.svd(left_core @ right_core.mT, full_matrices=False)
    u = left_basis @ u
    signs = fix_signs(u)
    return u * signs, values, right_basis @ vh.mT * signs


def solve_proximal(gram: Tensor, target: Tensor, start: Tensor) -> Tensor:
    """Least squares by normal equations that stay near the start where the data says nothing.

    Minimises <X gram, X> - 2 <X, target> + a tiny weighted ||X - start||^2. Unlike a ridge, the extra term
    vanishes at the solution of an iteration, so every step lowers the objective and the fixed points are
    those of plain least squares, with a singular gram too.

    Args:
        gram: symmetric positive semi-definite, shape (..., r, r).
        target: shape (..., n, r).
        start: shape (..., n, r).

    Returns:
        X of the target's shape.

    Raises:
        DecompositionError: gram is not positive semi-definite or not finite.
    """
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    # eps^(2/3): small beside the data, yet large beside the rounding of a nearly singular gram. The floor
    # keeps columns whose own diagonal is zero (unused dimensions) where they are.
    weight = torch.finfo(gram.dtype).eps ** (2 / 3)
    floor = 1e-6 * diagonal.mean(dim=-1, keepdim=True) + torch.finfo(gram.dtype).tiny
    for _ in range(4):
        proximal = weight * torch.maximum(diagonal, floor)
        factor, failed = torch.linalg.cholesky_ex(gram + torch.diag_embed(proximal))
        if not bool(failed.any()):
            step = torch.cholesky_solve((target - start @ gram).mT, factor).mT
            return start + step
        weight *= 1e3
    raise DecompositionError("normal equations that are not positive semi-definite; are the weights finite?")
