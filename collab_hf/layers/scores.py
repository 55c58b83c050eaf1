"""`SharedScores`: queries and keys from projections that all heads share, as a module.

Shapes: B batch, T queries, S keys, D query_size, E key_size, H num_heads, W score width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from ..modeling.mixing import build_mixing
from ..modeling.plan import LayerPlan
from ..modeling.shapes import AttentionShape
from ..tensors.factors import SharedFactors
from .core import HeadScores


def layer_plan(
    shape: AttentionShape,
    rank: int | None,
    plan: LayerPlan | None,
    dims_per_head: int | None,
    where: str = "",
) -> LayerPlan:
    """The form that a layer's arguments name.

    Args:
        shape: sizes of the layer with heads of their own.
        rank: width of both shared projections (cp); None with no plan gives every head its own (copy).
        plan: any other form, instead of a rank.
        dims_per_head: shared dimensions that each head uses; None for all of them.
        where: the layer's name, for messages.

    Returns:
        The plan, checked against the shape.

    Raises:
        ConfigError: a rank and a plan, or dims_per_head without a rank.
        RankError: a rank that the layer can't have.
    """
    if plan is None:
        if rank is None and dims_per_head is not None:
            raise ConfigError("dims_per_head needs a rank")
        if rank is None:
            full = shape.full_rank
            return LayerPlan("copy", full, full, shape.head_dim, content_bias="folded")
        width = rank if dims_per_head is None else dims_per_head
        return LayerPlan("cp", rank, rank, width, content_bias="folded").check(shape, where)
    if rank is not None or dims_per_head is not None:
        raise ConfigError("give a plan, or rank and dims_per_head, not both")
    return plan.check(shape, where)


class SharedScores(nn.Module):
    """Scores of all heads from one query projection and one key projection.

    Sinks are keys that come from no token: score number j of head h against query x is `sinks(x)[h, j]`.

    Args:
        plan: the form, checked already.
        shape: sizes of the layer with heads of their own; its head_dim alone sets the scale.
        content_bias: whether scores have a content bias, exact or folded as the plan says.
        sinks: number of sinks.

    Attributes:
        query: shared query projection, D to query_rank.
        key: shared key projection, E to key_rank; None where tied to the query's.
        mixing: per-head maps.
        content_bias: D to H, an exact content bias; None where folded or where there is none.
        sinks: D to H * sinks, head by head; None without sinks.
    """

    def __init__(
        self, plan: LayerPlan, shape: AttentionShape, *, content_bias: bool = True, sinks: int = 0
    ) -> None:
        super().__init__()
        self.plan = plan
        self.num_heads = shape.num_heads
        self.num_sinks = sinks
        self.scaling = float(shape.head_dim**-0.5)
        folded = content_bias and plan.content_bias == "folded"
        exact = content_bias and plan.content_bias == "exact"
        self.query = nn.Linear(shape.query_size, plan.query_rank, bias=False)
        self.key = None if plan.tied else nn.Linear(shape.key_size, plan.key_rank, bias=False)
        self.mixing = build_mixing(plan, shape.num_heads)
        if not folded:
            self.mixing.bias = None
        self.content_bias = nn.Linear(shape.key_size, shape.num_heads, bias=False) if exact else None
        self.sinks = nn.Linear(shape.query_size, shape.num_heads * sinks) if sinks else None

    def shared_keys(self, source: Tensor, query: Tensor | None = None) -> Tensor:
        """What all heads read of the keys, and what a decoder caches.

        Args:
            source: (B, S, E).
            query: the shared queries (B, S, query_rank) where they come from the same source, which saves
                tied forms a product.

        Returns:
            (B, S, key_rank), or (B, S, key_rank + H) with an exact content bias.
        """
        if self.key is not None:
            key: Tensor = self.key(source)
        else:
            key = self.query(source) if query is None else query
        return key if self.content_bias is None else torch.cat([key, self.content_bias(source)], -1)

    def forward(
        self, hidden_states: Tensor, query: Tensor, key: Tensor, *, decoding: bool = False
    ) -> HeadScores:
        """Scores of every head, those of the sinks last.

        Args:
            hidden_states: (B, T, D), which the sinks read.
            query: shared queries (B, T, query_rank).
            key: what `shared_keys` gives.
            decoding: a few new queries meet many keys, so no per-head keys are computed.

        Returns:
            Per-head queries and keys, and the content bias.
        """
        bias = None
        if self.content_bias is not None:
            # (B, S, H) -> (B, H, 1, S)
            bias = key[..., self.plan.key_rank :].transpose(1, 2).unsqueeze(2) * self.scaling
            key = key[..., : self.plan.key_rank]
        if decoding and self.mixing.derives_keys:
            queries, keys = self.mixing("latent_queries", query), key.unsqueeze(1)
        else:
            width = self.plan.score_width
            queries, keys = self.mixing("queries", query, width), self.mixing("keys", key, width)
        if self.sinks is not None:
            queries, keys = self._append_sinks(self.sinks(hidden_states), queries, keys)
            bias = None if bias is None else F.pad(bias, (0, self.num_sinks))
        return HeadScores(queries, keys, bias, self.scaling)

    def _append_sinks(self, scores: Tensor, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """One more dimension for each sink, where queries hold its score and its own key alone is one."""
        count, width = self.num_sinks, keys.shape[-1]
        # (B, T, H*n) -> (B, H, T, n)
        scores = scores.unflatten(-1, (self.num_heads, count)).transpose(1, 2)
        rows = F.pad(torch.eye(count, dtype=keys.dtype, device=keys.device), (width, 0))
        rows = rows.expand(*keys.shape[:2], -1, -1)
        return torch.cat([queries, scores], -1), torch.cat([F.pad(keys, (0, count)), rows], 2)

    @torch.no_grad()
    def load_(self, factors: SharedFactors) -> None:
        """Take the factors of a decomposition; the sinks stay as they are.

        Args:
            factors: of the plan and shape that this module has.
        """
        self.query.weight.copy_(factors.shared_query.T)
        if self.key is not None:
            self.key.weight.copy_(factors.shared_key.T)
        state = factors.mixing.state_dict()
        if self.mixing.bias is None:
            state.pop("bias", None)
        self.mixing.load_state_dict(state)
        if self.content_bias is not None and factors.content_bias is not None:
            self.content_bias.weight.copy_(factors.content_bias)
