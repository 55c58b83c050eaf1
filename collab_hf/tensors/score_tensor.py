"""`ScoreTensor`: the heads x hidden x hidden tensor of one layer's scores, held by its per-head factors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..errors import DecompositionError
from ..modeling.shapes import AttentionShape
from .linalg import top_eigenvectors
from .whitening import Metric


@dataclass(frozen=True, eq=False)
class ScoreTensor:
    """T_h = W_Q^h W_K^hT for every head h, and the content bias l_h = b_Q^h W_K^hT.

    Nothing here but `to_dense` builds T. Shapes: H num_heads, D query_size, E key_size, d head_dim, R a rank.

    Attributes:
        query: W_Q^h, shape (H, D, d); scores are not divided by sqrt(head_dim).
        key: W_K^h, shape (H, E, d).
        query_bias: b_Q^h, shape (H, d), or None for no content bias.
    """

    query: Tensor
    key: Tensor
    query_bias: Tensor | None = None

    def __post_init__(self) -> None:
        """Refuse factors that do not fit together.

        Raises:
            DecompositionError: shapes or dtypes that differ, or values that are not finite.
        """
        query, key, bias = self.query, self.key, self.query_bias
        fits = query.dim() == key.dim() == 3 and query.shape[::2] == key.shape[::2]
        if bias is not None:
            fits = fits and bias.shape == query.shape[::2]
        if not fits:
            raise DecompositionError(
                "query, key and query_bias must have shapes (H, D, d), (H, E, d) and (H, d), got "
                f"{tuple(query.shape)}, {tuple(key.shape)} and {None if bias is None else tuple(bias.shape)}"
            )
        parts = [query, key] if bias is None else [query, key, bias]
        if not all(part.dtype == query.dtype and part.is_floating_point() for part in parts):
            raise DecompositionError(
                f"query, key and query_bias must share one floating dtype, got {[p.dtype for p in parts]}"
            )
        if not all(bool(torch.isfinite(part).all()) for part in parts):
            raise DecompositionError("query and key weights must be finite, got inf or nan")

    @property
    def shape(self) -> AttentionShape:
        """Sizes of the dense layer."""
        return AttentionShape(self.query.shape[1], self.key.shape[1], *self.query.shape[::2])

    def to(self, dtype: torch.dtype) -> ScoreTensor:
        """The same tensor in another dtype."""
        bias = None if self.query_bias is None else self.query_bias.to(dtype)
        return ScoreTensor(self.query.to(dtype), self.key.to(dtype), bias)

    def to_dense(self) -> Tensor:
        """T itself, (H, D, E), for tests and for solvers that can't do without."""
        return self.query @ self.key.mT

    @cached_property
    def _query_matrix(self) -> Tensor:
        """All heads side by side, (D, H*d): one large matrix product is faster than H small ones."""
        return self.query.transpose(0, 1).flatten(1).contiguous()

    @cached_property
    def _key_matrix(self) -> Tensor:
        return self.key.transpose(0, 1).flatten(1).contiguous()

    @cached_property
    def squared_norm(self) -> Tensor:
        """||T||_F^2, a scalar: the sum over heads of <W_Q^T W_Q, W_K^T W_K>."""
        return ((self.query.mT @ self.query) * (self.key.mT @ self.key)).sum()

    @cached_property
    def _grams(self) -> tuple[Tensor, Tensor]:
        """What each direction of the queries (D, D) and of the keys (E, E) carries, content bias included."""
        query_inner, key_inner = self.query.mT @ self.query, self.key.mT @ self.key
        if self.query_bias is not None:
            query_inner = query_inner + self.query_bias.unsqueeze(2) * self.query_bias.unsqueeze(1)
        return self.query_gram(key_inner), self.key_gram(query_inner)

    @cached_property
    def directions(self) -> tuple[Tensor, Tensor]:
        """Orthonormal bases of the query side (D, D) and the key side (E, E), most of ||T|| first (HOSVD)."""
        query, key = self._grams
        return top_eigenvectors(query, len(query)), top_eigenvectors(key, len(key))

    @cached_property
    def joint_directions(self) -> Tensor:
        """One orthonormal basis (D, D) for both sides, of the same size, most of both together first."""
        query, key = self._grams
        return top_eigenvectors(query + key, len(query))

    def content_bias(self) -> Tensor:
        """l_h, shape (H, E); zeros without a query bias."""
        if self.query_bias is None:
            return self.key.new_zeros(self.key.shape[:2])
        return torch.einsum("hd,hjd->hj", self.query_bias, self.key)

    def project_query(self, shared_query: Tensor) -> Tensor:
        """W_Q^hT A for every head: (D, R) to (H, d, R)."""
        return (self._query_matrix.T @ shared_query).view(*self.query.shape[::2], -1)

    def project_key(self, shared_key: Tensor) -> Tensor:
        """W_K^hT B for every head: (E, R) to (H, d, R)."""
        return (self._key_matrix.T @ shared_key).view(*self.key.shape[::2], -1)

    def combine_query(self, weights: Tensor) -> Tensor:
        """Sum over heads of W_Q^h weights_h: (H, d, R) to (D, R); the adjoint of `project_query`.

        With weights_h = W_K^hT B diag(m_h) this is the MTTKRP of the query mode.
        """
        return self._query_matrix @ weights.flatten(0, 1)

    def combine_key(self, weights: Tensor) -> Tensor:
        """Sum over heads of W_K^h weights_h: (H, d, R) to (E, R); the adjoint of `project_key`."""
        return self._key_matrix @ weights.flatten(0, 1)

    def query_gram(self, inner: Tensor) -> Tensor:
        """Sum over heads of W_Q^h inner_h W_Q^hT: (H, d, d) to (D, D)."""
        return self._query_matrix @ (inner @ self.query.mT).flatten(0, 1)

    def key_gram(self, inner: Tensor) -> Tensor:
        """Sum over heads of W_K^h inner_h W_K^hT: (H, d, d) to (E, E)."""
        return self._key_matrix @ (inner @ self.key.mT).flatten(0, 1)

    def absorb_mean(self, mean: Tensor) -> ScoreTensor:
        """Let the query bias stand for centred inputs: b_h + mean W_Q^h.

        Args:
            mean: mean input of the query projection, shape (D,).

        Returns:
            The same scores as a function of x - mean, exactly, so its content bias is that of an average
            query token.
        """
        shift = torch.einsum("i,hid->hd", mean.to(self.query), self.query)
        return ScoreTensor(
            self.query, self.key, shift if self.query_bias is None else shift + self.query_bias
        )

    def whiten(self, query_metric: Metric, key_metric: Metric) -> ScoreTensor:
        """Change the inputs' coordinates to ones of unit covariance: L_q^T W_Q^h and L_k^T W_K^h.

        Args:
            query_metric: metric of the query projection's input.
            key_metric: metric of the key projection's input.

        Returns:
            The tensor whose Frobenius norm is the root of the expected squared score.
        """
        return ScoreTensor(query_metric.whiten(self.query), key_metric.whiten(self.key), self.query_bias)

    def without_bias(self) -> ScoreTensor:
        """The same tensor without the content bias."""
        return ScoreTensor(self.query, self.key)
