"""Where a host keeps the weights of a projection: in a module of its own, or in a part of one.

This file ships with saved checkpoints: it imports torch alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Slot:
    """A projection of a host's: a Linear or Conv1D, or one of several equal parts of its outputs.

    Attributes:
        module: the module that holds it.
        index: which part, from 0.
        parts: how many there are.
    """

    module: Any
    index: int = 0
    parts: int = 1

    @property
    def weight(self) -> Tensor:
        """(outputs, inputs), a view of the module's."""
        weight: Tensor = self.module.weight
        return self._part(weight.t() if is_transposed(self.module) else weight)

    @property
    def bias(self) -> Tensor | None:
        """(outputs,), a view of the module's."""
        bias: Tensor | None = self.module.bias
        return None if bias is None else self._part(bias)

    def _part(self, tensor: Tensor) -> Tensor:
        return tensor.chunk(self.parts)[self.index] if self.parts > 1 else tensor


def is_transposed(module: nn.Module) -> bool:
    """Whether a projection is GPT-2's Conv1D, whose weight is (inputs, outputs)."""
    return hasattr(module, "nf")


def slot_of(module: nn.Module, path: str) -> Slot:
    """The projection that a row's path leads to.

    Args:
        module: where the path starts.
        path: attributes, joined by dots; `c_attn:0/3` is the first of three equal parts of c_attn's outputs.

    Returns:
        Where its weights are.
    """
    name, _, part = path.partition(":")
    index, _, parts = (part or "0/1").partition("/")
    return Slot(attrgetter(name)(module), int(index), int(parts))
