"""First values of the mixing, for models that are trained from scratch.

Shared queries and keys are taken to have the variance that the host's own have. Every start but `ones` and a
`concatenate` of low rank then gives scores the host's variance, whatever the rank: the squares of a head's
mixing add up to head_dim. R is the rank, H num_heads, d head_dim. This file ships with saved checkpoints: it
imports torch, transformers and siblings alone.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from transformers import initialization as init

from .core_mixing import CoreMixing, TiedCoreMixing
from .errors import ConfigError
from .mixing import CopyMixing, DiagonalMixing, SelectionMixing
from .mixing_base import Mixing
from .plan import LayerPlan

MixingInit = Literal["concatenate", "ones", "random"]


def checked_mixing(name: object, plan: LayerPlan) -> MixingInit:
    """The start that a setting names.

    Args:
        name: of `MixingInit`; None for `concatenate`.
        plan: the layer's form.

    Returns:
        The name.

    Raises:
        ConfigError: an unknown name, or a name where the form is not cp.
    """
    for known in get_args(MixingInit):
        if name == known and "dims_per_head" in plan.form.settings:
            return known  # type: ignore[no-any-return]
    if name is None:
        return "concatenate"
    if name not in get_args(MixingInit):
        raise ConfigError(f"mixing must be one of {', '.join(get_args(MixingInit))}, got {name!r}")
    raise ConfigError(f"mixing belongs to cp, got {name!r} with {plan.form_name}")


@torch.no_grad()
def fill_mixing_(mixing: Mixing, head_dim: float, name: MixingInit = "concatenate") -> None:
    """Set every parameter of a fresh mixing; what a checkpoint has given already stays.

    Args:
        mixing: of any form.
        head_dim: of the host's own heads.
        name: how the mixing vectors of cp begin. `concatenate`: a block of ones, so that head h owns its
            R / H dimensions as in ordinary multi-head attention; `ones`: every head reads all dimensions
            alike, so that all heads start with the same scores; `random`: normal, of variance d / R. With
            dims_per_head the first two are the same, a window of ones, and `random` draws the dimensions too.

    Raises:
        ConfigError: a mixing that has no initial values.

    Source:
        Cordonnier et al. 2020, arXiv:2006.16362, section 4, for concatenation as a block of ones.
    """
    if mixing.bias is not None:
        init.zeros_(mixing.bias)
    if isinstance(mixing, CopyMixing):
        return
    if isinstance(mixing, DiagonalMixing):
        init.copy_(mixing.weight, _mixing_vectors(mixing.weight, head_dim, name))
    elif isinstance(mixing, SelectionMixing):
        _fill_selection_(mixing, head_dim, name)
    elif isinstance(mixing, CoreMixing):
        _fill_cores_(mixing, head_dim)
    elif isinstance(mixing, TiedCoreMixing):
        core = torch.randn_like(mixing.core)
        core[0] *= (head_dim / (mixing.score_width * mixing.query_rank)) ** 0.5
        core[1] *= mixing.key_rank**-0.5
        init.copy_(mixing.core, core)
    else:
        raise ConfigError(f"{type(mixing).__name__} has no initial values")


def _mixing_vectors(weight: Tensor, head_dim: float, name: MixingInit) -> Tensor:
    heads, rank = weight.shape
    if name == "ones":
        return torch.ones_like(weight)
    if name == "random":
        drawn: Tensor = torch.randn_like(weight) * (head_dim / rank) ** 0.5
        return drawn
    # Blocks are as equal as can be; with more heads than dimensions, some heads share one.
    head, dimension = (torch.arange(n, device=weight.device) for n in (heads, rank))
    if rank >= heads:
        owned: Tensor = dimension * heads // rank == head.unsqueeze(1)
    else:
        owned = dimension == (head * rank // heads).unsqueeze(1)
    return owned.to(weight.dtype)


def _fill_selection_(mixing: SelectionMixing, head_dim: float, name: MixingInit) -> None:
    heads, width = mixing.index.shape
    rank, device = mixing.query_rank, mixing.index.device
    if name == "random" and mixing.weight is not None:
        rows = [torch.randperm(rank, device=device)[:width].sort().values for _ in range(heads)]
        init.copy_(mixing.index, torch.stack(rows))
        init.normal_(mixing.weight, std=(head_dim / width) ** 0.5)
        return
    first = torch.arange(heads, device=device) * rank // heads
    init.copy_(mixing.index, (first.unsqueeze(1) + torch.arange(width, device=device)) % rank)
    if mixing.weight is not None:
        init.ones_(mixing.weight)


def _fill_cores_(mixing: CoreMixing, head_dim: float) -> None:
    init.normal_(mixing.query_core, std=(head_dim / (mixing.score_width * mixing.query_rank)) ** 0.5)
    if mixing.head is not None:
        init.normal_(mixing.head, std=mixing.head.shape[1] ** -0.5)
    if mixing.key_core is not None:
        init.normal_(mixing.key_core, std=mixing.key_rank**-0.5)
    if mixing.group is not None:
        heads = torch.arange(mixing.num_heads, device=mixing.group.device)
        init.copy_(mixing.group, heads * mixing.key_groups // mixing.num_heads)
