"""tucker: a dense core for each head.

Shapes as in mixing.py. This file ships with saved checkpoints: it imports torch alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .mixing_base import Mixing, pad_width, prefers_weights_first, weights_first
from .plan import LayerPlan


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
        grouped = pad_width(shared.unflatten(-1, (self.key_groups, -1)), width).transpose(1, 2)
        return grouped.index_select(1, self.group)

    def queries_and_keys(  # noqa: D102
        self, query: Tensor, key: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        if not prefers_weights_first(query):
            return super().queries_and_keys(query, key, dtype)
        queries = weights_first(self._full_query_core(), query, dtype, self.bias)
        if self.key_core is None:
            return queries, self.keys(key, self.score_width).to(dtype)
        return queries, weights_first(self.key_core, key, dtype)

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
        if key is not query or not prefers_weights_first(query):
            return super().queries_and_keys(query, key, dtype)
        queries, keys = weights_first(self.core, query, dtype, self.bias).unbind(1)
        return queries, keys

    @property
    def derives_keys(self) -> bool:  # noqa: D102
        return True

    def query_maps(self) -> Tensor:  # noqa: D102
        return self.core[0].transpose(1, 2)

    def key_maps(self) -> Tensor:  # noqa: D102
        return self.core[1].transpose(1, 2)
