"""How one head's scores come out of the shared projections; one module per form of `LayerPlan`.

Every form stands for per-head maps P_h (query_rank, score_width) and Q_h (key_rank, score_width) with

    T_h ~ A P_h Q_h^T B^T        A: shared query, B: shared key

In the paper's cp, P_h = diag(m_h) and Q_h is the identity. Shapes: B batch, T length, H num_heads,
R query_rank or key_rank, W score_width, G key heads (1 where all heads read the same key, else H).
This file ships with saved checkpoints: it imports torch alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .kernels import is_native
from .plan import LayerPlan

# From 12 tokens on, weights times tokens gives the same bits wherever the weights lie in memory (MKL,
# float32): a model read from a file answers as the one that was saved.
_THIN = 16


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
        return queries + _pad(self.bias, queries.shape[-1]).unsqueeze(1)

    def _split_heads(self, flat: Tensor, width: int) -> Tensor:
        # (B, T, H*W) -> (B, H, T, width). Zeros are cheaper to copy in than to compute as part of a product.
        return _pad(flat.unflatten(-1, (self.num_heads, -1)), width).transpose(1, 2)

    def _shared_key(self, shared: Tensor, width: int) -> Tensor:
        return _pad(shared, width).unsqueeze(1)


class CopyMixing(Mixing):
    """Every head owns its slice of both projections: dense attention itself."""

    def queries(self, shared: Tensor, width: int) -> Tensor:  # noqa: D102
        return self._add_bias(self.keys(shared, width))

    def keys(self, shared: Tensor, width: int) -> Tensor:  # noqa: D102
        return self._split_heads(shared, width)

    def query_maps(self) -> Tensor:  # noqa: D102
        return torch.eye(self.key_rank).view(self.key_rank, self.num_heads, -1).transpose(0, 1)

    def key_maps(self) -> Tensor:  # noqa: D102
        return self.query_maps()


class DiagonalMixing(Mixing):
    """cp: P_h = diag(weight[h]), all heads read the whole shared key."""

    def __init__(self, plan: LayerPlan, num_heads: int) -> None:
        super().__init__(plan, num_heads)
        self.weight = nn.Parameter(torch.empty(num_heads, plan.query_rank))

    def queries(self, shared: Tensor, width: int) -> Tensor:  # noqa: D102
        # (B, 1, T, R) * (H, 1, R)
        return self._add_bias(_pad(shared.unsqueeze(1) * self.weight.unsqueeze(1), width))

    def keys(self, shared: Tensor, width: int) -> Tensor:  # noqa: D102
        return self._shared_key(shared, width)

    def query_maps(self) -> Tensor:  # noqa: D102
        return torch.diag_embed(self.weight)

    def key_maps(self) -> Tensor:  # noqa: D102
        return torch.eye(self.key_rank).to(self.weight).expand(self.num_heads, -1, -1)


class SelectionMixing(Mixing):
    """svd: each head reads the shared dimensions index[h] of both projections.

    Args:
        plan: the layer's form.
        num_heads: number of heads.

    Attributes:
        index: (num_heads, score_width) integers in [0, query_rank); -1 is a dimension of zeros, where a head
            uses fewer than the widest.
        weight: (num_heads, score_width), or None for weights of one.
    """

    index: Tensor
    weight: nn.Parameter | None

    def __init__(self, plan: LayerPlan, num_heads: int) -> None:
        super().__init__(plan, num_heads)
        self.register_buffer("index", torch.zeros(num_heads, plan.score_width, dtype=torch.long))
        self.weight = None

    def queries(self, shared: Tensor, width: int) -> Tensor:  # noqa: D102
        return self._for_kernels(self._pick_queries(shared), width)

    def keys(self, shared: Tensor, width: int) -> Tensor:  # noqa: D102
        return self._for_kernels(self._pick(shared), width)

    def queries_and_keys(  # noqa: D102
        self, query: Tensor, key: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        both = self._pick_queries(query).to(dtype), self._pick(key).to(dtype)
        return both[0].transpose(2, 3), both[1].transpose(2, 3)

    @property
    def derives_keys(self) -> bool:  # noqa: D102
        return True

    def _for_kernels(self, picked: Tensor, width: int) -> Tensor:
        # Kernels want the numbers of one token next to each other.
        return _pad(picked.transpose(2, 3), width).contiguous()

    def _pick_queries(self, shared: Tensor) -> Tensor:
        picked = self._pick(shared)
        if self.weight is not None:
            picked = picked * self.weight.unsqueeze(2)
        return picked if self.bias is None else picked + self.bias.unsqueeze(2)

    def _pick(self, shared: Tensor) -> Tensor:
        """(B, T, R) -> (B, H, W, T): all tokens of a dimension are copied at a time, not one number."""
        # The row of zeros that is appended last is the one that index -1 reads.
        rows = F.pad(shared.transpose(1, 2), (0, 0, 0, 1))
        picked = rows.index_select(1, self.index.flatten() % rows.shape[1])
        return picked.view(shared.shape[0], self.num_heads, self.score_width, shared.shape[1])

    def query_maps(self) -> Tensor:  # noqa: D102
        maps = self.key_maps()
        return maps if self.weight is None else maps * self.weight.unsqueeze(1)

    def key_maps(self) -> Tensor:  # noqa: D102
        dtype = torch.get_default_dtype() if self.weight is None else self.weight.dtype
        one_hot = F.one_hot(self.index % (self.key_rank + 1), self.key_rank + 1)[..., : self.key_rank]
        return one_hot.transpose(1, 2).to(dtype)


class WeightedSelectionMixing(SelectionMixing):
    """cp with sparse mixing: the dimensions that a head reads have weights."""

    def __init__(self, plan: LayerPlan, num_heads: int) -> None:
        super().__init__(plan, num_heads)
        self.weight = nn.Parameter(torch.empty(num_heads, plan.score_width))


class CoreMixing(Mixing):
    """tucker: a dense core per head, P_h = query_core[h]^T; the key is read whole, by group or by key_core.

    Args:
        plan: the layer's form.
        num_heads: number of heads.

    Attributes:
        query_core: (num_heads, score_width, query_rank); with head_rank r, (r, score_width, query_rank).
        head: (num_heads, r) with head_rank r, else None: query_core[h] = sum_s head[h, s] query_core[s].
        key_core: (num_heads, score_width, key_rank) where score_width < key_rank / key_groups, else None.
        group: (num_heads,) the key group that each head reads, where key_groups > 1, else None.
    """

    group: Tensor | None

    def __init__(self, plan: LayerPlan, num_heads: int) -> None:
        super().__init__(plan, num_heads)
        cores = plan.head_rank or num_heads
        self.query_core = nn.Parameter(torch.empty(cores, plan.score_width, plan.query_rank))
        self.head = nn.Parameter(torch.empty(num_heads, cores)) if plan.head_rank else None
        self.key_groups = plan.key_groups
        self.key_core = (
            nn.Parameter(torch.empty(num_heads, plan.score_width, plan.key_rank))
            if plan.narrows_keys
            else None
        )
        self.register_buffer(
            "group", torch.zeros(num_heads, dtype=torch.long) if plan.key_groups > 1 else None
        )

    def _full_query_core(self) -> Tensor:
        if self.head is None:
            return self.query_core
        return torch.einsum("hs,swr->hwr", self.head, self.query_core)

    def queries(self, shared: Tensor, width: int) -> Tensor:  # noqa: D102
        bias = None if self.bias is None else self.bias.view(-1)
        core = self._full_query_core().reshape(-1, self.query_rank)
        return self._split_heads(F.linear(shared, core, bias), width)

    def keys(self, shared: Tensor, width: int) -> Tensor:  # noqa: D102
        if self.key_core is not None:
            return self._split_heads(F.linear(shared, self.key_core.view(-1, self.key_rank)), width)
        if self.group is None:
            return self._shared_key(shared, width)
        grouped = _pad(shared.unflatten(-1, (self.key_groups, -1)), width).transpose(1, 2)
        return grouped.index_select(1, self.group)

    def queries_and_keys(  # noqa: D102
        self, query: Tensor, key: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        if not _prefers_weights_first(query):
            return super().queries_and_keys(query, key, dtype)
        queries = _weights_first(self._full_query_core(), query, dtype, self.bias)
        if self.key_core is None:
            return queries, self.keys(key, self.score_width).to(dtype)
        return queries, _weights_first(self.key_core, key, dtype)

    @property
    def derives_keys(self) -> bool:  # noqa: D102
        return self.key_core is not None

    def query_maps(self) -> Tensor:  # noqa: D102
        return self._full_query_core().transpose(1, 2)

    def key_maps(self) -> Tensor:  # noqa: D102
        if self.key_core is not None:
            return self.key_core.transpose(1, 2)
        identity = torch.eye(self.key_rank).to(self.query_core)
        if self.group is None:
            return identity.expand(self.num_heads, -1, -1)
        by_group: Tensor = identity.unflatten(1, (self.key_groups, -1)).movedim(1, 0)
        return by_group.index_select(0, self.group)


class TiedCoreMixing(Mixing):
    """tied tucker: each head reads the one shared projection through two cores, for queries and for keys.

    Args:
        plan: the layer's form.
        num_heads: number of heads.

    Attributes:
        core: (2, num_heads, score_width, rank), P_h^T and then Q_h^T: together, so that one product serves.
    """

    def __init__(self, plan: LayerPlan, num_heads: int) -> None:
        super().__init__(plan, num_heads)
        self.core = nn.Parameter(torch.empty(2, num_heads, plan.score_width, plan.query_rank))

    def queries(self, shared: Tensor, width: int) -> Tensor:  # noqa: D102
        bias = None if self.bias is None else self.bias.view(-1)
        return self._split_heads(F.linear(shared, self.core[0].view(-1, self.query_rank), bias), width)

    def keys(self, shared: Tensor, width: int) -> Tensor:  # noqa: D102
        return self._split_heads(F.linear(shared, self.core[1].view(-1, self.key_rank)), width)

    def queries_and_keys(  # noqa: D102
        self, query: Tensor, key: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        if key is not query or not _prefers_weights_first(query):
            return super().queries_and_keys(query, key, dtype)
        queries, keys = _weights_first(self.core, query, dtype, self.bias).unbind(1)
        return queries, keys

    @property
    def derives_keys(self) -> bool:  # noqa: D102
        return True

    def query_maps(self) -> Tensor:  # noqa: D102
        return self.core[0].transpose(1, 2)

    def key_maps(self) -> Tensor:  # noqa: D102
        return self.core[1].transpose(1, 2)


def build_mixing(plan: LayerPlan, num_heads: int) -> Mixing:
    """The uninitialised mixing that a plan asks for.

    Args:
        plan: the layer's form.
        num_heads: number of heads.

    Returns:
        The module, on the default device (meta works).
    """
    return _MIXINGS[plan.form.mixing(plan)](plan, num_heads)


_MIXINGS: dict[str, type[Mixing]] = {
    mixing.__name__: mixing
    for mixing in (
        CopyMixing,
        DiagonalMixing,
        SelectionMixing,
        WeightedSelectionMixing,
        CoreMixing,
        TiedCoreMixing,
    )
}


def _pad(x: Tensor, width: int) -> Tensor:
    missing = width - x.shape[-1]
    return F.pad(x, (0, missing)) if missing else x


def _prefers_weights_first(tokens: Tensor) -> bool:
    """Whether weights times tokens, on a CPU, is faster than tokens times weights: for one sample it is."""
    samples, length, _ = tokens.shape
    return samples == 1 and (length >= _THIN if tokens.element_size() > 2 else is_native(tokens.dtype))


def _weights_first(core: Tensor, shared: Tensor, dtype: torch.dtype, bias: Tensor | None = None) -> Tensor:
    """Cores (..., W, R) times the tokens of one sample (1, T, R): (1, ..., T, W), a head's numbers together.

    A bias is added to the first rows of the cores, as many as it has numbers.
    """
    # (H*W, R) times (R, T)
    flat = torch.mm(core.reshape(-1, core.shape[-1]), shared[0].t()).to(dtype)
    if bias is not None:
        flat[: bias.numel()].add_(bias.view(-1, 1))
    return flat.view(1, *core.shape[:-1], -1).transpose(-1, -2)
