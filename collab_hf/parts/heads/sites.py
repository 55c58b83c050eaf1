"""Where the heads of a model are: every attention layer that collab_hf knows, dense or compressed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from ...errors import FamilyError
from ...modeling.attention import CollabAttention
from ...modeling.families import Family, all_attention_layers, relative_name, submodule_at
from ...modeling.kinds import check_kinds, matches

Head = tuple[str, int]
"""One head: the layer's name relative to the base model, and its number there."""


@dataclass(frozen=True, eq=False)
class HeadSite:
    """An attention layer as a row of heads.

    Attributes:
        name: the layer's name relative to the base model.
        output: the projection that reads all heads side by side.
        num_heads: heads that it has now.
        keeps_heads: why no head can be taken out; None where one can.
    """

    name: str
    output: nn.Module
    num_heads: int
    keeps_heads: str | None = None


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
        name: (module, family) for name, module, family in all_attention_layers(model)
    }
    found = {}
    for path, module in model.named_modules():
        name = relative_name(model, path)
        reason: str | None = "its queries and keys are compressed"
        if isinstance(module, CollabAttention):
            family = module.collab_family
        elif name in known and known[name][0] is module:
            family = known[name][1]
            reason = family.refusal(module, "heads")
            if family.key_value_heads(module) < family.heads(module):
                reason = reason or "several of them share a key and can only go together, by --parts heads"
        else:
            continue
        output = submodule_at(module, around[module], family.output)
        found[name] = HeadSite(name, output, family.heads(module), reason)
    if not found:
        raise FamilyError(f"{type(model).__name__} has no attention layer that collab_hf knows")
    return found


def head_counts(sites: Mapping[str, HeadSite], attention: tuple[str, ...] = ()) -> dict[str, int]:
    """Numbers of heads by layer, of some kinds of attention.

    Args:
        sites: as `head_sites` gives them.
        attention: kinds such as `self` or `decoder-cross`, as for `CollabConfig`; without any, all.

    Returns:
        Numbers by name.

    Raises:
        ConfigError: no layer is of these kinds.
    """
    check_kinds(sites, attention)
    return {name: site.num_heads for name, site in sites.items() if matches(name, attention)}


def removable_heads(model: nn.Module, attention: tuple[str, ...] = ()) -> dict[str, int]:
    """Numbers of heads of the layers that can lose some.

    Args:
        model: a transformers model.
        attention: as for `head_counts`.

    Returns:
        Numbers by name.

    Raises:
        FamilyError: no attention layer that collab_hf knows, or none whose heads can be taken out.
        ConfigError: no layer is of these kinds.
    """
    sites = head_sites(model)
    counts = head_counts(sites, attention)
    found = {name: count for name, count in counts.items() if sites[name].keeps_heads is None}
    if not found:
        name = next(iter(counts))
        raise FamilyError(
            f"heads of {type(model).__name__} can't be taken out: {sites[name].keeps_heads} ({name})"
        )
    return found
