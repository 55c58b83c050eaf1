"""Which classes of a host are attention and feed-forward, and the walks over them.

This file ships with saved checkpoints: it imports torch and transformers alone.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from typing import Any

from torch import nn

from .errors import ConfigError
from .families_attention import FAMILIES
from .families_copies import contract_of
from .families_feed_forward import FEED_FORWARDS
from .families_row import Family, FeedForward
from .kinds import is_cross
from .slots import Slot, slot_of

__all__ = [
    "FAMILIES",
    "FEED_FORWARDS",
    "Family",
    "FeedForward",
    "Slot",
    "all_attention_layers",
    "attention_layers",
    "attention_row",
    "family_of",
    "feed_forward_layers",
    "feed_forward_row",
    "find_host",
    "register_family",
    "relative_name",
    "row_of_class",
    "slot_of",
    "submodule_at",
]

# Classes that users registered, by the class itself.
_REGISTERED: dict[type[nn.Module], Family] = {}
_REGISTERED_FEED_FORWARDS: dict[type[nn.Module], FeedForward] = {}
_FOUND: dict[type[nn.Module], Family | None] = {}


def row_of_class(host: type[nn.Module]) -> Family | None:
    """The row of an attention class, by its name or because it copies one that has a row.

    Args:
        host: any module's class.

    Returns:
        Its row, or None where it is no attention that collab_hf knows.
    """
    if host in _REGISTERED:
        return _REGISTERED[host]
    if not host.__module__.startswith("transformers.models."):
        return None
    if host not in _FOUND:
        folder = host.__module__.split(".")[2]
        row = FAMILIES.get(f"{folder}.{host.__name__}") or FAMILIES.get(host.__name__)
        _FOUND[host] = row or contract_of(host)
    return _FOUND[host]


def family_of(module: nn.Module) -> Family | None:
    """The row of a dense attention module.

    Args:
        module: any module.

    Returns:
        Its row, or None where it is no attention that collab_hf knows.
    """
    row = row_of_class(type(module))
    if row is not None and row.crossing and getattr(module, "is_cross_attention", False):
        return replace(row, **dict(row.crossing))
    return row


def attention_row(module: nn.Module) -> Family:
    """The row of a dense attention module.

    Args:
        module: the module.

    Returns:
        Its row.

    Raises:
        ConfigError: it is no attention that collab_hf knows.
    """
    row = family_of(module)
    if row is None:
        raise ConfigError(f"{type(module).__name__} is no attention class that collab_hf knows")
    return row


def feed_forward_row(module: nn.Module) -> FeedForward:
    """The row of a feed-forward module.

    Args:
        module: the module.

    Returns:
        Its row.

    Raises:
        ConfigError: it is no feed-forward that collab_hf knows.
    """
    host = type(module)
    row = _REGISTERED_FEED_FORWARDS.get(host)
    if row is None and host.__module__.startswith("transformers."):
        row = FEED_FORWARDS.get(host.__name__)
    if row is None:
        raise ConfigError(f"{host.__name__} is no feed-forward class that collab_hf knows")
    return row


@lru_cache(maxsize=1024)
def _crossing(row: Family) -> Family:
    return replace(row, cross=True)


def register_family(
    host: type[nn.Module],
    row: Family | None = None,
    *,
    feed_forward: FeedForward | None = None,
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
        with suppress(ConfigError):
            yield relative_name(model, name), module, feed_forward_row(module)


def submodule_at(module: nn.Module, around: nn.Module, path: str) -> Any:
    """The module or parameter at a path of a row.

    Args:
        module: what the row is of.
        around: the module that holds it.
        path: names joined by dots; `..` in front starts at `around`, and `{}` is the module's name there.

    Returns:
        What is there; of `Wi:0/2`, the `Slot` that holds half of the outputs of Wi.
    """
    found: Any = module
    if path.startswith(".."):
        found, path = around, path[2:]
    if "{}" in path:
        path = path.replace("{}", next(name for name, child in around.named_children() if child is module))
    if ":" in path:
        return slot_of(found, path)
    for name in path.split("."):
        found = getattr(found, name)
    return found


def relative_name(model: nn.Module, name: str) -> str:
    """A module's name without the prefix that a task head puts before the base model's."""
    prefix = getattr(model, "base_model_prefix", "")
    return name.removeprefix(f"{prefix}.") if prefix else name


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
