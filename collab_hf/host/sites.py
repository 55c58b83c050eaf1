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


# What a message calls each part of an attention layer.
_TITLES = {"query_key": "queries and keys", "heads": "heads", "value_output": "values"}


def all_attention_sites(model: nn.Module) -> dict[str, AttentionSite]:
    """The attention layers that collab_hf knows, also those of which no part can be made smaller.

    Args:
        model: a transformers model.

    Returns:
        Sites by name, in the model's order; none where it knows none.

    Raises:
        FamilyError: a layer that is compressed already.
    """
    # Heads or neurons may be gone with the attention dense; what is left has plans in its config.
    ours = getattr(getattr(model, "config", None), "model_type", "").startswith("collab_")
    if ours or any(isinstance(m, CollabAttention) for m in model.modules()):
        raise FamilyError("the model is compressed already; start from the original")
    around = _holders(model)
    return {
        name: Site(name, module, row, row.shape(module), around[module])
        for name, module, row in all_attention_layers(model)
    }


def attention_sites(
    model: nn.Module, part: str = "query_key", *, with_weights: bool = True
) -> dict[str, AttentionSite]:
    """The attention layers of which a part can be made smaller.

    Args:
        model: a transformers model.
        part: `query_key`, `heads` or `value_output`.
        with_weights: whether their weights will be read too, and must be plain.

    Returns:
        Sites by name, in the model's order.

    Raises:
        FamilyError: no attention layer that collab_hf knows, one that is compressed already, or one whose
            projections are not plain.
    """
    found = all_attention_sites(model)
    sites = {name: site for name, site in found.items() if site.family.refusal(site.module, part) is None}
    if with_weights:
        check_plain_sites(sites)
    if not sites and found:
        raise FamilyError(
            f"{_TITLES[part]} of {type(model).__name__} can't be compressed: {first_refusal(found, part)}"
        )
    if not sites:
        raise FamilyError(
            f"{type(model).__name__} has no attention layer that collab_hf knows; `collab-hf families` lists "
            "the models that have"
        )
    return sites


def check_plain_sites(sites: AttentionSites) -> None:
    """Refuse attention layers with projections that are not plain: adapters, quantised or pruned weights.

    Args:
        sites: attention layers by name.

    Raises:
        FamilyError: says which projection, and the remedy.
    """
    for name, site in sites.items():
        for role in ("query", "key", "value"):
            check_plain(site.family.slot(site.module, role).module, f"the {role} projection of {name}")
        check_plain(site.at(site.family.output), f"the output projection of {name}")


def first_refusal(sites: AttentionSites, part: str) -> str:
    """What keeps a part of the first of some attention layers.

    Args:
        sites: at least one.
        part: as for `attention_sites`; one that can't be made smaller there.

    Returns:
        The reason, with the layer's class and name.
    """
    name, site = next(iter(sites.items()))
    return f"{site.family.refusal(site.module, part)} ({type(site.module).__name__}, {name})"


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
