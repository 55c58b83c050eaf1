"""The blocks of a model: its layers, each with an attention and a feed-forward, in the order they run."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from ..modeling.families import attention_layers, feed_forward_layers, relative_name


def blocks(model: nn.Module, names: Iterable[str] | None = None) -> dict[str, nn.Module]:
    """The outermost members of module lists that hold attention or feed-forward modules.

    Args:
        model: a transformers model, dense or compressed.
        names: sites by name that a block must hold one of; None for all that collab_hf knows.

    Returns:
        Blocks by name relative to the base model, in the model's order.
    """
    if names is None:
        known = [*attention_layers(model), *feed_forward_layers(model)]
        names = [name for name, _, _ in known]
    wanted = set(names)
    paths = {relative_name(model, path): module for path, module in model.named_modules()}
    found: dict[str, nn.Module] = {}
    for name in paths:
        if name not in wanted:
            continue
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            holder = paths.get(".".join(parts[: depth - 1]))
            if isinstance(holder, nn.ModuleList):
                path = ".".join(parts[:depth])
                found.setdefault(path, paths[path])
                break
    return found
