"""Put factors into an attention module, and read them back."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ...modeling.attention import CollabAttention
from ...modeling.conversion import convert_
from ...modeling.families import Family
from ...tensors.factors import SharedFactors


def key_rows(module: Any) -> Tensor:
    """Rows of the shared key projection of a converted module, and below them those of an exact content bias.

    Args:
        module: an attention module that `convert_` made.

    Returns:
        (key_rank, E), or (key_rank + num_heads, E).
    """
    family, plan = module.collab_family, module.collab_plan
    query = [family.projection(module, "query").weight] if plan.tied else []
    key = [] if family.lacks_key(module) else [family.projection(module, "key").weight]
    return torch.cat([*query, *key])


def graft_(module: nn.Module, factors: SharedFactors) -> None:
    """Convert a dense attention module and fill in its factors.

    Args:
        module: a dense attention module of a known family.
        factors: its query and key in shared form.
    """
    convert_(module, factors.plan)
    fill_(module, factors)


@torch.no_grad()
def fill_(module: Any, factors: SharedFactors) -> None:
    """Put factors into a converted module.

    Args:
        module: an attention module that `convert_` gave the factors' plan.
        factors: its query and key in shared form.
    """
    family: Family = module.collab_family
    family.projection(module, "query").weight.copy_(factors.shared_query.T)
    rows = [] if factors.plan.tied else [factors.shared_key.T]
    if factors.content_bias is not None:
        rows.append(factors.content_bias)
    if rows:
        family.projection(module, "key").weight.copy_(torch.cat(rows))
    module.mixing.load_state_dict(factors.mixing.state_dict())


def read_factors(module: CollabAttention, relative_error: float) -> SharedFactors:
    """The opposite of `fill_`."""
    plan, family = module.collab_plan, module.collab_family
    key = key_rows(module).detach()
    return SharedFactors(
        plan,
        family.projection(module, "query").weight.detach().T,
        key[: plan.key_rank].T,
        copy.deepcopy(module.mixing).requires_grad_(False),
        key[plan.key_rank :] if plan.content_bias == "exact" else None,
        relative_error,
    )


def factor_parameters(layer: CollabAttention) -> Iterator[nn.Parameter]:
    """Shared projections, mixing and content bias of a compressed attention layer."""
    family = layer.collab_family
    yield from family.projection(layer, "query").parameters()
    if not family.lacks_key(layer):
        yield from family.projection(layer, "key").parameters()
    yield from layer.mixing.parameters()
