"""A module list with fewer blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ...errors import ConfigError

# What hosts name a block's number in its attention, where a cache goes by it.
_NUMBERS = ("layer_idx", "layer_id")


@dataclass(frozen=True)
class BlocksPlan:
    """The blocks of a stack that are left.

    Args:
        kept: their numbers in the dense model, ascending.
    """

    kept: tuple[int, ...]

    section: ClassVar[str] = "blocks"

    @classmethod
    def from_dict(cls, values: dict[str, Any], number: int, where: str) -> BlocksPlan:
        """Read a plan from a recipe.

        Args:
            values: its entries.
            number: of the blocks in the dense model.
            where: name of the stack, for the message.

        Returns:
            The plan.

        Raises:
            ConfigError: other entries, or no rising numbers of blocks.
        """
        kept = values.get("kept")
        whole = isinstance(kept, list) and all(type(item) is int for item in kept)
        if not whole or not kept or kept != sorted(set(kept)) or not 0 <= kept[0] <= kept[-1] < number:
            raise ConfigError(
                f"blocks must be rising numbers from 0 to {number - 1}, at least one, got {kept} ({where})"
            )
        return cls(tuple(kept))

    def to_dict(self) -> dict[str, Any]:
        """The fields, ready for YAML or JSON."""
        return {"kept": list(self.kept)}


def keep_blocks_(stack: nn.ModuleList, kept: Sequence[int]) -> None:
    """Drop the other blocks of a stack, in place.

    Args:
        stack: the module list.
        kept: numbers of the blocks that stay, ascending.
    """
    left = [stack[number] for number in kept]
    for place, (number, block) in enumerate(zip(kept, left, strict=True)):
        for module in block.modules():
            for name in _NUMBERS:
                if getattr(module, name, None) == number:
                    setattr(module, name, place)
    stack._modules = {str(place): block for place, block in enumerate(left)}


@contextmanager
def kept_blocks(stack: nn.ModuleList, kept: Sequence[int]) -> Iterator[None]:
    """Let a model run without the other blocks inside the with block.

    Args:
        stack: the module list.
        kept: numbers of the blocks that run, ascending.

    Yields:
        Nothing.
    """
    whole = stack._modules
    stack._modules = {str(place): stack[number] for place, number in enumerate(kept)}
    try:
        yield
    finally:
        stack._modules = whole
