"""What all mixings have in common.

Shapes as in mixing.py. This file ships with saved checkpoints: it imports torch alone.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .kernels import is_native
from .plan import LayerPlan


class Mixing(nn.Module):
    """Base: turns shared queries and keys into per-head ones.

    Args:
        plan: the layer's form.
        num_heads: number of heads.

    Attributes:
        bias: the folded content bias, a query bias of (num_heads, score_width); None where exact.
    """

    def __init__(self, plan: LayerPlan, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_rank = plan.query_rank
        self.key_rank = plan.key_rank
        self.score_width = plan.score_width
        folded = plan.content_bias == "folded"
        self.bias = nn.Parameter(torch.zeros(num_heads, plan.score_width)) if folded else None

    def forward(self, what: str, *args: Any) -> Any:
        """What one of the methods gives, by a call that hooks see: accelerate's bring weights from disk.

        Args:
            what: the method's name.
            *args: its arguments.

        Returns:
            What the method returns.
        """
        return getattr(self, what)(*args)

    def queries(self, shared: Tensor, width: int) -> Tensor:
        """Per-head queries.

        Args:
            shared: (B, T, query_rank).
            width: last dimension of the result, >= score_width; the rest is zero.

        Returns:
            (B, num_heads, T, width).
        """
        raise NotImplementedError

    def keys(self, shared: Tensor, width: int) -> Tensor:
        """Per-head keys, or the one key that all heads share.

        Args:
            shared: (B, T, key_rank).
            width: last dimension of the result, >= score_width; the rest is zero.

        Returns:
            (B, G, T, width) with G = 1 or num_heads.
        """
        raise NotImplementedError

    def queries_and_keys(self, query: Tensor, key: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What `queries` and `keys` give at the score's own width, for plain products on a CPU at inference.

        Args:
            query: (B, T, query_rank).
            key: (B, S, key_rank); where it is the query itself, one product may serve both.
            dtype: that of the results.

        Returns:
            Per-head queries, (B, num_heads, T, score_width), and keys, (B, G, S, score_width).
        """
        width = self.score_width
        return self.queries(query, width).to(dtype), self.keys(key, width).to(dtype)

    def latent_queries(self, shared: Tensor) -> Tensor:
        """Queries that meet the shared key itself, for a form whose heads each read keys of their own.

        One new token then needs no per-head keys of all the tokens before it.

        Args:
            shared: (B, T, query_rank).

        Returns:
            Per-head queries times Q_h^T, (B, num_heads, T, key_rank).
        """
        return torch.matmul(
            self.queries(shared, self.score_width), self.key_maps().to(shared).transpose(1, 2)
        )

    @property
    def derives_keys(self) -> bool:
        """Whether per-head keys are computed from the shared key, rather than being views of it."""
        return False

    def query_maps(self) -> Tensor:
        """P_h for every head, (num_heads, query_rank, score_width)."""
        raise NotImplementedError

    def key_maps(self) -> Tensor:
        """Q_h for every head, (num_heads, key_rank, score_width)."""
        raise NotImplementedError

    def _add_bias(self, queries: Tensor) -> Tensor:
        if self.bias is None:
            return queries
        return queries + pad_width(self.bias, queries.shape[-1]).unsqueeze(1)

    def _split_heads(self, flat: Tensor, width: int) -> Tensor:
        # (B, T, H*W) -> (B, H, T, width). Zeros are cheaper to copy in than to compute as part of a product.
        return pad_width(flat.unflatten(-1, (self.num_heads, -1)), width).transpose(1, 2)

    def _shared_key(self, shared: Tensor, width: int) -> Tensor:
        return pad_width(shared, width).unsqueeze(1)


def pad_width(x: Tensor, width: int) -> Tensor:
    """Zeros behind the last dimension, up to a width."""
    missing = width - x.shape[-1]
    return F.pad(x, (0, missing)) if missing else x


def prefers_weights_first(tokens: Tensor) -> bool:
    """Whether weights times tokens, on a CPU, is faster than tokens times weights: for one sample it is."""
    samples, length, _ = tokens.shape
    return samples == 1 and (length >= _THIN if tokens.element_size() > 2 else is_native(tokens.dtype))


def weights_first(core: Tensor, shared: Tensor, dtype: torch.dtype, bias: Tensor | None = None) -> Tensor:
    """Cores (..., W, R) times the tokens of one sample (1, T, R): (1, ..., T, W), a head's numbers together.

    A bias is added to the first rows of the cores, as many as it has numbers.
    """
    # (H*W, R) times (R, T)
    flat = torch.mm(core.reshape(-1, core.shape[-1]), shared[0].t()).to(dtype)
    if bias is not None:
        flat[: bias.numel()].add_(bias.view(-1, 1))
    return flat.view(1, *core.shape[:-1], -1).transpose(-1, -2)


# From 12 tokens on, weights times tokens gives the same bits wherever the weights lie in memory (MKL,
# float32): a model read from a file answers as the one that was saved.
_THIN = 16
