"""The modules of a model that surgery knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from ..errors import FamilyError
from ..modeling.attention import CollabAttention
from ..modeling.families import (
    Family,
    FeedForward,
    all_attention_layers,
    feed_forward_layers,
    slot_of,
    submodule_at,
)
from ..modeling.shapes import AttentionShape, FeedForwardShape
from .plain import check_plain

Row = TypeVar("Row", Family, FeedForward)
Shape = TypeVar("Shape", AttentionShape, FeedForwardShape)


@dataclass(frozen=True, eq=False)
class Site(Generic[Row, Shape]):
    """A module of the host, with what is known of it.

    Attributes:
        name: its name relative to the base model, the same for every task head.
        module: the module.
        family: names of its attributes.
        shape: sizes of the dense module, as they were when the site was found.
        around: the module that holds it, where a path that begins with `..` starts.
    """

    name: str
    module: nn.Module
    family: Row
    shape: Shape
    around: nn.Module

    def at(self, path: str) -> Any:
        """The module or parameter at a path of the family."""
        return submodule_at(self.module, self.around, path)

    def gain(self) -> Tensor | None:
        """Scale of each output dimension before the next layer reads it, (hidden_size,); None for none."""
        return None if self.family.gain is None else self.at(self.family.gain).detach()


AttentionSite = Site[Family, AttentionShape]
FeedForwardSite = Site[FeedForward, FeedForwardShape]
AttentionSites = Mapping[str, AttentionSite]


def attention_sites(model: nn.Module) -> dict[str, AttentionSite]:
    """The attention layers that can be compressed.

    Args:
        model: a transformers model.

    Returns:
        Sites by name, in the model's order.

    Raises:
        FamilyError: no attention layer that collab_hf knows, one that is compressed already, or one whose
            projections are not plain.
    """
    if any(isinstance(m, CollabAttention) for m in model.modules()):
        raise FamilyError("the model is compressed already; start from the original")
    around, found = _holders(model), list(all_attention_layers(model))
    open_to = [(name, module, row) for name, module, row in found if row.refusal(module) is None]
    for name, module, row in open_to:
        for role in ("query", "key", "value"):
            check_plain(row.slot(module, role).module, f"the {role} projection of {name}")
        check_plain(submodule_at(module, around[module], row.output), f"the output projection of {name}")
    sites = {
        name: Site(name, module, row, row.shape(module), around[module]) for name, module, row in open_to
    }
    if not sites and found:
        name, module, row = found[0]
        raise FamilyError(
            f"queries and keys of {type(model).__name__} can't be compressed: {row.refusal(module)} "
            f"({type(module).__name__}, {name})"
        )
    if not sites:
        raise FamilyError(
            f"{type(model).__name__} has no attention layer that collab_hf knows; `collab-hf families` lists "
            "the models that have"
        )
    return sites


def feed_forward_sites(model: nn.Module) -> dict[str, FeedForwardSite]:
    """The feed-forward modules that can be made narrower.

    Args:
        model: a transformers model.

    Returns:
        Sites by name, in the model's order; none where the model has none that collab_hf knows.

    Raises:
        FamilyError: projections that are not plain.
    """
    around = _holders(model)
    found = {}
    for name, module, row in feed_forward_layers(model):
        for path in filter(None, (row.up, row.gate, row.down)):
            check_plain(slot_of(module, path).module, f"{path} of {name}")
        hidden_size, width = slot_of(module, row.down).weight.shape
        shape = FeedForwardShape(hidden_size, width, row.gate is not None)
        found[name] = Site(name, module, row, shape, around[module])
    return found


def _holders(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """The module that holds each module, where it comes first."""

    def pairs() -> Iterator[tuple[nn.Module, nn.Module]]:
        for module in model.modules():
            for child in module.children():
                yield child, module

    found: dict[nn.Module, nn.Module] = {}
    for child, module in pairs():
        found.setdefault(child, module)
    return found
