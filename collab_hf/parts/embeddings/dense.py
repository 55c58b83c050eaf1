"""Token embeddings of low rank back to dense ones."""

from __future__ import annotations

from typing import Any

from torch import nn

from ...modeling.embeddings import _LowRank, dense_table, forget_ties_


def dense_embeddings_(model: nn.Module) -> bool:
    """Multiply table and map, and give the embedding and what is tied to it the host's classes, in place.

    Args:
        model: a transformers model; hooks, device, dtype, training mode and requires_grad stay.

    Returns:
        Whether there was anything to undo.
    """
    found: list[Any] = [m for m in model.modules() if isinstance(m, _LowRank)]
    tables: dict[int, nn.Parameter] = {}
    for module in found:
        key = id(module.weight)
        if key not in tables:
            tables[key] = nn.Parameter(dense_table(module), module.weight.requires_grad)
        module.weight = tables[key]
        del module.up
        module.__class__ = module.collab_host
        for name in ("collab_plans", "collab_resized"):
            vars(module).pop(name, None)
    forget_ties_(model)
    return bool(found)
