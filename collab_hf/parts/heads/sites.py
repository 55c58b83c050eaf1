"""Where the heads of a model are: every attention layer that collab_hf knows, dense or compressed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from ...errors import FamilyError
from ...modeling.attention import CollabAttention
from ...modeling.families import Family, attention_layers, relative_name, submodule_at

Kind = Literal["encoder", "decoder", "cross"]
KINDS: tuple[Kind, ...] = ("encoder", "decoder", "cross")

# One head: the layer's name relative to the base model, and its number there.
Head = tuple[str, int]


@dataclass(frozen=True, eq=False)
class HeadSite:
    """An attention layer as a row of heads.

    Attributes:
        name: the layer's name relative to the base model.
        output: the projection that reads all heads side by side.
        num_heads: heads that it has now.
        kind: `cross` where keys come from another sequence, `decoder` where a token sees no later one, else
            `encoder`.
    """

    name: str
    output: nn.Module
    num_heads: int
    kind: Kind


def head_sites(model: nn.Module) -> dict[str, HeadSite]:
    """The attention layers of a model, compressed ones too.

    Args:
        model: a transformers model, with or without a task head.

    Returns:
        Sites by name, in the model's order. A layer that runs several times (ALBERT) comes once.

    Raises:
        FamilyError: no attention layer that collab_hf knows.
    """
    around: dict[nn.Module, nn.Module] = {}
    for module in model.modules():
        for child in module.children():
            around.setdefault(child, module)
    known: dict[str, tuple[nn.Module, Family]] = {
        name: (module, family) for name, module, family in attention_layers(model)
    }
    found = {}
    for path, module in model.named_modules():
        name = relative_name(model, path)
        if isinstance(module, CollabAttention):
            family = module.collab_family
        elif name in known and known[name][0] is module:
            family = known[name][1]
        else:
            continue
        output = submodule_at(module, around[module], family.output)
        found[name] = HeadSite(name, output, getattr(module, family.num_heads), _kind(module, family))
    if not found:
        raise FamilyError(f"{type(model).__name__} has no attention layer that collab_hf knows")
    return found


def head_counts(sites: Mapping[str, HeadSite], kinds: tuple[Kind, ...] = KINDS) -> dict[str, int]:
    """Numbers of heads by layer, of some kinds of attention.

    Args:
        sites: as `head_sites` gives them.
        kinds: which to count.

    Returns:
        Numbers by name.

    Raises:
        FamilyError: no layer is of these kinds.
    """
    found = {name: site.num_heads for name, site in sites.items() if site.kind in kinds}
    if not found:
        has = ", ".join(dict.fromkeys(site.kind for site in sites.values()))
        raise FamilyError(f"no attention of the kind {' or '.join(kinds)}; this model has {has}")
    return found


def _kind(module: Any, family: Family) -> Kind:
    if family.cross:
        return "cross"
    causal = getattr(module, "is_causal", False) or getattr(module, "is_decoder", False)
    return "decoder" if causal else "encoder"
