"""The layers of a model that surgery knows."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..config import CollabConfig
from ..errors import DecompositionError, FamilyError
from ..modeling.attention import CollabAttention
from ..modeling.families import Family, all_attention_layers
from ..tensors import ScoreTensor


def dense_layers(model: nn.Module) -> dict[str, tuple[nn.Module, Family]]:
    """The attention layers that can be compressed.

    Args:
        model: a transformers model.

    Returns:
        Module and family by the layer's name relative to the base model.

    Raises:
        FamilyError: no attention layer that collab_hf knows, or one that is compressed already.
    """
    if any(isinstance(m, CollabAttention) for m in model.modules()):
        raise FamilyError("the model is compressed already; start from the original")
    found = list(all_attention_layers(model))
    layers = {name: (module, row) for name, module, row in found if row.refusal(module) is None}
    if not layers and found:
        name, module, row = found[0]
        raise FamilyError(
            f"queries and keys of {type(model).__name__} can't be compressed: {row.refusal(module)} "
            f"({type(module).__name__}, {name})"
        )
    if not layers:
        raise FamilyError(
            f"{type(model).__name__} has no attention layer that collab_hf knows; `collab-hf families` lists "
            "the models that have"
        )
    return layers


Layers = Mapping[str, tuple[nn.Module, Family]]


def score_tensor(module: nn.Module, family: Family, name: str, config: CollabConfig) -> ScoreTensor:
    """The per-head factors of a dense attention module, in the solvers' precision.

    Args:
        module: a dense attention module.
        family: its family.
        name: the layer's name, for the message.
        config: the layer's settings.

    Returns:
        The factors.

    Raises:
        DecompositionError: weights that are not finite.
    """
    dtype = getattr(torch, config.precision)
    query, key, bias = family.head_factors(module)
    if not all(torch.isfinite(t).all() for t in (query, key, *([] if bias is None else [bias]))):
        raise DecompositionError(f"the query or key weights of {name} are not finite")
    return ScoreTensor(query.to(dtype), key.to(dtype), None if bias is None else bias.to(dtype))
