"""Layers with fewer heads, narrower values, fewer neurons, and token embeddings of low rank.

Each plan says what a dense module of the host becomes; `shrink_` gives the module its sizes and leaves the
numbers to whoever fills them in: surgery, or a checkpoint. This file ships with saved checkpoints.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .errors import ConfigError, RankError
from .families import attention_row, feed_forward_row, slot_of, submodule_at
from .shapes import checked_fields
from .slots import Slot, is_transposed


@dataclass(frozen=True)
class _Plan:
    """Base: read from config.json and written to it."""

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str = "") -> Any:
        """Read a plan from config.json.

        Args:
            values: the fields by name.
            where: the module's name, for the message.

        Returns:
            The plan.

        Raises:
            ConfigError: a field is unknown, absent or of a wrong type.
        """
        return cls(**checked_fields(cls, values, where or "a module"))

    def to_dict(self) -> dict[str, Any]:
        """The fields, ready for config.json."""
        return asdict(self)


@dataclass(frozen=True)
class HeadsPlan(_Plan):
    """The heads of an attention layer that are left.

    Args:
        kept: their numbers in the dense layer, ascending.
    """

    kept: tuple[int, ...]

    section: ClassVar[str] = "heads"

    def __post_init__(self) -> None:
        """JSON has lists."""
        if not isinstance(self.kept, list | tuple):
            raise ConfigError(f"kept heads must be a list of numbers, got {self.kept!r}")
        object.__setattr__(self, "kept", tuple(self.kept))

    def to_dict(self) -> dict[str, Any]:
        """The fields, ready for config.json."""
        return {"kept": list(self.kept)}

    def check(self, heads: int, where: str, sharing: int = 1) -> None:
        """Refuse heads that the layer doesn't have.

        Args:
            heads: number of heads of the dense layer.
            where: its name, for the message.
            sharing: how many neighbours share one head of keys and values, and go or stay together.

        Raises:
            RankError: they are no rising numbers of heads, or none, or a part of those that share a key.
        """
        numbers = list(self.kept)
        whole = all(isinstance(number, int) and not isinstance(number, bool) for number in numbers)
        if (
            not whole
            or not numbers
            or numbers != sorted(set(numbers))
            or not 0 <= numbers[0] <= numbers[-1] < heads
        ):
            raise RankError(
                f"heads must be rising numbers from 0 to {heads - 1}, at least one, got {numbers} ({where})"
            )
        if len(numbers) != sharing * len({number // sharing for number in numbers}):
            raise RankError(f"every {sharing} heads share a key and stay together, got {numbers} ({where})")

    def shrink_(self, module: Any, around: nn.Module, where: str) -> list[nn.Module]:
        """Leave rows and columns for the kept heads.

        Args:
            module: a dense attention module.
            around: the module that holds it.
            where: its name, for messages.

        Returns:
            The linear layers whose numbers are now uninitialised.

        Raises:
            RankError: heads that the layer doesn't have, or none.
        """
        family = attention_row(module)
        sharing = family.heads(module) // family.key_value_heads(module)
        self.check(family.heads(module), where, sharing)
        width = len(self.kept) * family.width(module)
        query, *shared = (family.slot(module, role) for role in ("query", "key", "value"))
        # The three may be parts of one projection.
        rows = {id(slot.module): (slot, width // sharing) for slot in shared}
        rows[id(query.module)] = query, width
        for slot, number in rows.values():
            resize_(slot.module, rows=number * slot.parts)
        output = submodule_at(module, around, family.output)
        resize_(output, columns=width)
        if family.num_heads is not None:
            setattr(module, family.num_heads, len(self.kept))
        if family.all_heads is not None:
            setattr(module, family.all_heads, width)
        module.collab_kept_heads = self.kept
        return [*(slot.module for slot, _ in rows.values()), output]


@dataclass(frozen=True)
class ValuePlan(_Plan):
    """The width of every head's values.

    Args:
        width: numbers of one head's value, fewer than head_dim.
    """

    width: int

    section: ClassVar[str] = "value_output"

    def check(self, head_dim: int, where: str) -> None:
        """Refuse a width that no head of the layer can have.

        Args:
            head_dim: width of a dense head.
            where: the layer's name, for the message.

        Raises:
            RankError: it is no integer from 1 to head_dim.
        """
        check_width("value width", self.width, head_dim, where)

    def shrink_(self, module: Any, around: nn.Module, where: str) -> list[nn.Module]:
        """Leave rows and columns for narrower values.

        Args:
            module: an attention module, whose heads are already those that stay.
            around: the module that holds it.
            where: its name, for messages.

        Returns:
            The linear layers whose numbers are now uninitialised.

        Raises:
            RankError: a width that no head of the layer can have.
        """
        family = attention_row(module)
        self.check(family.width(module), where)
        width = family.heads(module) * self.width
        value: Any = family.projection(module, "value")
        output = submodule_at(module, around, family.output)
        resize_(value, rows=width)
        resize_(output, columns=width)
        return [value, output]


@dataclass(frozen=True)
class FeedForwardPlan(_Plan):
    """The number of neurons of a feed-forward.

    Args:
        width: neurons left.
    """

    width: int

    section: ClassVar[str] = "feed_forward"

    def check(self, neurons: int, where: str) -> None:
        """Refuse a width that the feed-forward can't have.

        Args:
            neurons: number of neurons of the dense one.
            where: its name, for the message.

        Raises:
            RankError: it is no integer from 1 to that.
        """
        check_width("feed-forward width", self.width, neurons, where)

    def shrink_(self, module: Any, around: nn.Module, where: str) -> list[nn.Module]:
        """Leave rows and columns for the kept neurons.

        Args:
            module: the module that holds the projections.
            around: the module that holds it.
            where: its name, for messages.

        Returns:
            The linear layers whose numbers are now uninitialised.

        Raises:
            RankError: a width that the feed-forward can't have.
        """
        row = feed_forward_row(module)
        # Gate and up may be halves of one projection.
        slots = [slot_of(module, path) for path in (row.up, row.gate) if path is not None]
        down = slot_of(module, row.down)
        self.check(down.weight.shape[1], where)
        up = {id(slot.module): slot for slot in slots}
        for slot in up.values():
            resize_(slot.module, rows=self.width * slot.parts)
        resize_(down.module, columns=self.width)
        return [*(slot.module for slot in up.values()), down.module]


def check_width(name: str, value: Any, most: int, where: str) -> None:
    """Refuse a width that is no integer from 1 to `most`.

    Args:
        name: of the width, for the message.
        value: what was given.
        most: the largest allowed.
        where: the module's name.

    Raises:
        RankError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise RankError(f"{name} must be between 1 and {most}, got {value!r} ({where})")


def resize_(linear: Any, *, rows: int | None = None, columns: int | None = None) -> None:
    """Give a linear layer another number of outputs or inputs, in place; its numbers are uninitialised then.

    The module stays the object that it was, with its hooks, device, dtype and requires_grad.

    Args:
        linear: an nn.Linear, or a Conv1D, whose weight is (inputs, outputs).
        rows: outputs; None for as many as it has.
        columns: inputs; None for as many as it has.
    """
    weight: Tensor = linear.weight
    transposed = is_transposed(linear)
    old_rows, old_columns = weight.t().shape if transposed else weight.shape
    rows, columns = rows or old_rows, columns or old_columns
    shape = (columns, rows) if transposed else (rows, columns)
    linear.weight = nn.Parameter(weight.new_empty(shape), requires_grad=weight.requires_grad)
    if linear.bias is None and columns != old_columns:
        # What it no longer reads had a mean, which the refitted layer adds.
        linear.bias = nn.Parameter(weight.new_zeros(rows), requires_grad=weight.requires_grad)
    elif linear.bias is not None:
        linear.bias = nn.Parameter(
            weight.new_empty(rows) if rows != old_rows else linear.bias.detach().clone(),
            requires_grad=linear.bias.requires_grad,
        )
    names = ("nf", "nx") if transposed else ("out_features", "in_features")
    for name, size in zip(names, (rows, columns), strict=True):
        setattr(linear, name, size)


@torch.no_grad()
def fill_(linear: Any, weight: Tensor, bias: Tensor | None) -> None:
    """Put numbers into a linear layer that was resized.

    Args:
        linear: an nn.Linear or Conv1D, or a `Slot` of one.
        weight: (out_features, in_features), any floating dtype.
        bias: (out_features,), or None to leave the bias as it is; a layer without one gets one.
    """
    slot = linear if isinstance(linear, Slot) else Slot(linear)
    slot.weight.copy_(weight)
    if bias is None:
        return
    if slot.bias is not None:
        slot.bias.copy_(bias)
        return
    linear.bias = nn.Parameter(bias.detach().to(linear.weight), linear.weight.requires_grad)
