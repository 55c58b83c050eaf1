"""Adam on float32 copies of the weights, with steps relative to their size and a state of plain tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

_BETAS = (0.9, 0.999)
_EPS = 1e-8

# A tensor of smaller root mean square than this, such as a bias of zeros, moves as if it had this one.
_LEAST_SCALE = 1e-3


class Adam:
    """Adam that trains weights of any dtype in float32, each tensor at a rate relative to its size.

    Args:
        parameters: by name; the values that go into a state carry these names. Sizes are those they have now.

    Attributes:
        updates: how many there were.

    Source:
        Kingma & Ba 2015, arXiv:1412.6980; Shazeer & Stern 2018, arXiv:1804.04235, section 8, for the rates.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = dict(parameters)
        self._values = {name: p.detach().float() for name, p in parameters.items()}
        self._mean = {name: torch.zeros_like(v) for name, v in self._values.items()}
        self._square = {name: torch.zeros_like(v) for name, v in self._values.items()}
        # Shared projections of DINOv2 are a third as large as MiniLM's: one absolute rate diverges for the
        # former or crawls for the latter.
        self._scales = {
            name: max(_LEAST_SCALE, float(v.square().mean().sqrt())) for name, v in self._values.items()
        }
        self.updates = 0

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Update the parameters by their gradients, and drop these.

        Args:
            rate: learning rate, relative to each tensor's root mean square.
        """
        self.updates += 1
        first, second = (1 - beta**self.updates for beta in _BETAS)
        for name, parameter in self._parameters.items():
            if parameter.grad is None:
                continue
            gradient = parameter.grad.float()
            mean, square = self._mean[name], self._square[name]
            mean.lerp_(gradient, 1 - _BETAS[0])
            square.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
            value = self._values[name]
            size = rate * self._scales[name] / first
            value.addcdiv_(mean, square.sqrt().div_(math.sqrt(second)).add_(_EPS), value=-size)
            self._store(name)
            parameter.grad = None

    def values(self) -> dict[str, Tensor]:
        """Copies of the float32 weights."""
        return {name: value.clone() for name, value in self._values.items()}

    @torch.no_grad()
    def set_values(self, values: Mapping[str, Tensor]) -> None:
        """Put weights in place, in the model too.

        Args:
            values: by name, as `values` gave them.
        """
        for name, value in values.items():
            self._values[name].copy_(value)
            self._store(name)

    def state(self) -> dict[str, Tensor]:
        """Weights and moments, ready for a file."""
        return {
            **{f"value.{name}": t for name, t in self._values.items()},
            **{f"mean.{name}": t for name, t in self._mean.items()},
            **{f"square.{name}": t for name, t in self._square.items()},
        }

    def set_state(self, state: Mapping[str, Tensor], count: int) -> None:
        """Go on from a state.

        Args:
            state: as `state` gave it.
            count: updates so far.
        """
        self.set_values({name: state[f"value.{name}"] for name in self._values})
        for name in self._values:
            self._mean[name].copy_(state[f"mean.{name}"])
            self._square[name].copy_(state[f"square.{name}"])
        self.updates = count

    def _store(self, name: str) -> None:
        parameter = self._parameters[name]
        # The copy of a float32 weight is the weight itself.
        if parameter.dtype != torch.float32:
            parameter.copy_(self._values[name])


def one_cycle(progress: float, warmup: float) -> float:
    """Share of the peak learning rate: up along half a cosine, then down to zero along another.

    Args:
        progress: share of the run that is done, in [0, 1].
        warmup: share of the run until the peak.

    Returns:
        In [0, 1].

    Source:
        Smith & Topin 2018, arXiv:1708.07120, with cosines as in torch's OneCycleLR.
    """
    # A first step of a rate of zero would be wasted; torch starts from a 25th of the peak too.
    start = 0.04
    if progress < warmup:
        return start + (1 - start) * (1 - math.cos(math.pi * progress / warmup)) / 2
    return (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup)))) / 2
