"""Checkpoints whose heads transformers 4 took out: `config.pruned_heads` says which."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from ..modeling.errors import CheckpointError
from ..modeling.kinds import is_cross
from ..modeling.modeling_collab import adopt_configs_
from ..modeling.shrinking import HeadsPlan
from ..parts.heads.orders import heads_left
from ..parts.heads.sites import head_sites

FIELD = "pruned_heads"


def with_pruned_heads(config: PreTrainedConfig) -> PreTrainedConfig:
    """Read `pruned_heads` as transformers 4 did: a model of this config has smaller layers.

    transformers 5 does not look at the field any more, and refuses the smaller weights.

    Args:
        config: of any checkpoint.

    Returns:
        A collaborative config with the heads that are left; the config itself where no head was taken out.

    Raises:
        CheckpointError: the field is malformed, or names layers or heads that the model doesn't have.
        FamilyError: a model without any attention layer that collab_hf knows.
    """
    pruned = getattr(config, FIELD, None)
    if not pruned or hasattr(config, "collab"):
        return config
    with torch.device("meta"):
        skeleton: PreTrainedModel = AutoModel.from_config(config)
    # transformers 4 numbered the layers of self-attention, shared ones once.
    counts = {name: site.num_heads for name, site in head_sites(skeleton).items() if not is_cross(name)}
    kept = heads_left(counts, _gone(pruned, list(counts)))
    adopt_configs_(skeleton, {HeadsPlan.section: {name: HeadsPlan(heads) for name, heads in kept.items()}})
    found: Any = skeleton.config
    delattr(found, FIELD)
    found.architectures = [f"Collab{name}" for name in config.architectures or ()] or None
    return found  # type: ignore[no-any-return]


def _gone(pruned: Any, names: list[str]) -> list[tuple[str, int]]:
    """Heads by layer's name, from numbers of layers and heads."""
    try:
        numbered = [(int(layer), int(head)) for layer, heads in pruned.items() for head in heads]
    except (AttributeError, TypeError, ValueError):
        raise CheckpointError(f"{FIELD} in config.json must map layers to heads, got {pruned!r}") from None
    for layer, _ in numbered:
        if not 0 <= layer < len(names):
            raise CheckpointError(f"{FIELD} in config.json names layer {layer} of {len(names)}")
    return [(names[layer], head) for layer, head in numbered]
