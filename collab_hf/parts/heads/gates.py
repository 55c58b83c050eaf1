"""Gates on heads: what each head's output is multiplied with before the output projection reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import RankError
from .sites import Head, head_sites

# Gets what one call of an output projection reads, (..., num_heads, width), and gives what it is to read.
Change = Callable[[str, Tensor], Tensor]


@contextmanager
def gated(model: nn.Module, gates: Mapping[str, Tensor]) -> Iterator[None]:
    """Multiply heads with gates inside the with block.

    A gate of one changes nothing, a gate of zero gives what the model without the head gives.

    Args:
        model: a transformers model, dense or compressed.
        gates: by layer, tensors of shape (num_heads,) or what broadcasts to (..., num_heads); they may ask
            for gradients. Layers that are not named stay as they are.

    Yields:
        Nothing.

    Raises:
        RankError: a layer that the model doesn't have, or another number of gates than it has heads.
    """
    sites = head_sites(model)
    for name, gate in gates.items():
        if name not in sites:
            raise RankError(f"gates name {name}, which is no attention layer here; it has {', '.join(sites)}")
        if gate.dim() == 0 or gate.shape[-1] != sites[name].num_heads:
            raise RankError(
                f"gates must have {sites[name].num_heads} numbers in their last dimension, "
                f"got shape {tuple(gate.shape)} ({name})"
            )

    def multiply(name: str, heads: Tensor) -> Tensor:
        return heads * gates[name].to(heads).unsqueeze(-1)

    with changed_heads(model, multiply, gates):
        yield


@contextmanager
def changed_heads(model: nn.Module, change: Change, names: Iterable[str] | None = None) -> Iterator[None]:
    """Change what output projections read inside the with block.

    Args:
        model: a transformers model, dense or compressed.
        change: called with the layer's name and the heads' outputs, (..., num_heads, width), at every call.
        names: the layers; None for all.

    Yields:
        Nothing.
    """
    sites = head_sites(model)

    def hook(name: str) -> Any:
        heads = sites[name].num_heads

        def before(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return change(name, args[0].unflatten(-1, (heads, -1))).flatten(-2), *args[1:]

        return before

    with ExitStack() as stack:
        for name in sites if names is None else names:
            stack.callback(sites[name].output.register_forward_pre_hook(hook(name)).remove)
        yield


def without(model: nn.Module, heads: Iterable[Head]) -> dict[str, Tensor]:
    """Gates that turn some heads off.

    Args:
        model: a transformers model.
        heads: layers' names and heads' numbers.

    Returns:
        Gates of the layers concerned, (num_heads,) each.

    Raises:
        RankError: a head that the model doesn't have.
    """
    sites = head_sites(model)
    gates: dict[str, Tensor] = {}
    for name, head in heads:
        if name not in sites or not 0 <= head < sites[name].num_heads:
            raise RankError(f"the model has no head {head} in {name}")
        gates.setdefault(name, torch.ones(sites[name].num_heads))[head] = 0
    return gates
