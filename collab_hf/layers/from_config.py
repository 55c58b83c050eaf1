"""Collaborative models that begin at random: a host's config in, a collaborative config out."""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig

from ..errors import ConfigError, FamilyError
from ..host.sites import attention_sites
from ..modeling.host_internals import heads_of
from ..modeling.initialisation import MixingInit, checked_mixing
from ..modeling.kinds import check_kinds, checked_kinds, matches
from ..modeling.modeling_collab import adopt_config_
from ..modeling.plan import LayerPlan
from ..modeling.plans import QUERY_KEY
from ..modeling.shapes import AttentionShape
from .scores import layer_plan


def collaborative(
    config: PreTrainedConfig,
    rank: int | None = None,
    *,
    plan: LayerPlan | None = None,
    dims_per_head: int | None = None,
    head_dim: int | None = None,
    attention: tuple[str, ...] | str = (),
    mixing: MixingInit | None = None,
) -> PreTrainedConfig:
    """The config of a collaborative model to train from scratch, for any `AutoModelFor*.from_config`.

    Everything but the mixing begins as the host begins it. With rank num_heads * head_dim and `concatenate`
    the model starts as the host's own model does.

    Args:
        config: of a model that collab_hf knows; it stays as it is.
        rank: width of both shared projections of every layer.
        plan: another form, such as tucker, instead of a rank.
        dims_per_head: number of shared dimensions that each head uses; None for all of them.
        head_dim: instead of a rank or plan, heads of their own whose queries and keys have this width, up to
            the host's; values keep theirs. This is concatenation at a smaller key dimension.
        attention: kinds of layers to make collaborative, of `self`, `cross`, `encoder`, `decoder`, `text` and
            `vision`, or some of them joined, such as `decoder-cross`; the other layers stay dense. None
            given for all.
        mixing: how the mixing vectors of cp begin: `concatenate`, `ones` or `random`; None for
            `concatenate`. See `collab_hf.modeling.initialisation.fill_mixing_`.

    Returns:
        A config of the host's collaborative class. Models that it makes save, load and train like any other.

    Raises:
        ConfigError: no form or two of them, a start that the form does not have, kinds that no layer is of,
            or a config that is collaborative already.
        FamilyError: a model that collab_hf does not know.
        RankError: a rank that a layer can't have.

    Source:
        Cordonnier et al. 2020, arXiv:2006.16362, section 4; Bhojanapalli et al. 2020, arXiv:2002.07028, for
        head_dim.
    """
    if sum(given is not None for given in (rank, plan, head_dim)) != 1:
        raise ConfigError("give one of rank, plan and head_dim")
    if hasattr(config, "collab"):
        raise ConfigError(f"the config is collaborative already, got {type(config).__name__}")
    kinds = checked_kinds(attention)
    with torch.device("meta"):  # names and sizes are all that is read of it
        model = _auto_class(config).from_config(copy.deepcopy(config))
    sites = attention_sites(model, with_weights=False)
    check_kinds(sites, kinds)
    plans = {
        name: _plan(site.shape, rank, plan, dims_per_head, head_dim, name)
        for name, site in sites.items()
        if matches(name, kinds)
    }
    for chosen in plans.values():
        checked_mixing(mixing, chosen)
    made: Any = copy.deepcopy(config)
    adopt_config_(made, {QUERY_KEY: plans})
    if mixing is not None:
        made.collab["mixing"] = mixing
    return made  # type: ignore[no-any-return]


def _auto_class(config: PreTrainedConfig) -> Any:
    """That of the bare model, or where a host has none, such as an encoder-decoder, of its first head."""
    heads = heads_of(config.model_type)
    if not heads:
        raise FamilyError(f"no Auto class knows the model type {config.model_type!r}")
    return getattr(transformers, "AutoModel" if "AutoModel" in heads else next(iter(heads)))


def _plan(
    shape: AttentionShape,
    rank: int | None,
    plan: LayerPlan | None,
    dims_per_head: int | None,
    head_dim: int | None,
    where: str,
) -> LayerPlan:
    if head_dim is None:
        return layer_plan(shape, rank, plan, dims_per_head, where)
    if dims_per_head is not None:
        raise ConfigError("dims_per_head needs a rank")
    if not 1 <= head_dim <= shape.head_dim:
        raise ConfigError(
            f"head_dim must be between 1 and {shape.head_dim}, the host's own, got {head_dim} ({where}); "
            "wider heads are a setting of some hosts' configs, or of collab_hf.layers.CollaborativeAttention"
        )
    width = shape.num_heads * head_dim
    return LayerPlan("svd", width, width, head_dim, content_bias="folded")
