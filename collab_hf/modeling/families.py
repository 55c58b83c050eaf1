"""Which classes of a host are attention and feed-forward, and the walks over them.

This file ships with saved checkpoints: it imports torch and transformers alone.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any

from torch import nn

from .families_attention import BART, BERT, CLIP, DPT, FAMILIES, LAYOUT, OPT, VIT
from .families_feed_forward import FEED_FORWARDS
from .families_row import Family, FeedForward, Slot, slot_of

__all__ = [
    "FAMILIES",
    "FEED_FORWARDS",
    "Family",
    "FeedForward",
    "Slot",
    "all_attention_layers",
    "attention_layers",
    "family_of",
    "feed_forward_layers",
    "find_host",
    "is_cross",
    "register_family",
    "relative_name",
    "slot_at",
    "slot_of",
]

# Classes that users registered, by the class itself.
_REGISTERED: dict[type[nn.Module], Family] = {}
_REGISTERED_FEED_FORWARDS: dict[type[nn.Module], FeedForward] = {}

# Names that layers around attention give to the one between two sequences.
_CROSS_NAMES = frozenset({"crossattention", "cross_attention", "encoder_attn", "EncDecAttention"})

# Contracts that other classes copy word for word, and what their forward may name besides a row's own
# attributes: anything else, a norm of the queries say, is not part of the contract.
_CONTRACTS = (BERT, LAYOUT, VIT, DPT, CLIP, BART, OPT)
_NEUTRAL = frozenset(
    "ALL_ATTENTION_FUNCTIONS EncoderDecoderCache _attn_implementation all_head_size config contiguous "
    "cross_attention_cache eager_attention_forward get get_interface is_causal is_updated isinstance keys "
    "layer_idx layers num_attention_heads num_heads p reshape self_attention_cache shape size training "
    "transpose update values view".split()
)


@cache
def _row_of(host: type[nn.Module]) -> Family | None:
    if not host.__module__.startswith("transformers.models."):
        return None
    folder = host.__module__.split(".")[2]
    row = FAMILIES.get(f"{folder}.{host.__name__}") or FAMILIES.get(host.__name__)
    return row or next((row for row in _CONTRACTS if _is_copy(host, row)), None)


def _is_copy(host: type[nn.Module], row: Family) -> bool:
    """Whether a class does what a row says: its forward names the row's attributes, and nothing unknown."""
    code = getattr(host.forward, "__code__", None)
    if code is None or "Attention" not in host.__name__:
        return False
    own = {row.query, row.key, row.value, row.head_dim, row.dropout, str(row.scaling)}
    own |= {row.output} if row.ending == "linear" else set()
    arguments = set(code.co_varnames[: code.co_argcount])
    read = {row.mask, row.cache, row.source} - {None}
    unread = arguments - {"self", "hidden_states", "output_attentions"} - read
    named = set(code.co_names)
    # A cross-attention's arguments are all there, or the contract is another one.
    has_source = row.source is None or row.source in arguments
    return own <= named <= own | _NEUTRAL and not unread and has_source


def family_of(module: nn.Module) -> Family | None:
    """The row of a dense attention module.

    Args:
        module: any module.

    Returns:
        Its row, or None where it is no attention that collab_hf knows.
    """
    host = type(module)
    row = _REGISTERED.get(host) or _row_of(host)
    if row is not None and row.crossing and getattr(module, "is_cross_attention", False):
        return replace(row, **dict(row.crossing))
    return row


def is_cross(name: str) -> bool:
    """Whether a module's name says that it attends another sequence."""
    return not _CROSS_NAMES.isdisjoint(name.split(".")[-2:])


@lru_cache(maxsize=1024)
def _crossing(row: Family) -> Family:
    return replace(row, cross=True)


def register_family(
    host: type[nn.Module], row: Family | None = None, *, feed_forward: FeedForward | None = None
) -> None:
    """Make an attention or feed-forward class of your own known.

    Args:
        host: the class; its name must not be that of a class of transformers that has a row.
        row: where its projections are, and what its forward reads and gives; None for a feed-forward.
        feed_forward: the same of a class that holds a feed-forward.
    """
    if row is not None:
        _REGISTERED[host] = row
    if feed_forward is not None:
        _REGISTERED_FEED_FORWARDS[host] = feed_forward


def all_attention_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module, Family]]:
    """Walk every dense attention layer that has a row, also where queries and keys can't be compressed.

    Args:
        model: a transformers model, with or without a task head.

    Yields:
        Name relative to the base model (the same for every task head), module, row. A module that several
        layers share comes once.
    """
    for name, module in model.named_modules():
        row = family_of(module)
        if row is not None:
            crossing = row.source is not None and not row.cross and is_cross(name)
            yield relative_name(model, name), module, _crossing(row) if crossing else row


def attention_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module, Family]]:
    """Walk the dense attention layers whose queries and keys can be compressed.

    Args:
        model: a transformers model, with or without a task head.

    Yields:
        As `all_attention_layers`.
    """
    for name, module, row in all_attention_layers(model):
        if row.refusal(module) is None:
            yield name, module, row


def feed_forward_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module, FeedForward]]:
    """Walk the feed-forward modules that collab_hf knows.

    Args:
        model: a transformers model, with or without a task head.

    Yields:
        Name relative to the base model, module, row. A module that several layers share comes once.
    """
    for name, module in model.named_modules():
        host = type(module)
        row = _REGISTERED_FEED_FORWARDS.get(host)
        if row is None and host.__module__.startswith("transformers."):
            row = FEED_FORWARDS.get(host.__name__)
        if row is not None:
            yield relative_name(model, name), module, row


def relative_name(model: nn.Module, name: str) -> str:
    """A module's name without the prefix that a task head puts before the base model's."""
    prefix = getattr(model, "base_model_prefix", "")
    return name.removeprefix(f"{prefix}.") if prefix else name


def slot_at(model: nn.Module, name: str, path: str) -> Any:
    """What a row's path leads to.

    Args:
        model: the model.
        name: name of the row's module in it, relative to the base model.
        path: a path of the row, such as `..output.dense`.

    Returns:
        A `Slot` of a projection, or the tensor at the path's end.
    """
    prefix = getattr(model, "base_model_prefix", "")
    base = getattr(model, prefix, model) if prefix else model
    path = path.replace("{}", name.rpartition(".")[2])
    while path.startswith(".."):
        name, path = name.rpartition(".")[0], path[2:]
    start = base.get_submodule(name)
    end, _, last = path.rpartition(".")
    holder = start.get_submodule(end) if end else start
    found = getattr(holder, last.partition(":")[0])
    return slot_of(start, path) if isinstance(found, nn.Module) else found


def find_host(name: str) -> type[Any] | None:
    """A class of transformers' model files by its name.

    Args:
        name: such as `BertSelfAttention`.

    Returns:
        The class. Files that are loaded are searched first, then those whose name is in the class's.
    """
    loaded = [m for n, m in sys.modules.items() if n.startswith("transformers.models.") and "modeling_" in n]
    for module in (*loaded, *_files_named_in(name)):
        host = vars(module).get(name)
        if isinstance(host, type) and host.__module__ == module.__name__:
            return host
    return next((h for h in _REGISTERED if h.__name__ == name), None)


def _files_named_in(name: str) -> Iterator[Any]:
    """The modeling files of folders that a class's name holds, the longest first; then those of its row."""
    import transformers.models as models
    from transformers.models.auto.configuration_auto import model_type_to_module_name

    lower = name.lower()
    folders = [f.name for f in pkgutil.iter_modules(models.__path__) if f.name.replace("_", "") in lower]
    row = FAMILIES.get(name)
    folders.sort(key=len, reverse=True)
    folders += [] if row is None else [model_type_to_module_name(kind) for kind in row.model_types]
    for folder in folders:
        package = importlib.import_module(f"transformers.models.{folder}")
        for file in pkgutil.iter_modules(package.__path__):
            if file.name.startswith("modeling_"):
                yield importlib.import_module(f"{package.__name__}.{file.name}")
