"""What a host's own config can say of a smaller model: its number of blocks, and one feed-forward width.

Nothing here goes by a model's name: whether a config can say it is tried out, on a model without memory that
is built from the changed config.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..errors import FamilyError
from ..modeling.families import relative_name, slot_of
from .blocks import blocks
from .sites import FeedForwardSite, feed_forward_sites

# Entries of configs that hold the width of feed-forwards, in all families of transformers that have one.
_WIDTHS = ("intermediate_size", "hidden_dim", "ffn_dim", "encoder_ffn_dim", "n_inner")
# Entries with one value for each block, which leave with it.
_BY_BLOCK = ("layer_types",)
# Of models that serve as backbones: names that are made of the number of blocks, and which of them come out.
_BACKBONE = ("stage_names", "out_features", "out_indices")

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class StockSizes:
    """The sizes of a model that its config can change.

    Attributes:
        blocks: its blocks by name, in the order they run.
        stack: name of the module list that holds them; None where their number can't be said.
        width_entry: the config's entry for the width of feed-forwards; None where it can't be said.
        feed_forwards: the feed-forwards by name.
    """

    blocks: dict[str, nn.Module]
    stack: str | None
    width_entry: str | None
    feed_forwards: dict[str, FeedForwardSite]

    @classmethod
    def of(cls, model: PreTrainedModel) -> StockSizes:
        """Find out what a model's config can say.

        Args:
            model: a dense model of a host's own class.

        Returns:
            The sizes.
        """
        found, feed_forwards = blocks(model), feed_forward_sites(model)
        stacks = {name.rpartition(".")[0] for name in found}
        stack = stacks.pop() if len(stacks) == 1 else None
        if stack is not None and not _can_drop(model, found):
            stack = None
        entry = next((e for e in _WIDTHS if _can_narrow(model, e, feed_forwards)), None)
        return cls(found, stack, entry, feed_forwards)

    @property
    def width(self) -> int:
        """Neurons of a feed-forward as it is."""
        return next(iter(self.feed_forwards.values())).shape.width

    def refuse(self, model: PreTrainedModel, part: str) -> None:
        """Say that a part can't be smaller in a model of the host's own class.

        Args:
            model: the model.
            part: `blocks` or `feed_forward`.

        Raises:
            FamilyError: always.
        """
        what = "fewer layers" if part == "blocks" else "one smaller width for all feed-forwards"
        raise FamilyError(
            f"a portable {type(model).__name__} can't have {what}, because the config of "
            f"{model.config.model_type} can't say so; leave {part} out of parts, or leave out portable"
        )

    def write_(self, config: Any, kept: Sequence[int], width: int) -> None:
        """Have a config say other sizes, in place.

        Args:
            config: the model's.
            kept: numbers of the blocks that stay.
            width: of the feed-forwards.
        """
        if self.stack is not None and len(kept) < len(self.blocks):
            _write_depth_(config, kept, len(self.blocks))
        if self.width_entry is not None and self.feed_forwards and width < self.width:
            setattr(config, self.width_entry, width)


def shapes_of(model: nn.Module) -> Shapes:
    """Shapes of everything that a checkpoint of a model holds."""
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def shapes_by_config(model: PreTrainedModel, config: Any) -> Shapes | None:
    """Shapes that a model of the same class has by another config; None where the class can't be built."""
    try:
        checked = type(config).from_dict(config.to_dict())
        with torch.device("meta"):
            return shapes_of(type(model)(checked))
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError, AttributeError, AssertionError):
        return None  # whatever its checks of the config's entries raise


def check_stock(model: PreTrainedModel, before: Shapes) -> None:
    """Make sure that the host's own class builds a changed model from its config alone.

    Args:
        model: the changed model.
        before: what `shapes_by_config` gave for the model as it was.

    Raises:
        FamilyError: it builds another.
    """
    built, own = shapes_by_config(model, model.config), shapes_of(model)
    wrong = next((name for name, shape in own.items() if (built or {}).get(name) != shape), None)
    if built is None or wrong is not None:
        raise FamilyError(
            f"the config of {type(model).__name__} can't say these sizes, so it can't be portable ({wrong})"
        )
    # A head or pooler that was left out before may be absent, and nothing else.
    absent = [name for name in built if name not in own and name not in before]
    if absent:
        raise FamilyError(f"{type(model).__name__} would lack {absent[0]}, so it can't be portable")


def _can_drop(model: PreTrainedModel, found: dict[str, nn.Module]) -> bool:
    """Whether a config with one block less builds the same model without its last block."""
    signatures = {tuple(shapes_of(block).items()) for block in found.values()}
    config = copy.deepcopy(model.config)
    if len(found) < 2 or len(signatures) > 1 or getattr(config, "num_hidden_layers", None) != len(found):
        return False
    _write_depth_(config, range(len(found) - 1), len(found))
    last = f"{list(found)[-1]}."
    before, after = shapes_by_config(model, model.config), shapes_by_config(model, config)
    if before is None or after is None:
        return False
    left = {n: s for n, s in before.items() if not relative_name(model, n).startswith(last)}
    return after == left


def _can_narrow(model: PreTrainedModel, entry: str, sites: dict[str, FeedForwardSite]) -> bool:
    """Whether a config with a smaller width builds the same model with every feed-forward narrower."""
    widths = {site.shape.width for site in sites.values()}
    # Removed neurons had a mean, which the refitted projection adds: it has to have a bias.
    biased = all(slot_of(site.module, site.family.down).bias is not None for site in sites.values())
    if len(widths) != 1 or not biased or not hasattr(model.config, entry):
        return False
    width = widths.pop()
    if getattr(model.config, entry) not in (width, None) or width < 2:
        return False
    config = copy.deepcopy(model.config)
    setattr(config, entry, width - 1)
    before, after = shapes_by_config(model, model.config), shapes_by_config(model, config)
    if before is None or after is None or set(before) != set(after):
        return False
    changed = [name for name in before if before[name] != after[name]]
    inside = {name: [c for c in changed if relative_name(model, c).startswith(f"{name}.")] for name in sites}
    return all(inside.values()) and sum(map(len, inside.values())) == len(changed)


def _write_depth_(config: Any, kept: Sequence[int], before: int) -> None:
    config.num_hidden_layers = len(kept)
    for name in _BY_BLOCK:
        values = getattr(config, name, None)
        if isinstance(values, list) and len(values) == before:
            setattr(config, name, [values[number] for number in kept])
    names = getattr(config, "stage_names", None)
    if isinstance(names, list) and config.out_features == names[-1:]:
        plain = {name: value for name, value in config.to_dict().items() if name not in _BACKBONE}
        rebuilt = type(config).from_dict(plain)
        for name in (*_BACKBONE, "_out_features", "_out_indices"):
            if name in vars(rebuilt):
                vars(config)[name] = vars(rebuilt)[name]
