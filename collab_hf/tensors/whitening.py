"""The metric in which a score error is measured: a covariance C = L L^T, or the identity."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DecompositionError
from .moments import Moments

# Least damping, relative to the mean variance. With fewer samples than dimensions the covariance is singular;
# its rounding errors reach about size * eps of the largest eigenvalue (size * mean at most), far below this.
_LEAST_DAMPING = 1e-9


@dataclass(frozen=True, eq=False)
class Metric:
    """Changes between an input's own coordinates and ones of unit covariance.

    With x ~ (0, L L^T), E (x w)^2 = ||L^T w||^2.

    Attributes:
        factor: L, lower triangular of shape (size, size), or None for the identity.
    """

    factor: Tensor | None = None

    @classmethod
    def from_moments(cls, moments: Moments | None, damping: float, like: Tensor) -> Metric:
        """The metric of data with these moments.

        Args:
            moments: mean and covariance of an input; None gives the identity.
            damping: added to the variances, relative to their mean (dimensionless, >= 0); at least 1e-9 is
                used, so that directions without variance stay solvable.
            like: weights (H, size, d) that the metric is for; the factor gets their device and dtype.

        Returns:
            The metric; the identity where the covariance is zero, since it can't rank any direction then.

        Raises:
            DecompositionError: moments of another size, or a covariance that is not positive semi-definite.
        """
        if moments is None:
            return cls()
        size = like.shape[1]
        if moments.hidden_size != size:
            raise DecompositionError(
                f"moments must have the layer's input size {size}, got {moments.hidden_size}"
            )
        covariance = moments.covariance
        variance = covariance.diagonal().mean()
        if not bool(variance > 0):
            return cls()
        damped = covariance + max(damping, _LEAST_DAMPING) * variance * torch.eye(size).to(covariance)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if bool(failed) or not bool(torch.isfinite(factor).all()):
            raise DecompositionError("a covariance must be finite and positive semi-definite")
        return cls(factor.to(like))

    def whiten(self, weights: Tensor) -> Tensor:
        """L^T W for weights (..., size, columns)."""
        return weights if self.factor is None else self.factor.T @ weights

    def unwhiten(self, shared: Tensor) -> Tensor:
        """L^-T A for a shared projection (size, rank): back to the input's own coordinates."""
        if self.factor is None:
            return shared
        solved: Tensor = torch.linalg.solve_triangular(self.factor.T, shared, upper=True)
        return solved
