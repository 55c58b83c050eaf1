"""First values of shared projections and mixing, for layers that are trained from scratch.

Every one but `ones` and a `concatenate` of low rank gives scores of variance one on inputs of unit variance,
whatever the rank: shared queries and keys have variance one, and the squares of a head's mixing add up to
head_dim. R is the rank, H num_heads, d head_dim.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..modeling.core_mixing import CoreMixing, TiedCoreMixing
from ..modeling.mixing import CopyMixing, DiagonalMixing, SelectionMixing
from ..modeling.mixing_base import Mixing
from .scores import SharedScores

MixingInit = Literal["concatenate", "ones", "random"]


@torch.no_grad()
def initialise_(scores: SharedScores, mixing: MixingInit | None = None) -> None:
    """Set every parameter of a fresh `SharedScores`.

    Args:
        scores: any form.
        mixing: how the mixing vectors of cp begin. `concatenate`: a block of ones, so that head h owns its
            R / H dimensions as in ordinary multi-head attention; `ones`: every head reads all dimensions
            alike, so that all heads start with the same scores; `random`: normal, of variance d / R. With
            dims_per_head the first two are the same, a window of ones, and `random` draws the dimensions too.
            None is `concatenate`; the other forms have one way only.

    Heads that begin alike hardly part: on a task where a query must find two tokens, `ones` was at a loss of
    1.75 after 500 steps at every rank of 8 to 64 (hidden size 64, 8 heads, 3 seeds), where the others reached
    about 0.01 from rank 32 on, like attention without sharing. At rank 16, and with 8 dimensions per head,
    `concatenate` was the more even of the two.

    Raises:
        ConfigError: an unknown name, or a name where the form is not cp.

    Source:
        Cordonnier et al. 2020, arXiv:2006.16362, section 4, for concatenation as a block of ones.
    """
    if mixing is not None and mixing not in get_args(MixingInit):
        raise ConfigError(f"mixing must be one of {', '.join(get_args(MixingInit))}, got {mixing!r}")
    if mixing is not None and "dims_per_head" not in scores.plan.form.settings:
        raise ConfigError(f"mixing belongs to cp, got {mixing!r} with {scores.plan.form_name}")
    for projection in (scores.query, scores.key):
        if projection is not None:
            fill_projection_(projection.weight)
    if scores.content_bias is not None:
        scores.content_bias.weight.zero_()
    if scores.mixing.bias is not None:
        scores.mixing.bias.zero_()
    _fill_mixing_(scores.mixing, scores.scaling**-2, mixing or "concatenate")


def fill_projection_(weight: Tensor) -> None:
    """Uniform values that keep the variance of what they project, however many outputs there are.

    Args:
        weight: (outputs, inputs).
    """
    bound = (3 / weight.shape[1]) ** 0.5
    nn.init.uniform_(weight, -bound, bound)


def _fill_mixing_(mixing: Mixing, head_dim: float, name: MixingInit) -> None:
    if isinstance(mixing, CopyMixing):
        return
    if isinstance(mixing, DiagonalMixing):
        mixing.weight.copy_(_mixing_vectors(mixing.weight, head_dim, name))
    elif isinstance(mixing, SelectionMixing):
        _fill_selection_(mixing, head_dim, name)
    elif isinstance(mixing, CoreMixing):
        _fill_cores_(mixing, head_dim)
    elif isinstance(mixing, TiedCoreMixing):
        mixing.core[0].normal_(std=(head_dim / (mixing.score_width * mixing.query_rank)) ** 0.5)
        mixing.core[1].normal_(std=mixing.key_rank**-0.5)
    else:
        raise ConfigError(f"{type(mixing).__name__} has no initial values")


def _mixing_vectors(weight: Tensor, head_dim: float, name: MixingInit) -> Tensor:
    heads, rank = weight.shape
    if name == "ones":
        return torch.ones_like(weight)
    if name == "random":
        return torch.randn_like(weight) * math.sqrt(head_dim / rank)
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
        mixing.index.copy_(torch.stack(rows))
        mixing.weight.normal_(std=(head_dim / width) ** 0.5)
        return
    first = torch.arange(heads, device=device) * rank // heads
    mixing.index.copy_((first.unsqueeze(1) + torch.arange(width, device=device)) % rank)
    if mixing.weight is not None:
        mixing.weight.fill_(1.0)


def _fill_cores_(mixing: CoreMixing, head_dim: float) -> None:
    mixing.query_core.normal_(std=(head_dim / (mixing.score_width * mixing.query_rank)) ** 0.5)
    if mixing.head is not None:
        mixing.head.normal_(std=mixing.head.shape[1] ** -0.5)
    if mixing.key_core is not None:
        mixing.key_core.normal_(std=mixing.key_rank**-0.5)
    if mixing.group is not None:
        heads = torch.arange(mixing.num_heads, device=mixing.group.device)
        mixing.group.copy_(heads * mixing.key_groups // mixing.num_heads)
