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

from .core_mixing import CoreMixing, TiedCoreMixing
from .mixing_base import Mixing, pad_width
from .plan import LayerPlan


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
        return self._add_bias(pad_width(shared.unsqueeze(1) * self.weight.unsqueeze(1), width))

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
        return pad_width(picked.transpose(2, 3), width).contiguous()

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
