"""What parts share that leave the host's own linear layers in place, only smaller."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DecompositionError
from ..host.rollback import undone
from ..modeling.families import Slot, relative_name
from ..modeling.plans import shrink_
from ..modeling.shrinking import fill_
from ..tensors.moments import Moments
from .part import Part


@dataclass(frozen=True, eq=False)
class Shrunk:
    """New weights of a site's linear layers.

    Attributes:
        plan: the sizes.
        weights: by the layer's path in the family's row, its weight and its bias (None to leave it).
        relative_error: expected squared error of the output projection's output over its variance.
    """

    plan: Any
    weights: Mapping[str, tuple[Tensor, Tensor | None]]
    relative_error: float


class ShrinkingPart(Part):
    """Base of parts whose solutions are `Shrunk`."""

    @abstractmethod
    def output(self, site: Any) -> nn.Linear:
        """The linear layer whose input's moments the part goes by."""

    def install_(self, site: Any, solution: Shrunk) -> None:
        """Put a solution into a site, in place.

        Args:
            site: a dense site.
            solution: its new weights.
        """
        shrink_(site.module, site.around, solution.plan, site.name)
        for path, (weight, bias) in solution.weights.items():
            fill_(site.at(path), weight, bias)

    @contextmanager
    def replaced(self, sites: Mapping[str, Any], solutions: Mapping[str, Shrunk]) -> Iterator[None]:
        """Let sites compute what solutions give inside the with block.

        Args:
            sites: of the model.
            solutions: for some of them.

        Yields:
            Nothing.
        """
        with ExitStack() as stack:
            for name, solution in solutions.items():
                stack.enter_context(undone(sites[name].around))
                self.install_(sites[name], solution)
            yield

    def converted(self, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        """The modules of a model that this part has made smaller, by name."""
        for name, module in model.named_modules():
            if self.name in getattr(module, "collab_plans", {}):
                yield relative_name(model, name), module

    def trained(self, module: nn.Module) -> Iterable[nn.Parameter]:
        """What recovery trains of such a module: all of it."""
        return module.parameters()


def factors_of(linear: Any, name: str) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a linear layer in float64.

    Args:
        linear: an nn.Linear or Conv1D, or a `Slot` of one.
        name: of its site, for the message.

    Returns:
        (out_features, in_features), and (out_features,) or None.

    Raises:
        DecompositionError: weights that are not finite.
    """
    slot = linear if isinstance(linear, Slot) else Slot(linear)
    weight = slot.weight.detach().double()
    bias = None if slot.bias is None else slot.bias.detach().double()
    if not all(bool(torch.isfinite(t).all()) for t in (weight, *([] if bias is None else [bias]))):
        raise DecompositionError(f"the weights of {name} are not finite")
    return weight, bias


def rows_of(linear: Any, kept: Tensor) -> tuple[Tensor, Tensor | None]:
    """Some outputs of a linear layer.

    Args:
        linear: an nn.Linear or Conv1D, or a `Slot` of one.
        kept: indices of the outputs.

    Returns:
        Weight and bias of those outputs.
    """
    slot = linear if isinstance(linear, Slot) else Slot(linear)
    kept = kept.to(slot.weight.device)
    return slot.weight.detach()[kept], None if slot.bias is None else slot.bias.detach()[kept]


def moments_of(moments: Moments, columns: Tensor) -> Moments:
    """Moments of some dimensions.

    Args:
        moments: of all dimensions.
        columns: indices of those wanted.

    Returns:
        Their moments.
    """
    columns = columns.to(moments.mean.device)
    return Moments(moments.mean[columns], moments.covariance[columns][:, columns], moments.count)
