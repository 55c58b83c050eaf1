"""What importance is the gradient of: the loss on labels, or without labels that of sampled outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...errors import CalibrationError
from ...host.inputs import views
from ...host.states import last_hidden_states

# Of a model and one batch of inputs on its device: the mean over the batch's examples of a loss that asks for
# gradients. The number tells the batch, so that what is random comes out the same again.
Loss = Callable[[PreTrainedModel, Mapping[str, Any], int], Tensor]


def labelled_loss(model: PreTrainedModel, inputs: Mapping[str, Any], number: int) -> Tensor:
    """The model's own loss on the labels in a batch.

    Args:
        model: with a task head.
        inputs: with labels, as the head takes them.
        number: of the batch, from 0.

    Returns:
        The loss, a mean over the batch's examples for every head that transformers has.

    Raises:
        CalibrationError: the model gave no loss.
    """
    loss = getattr(model(**inputs), "loss", None)
    if not isinstance(loss, Tensor):
        raise CalibrationError(
            f"{type(model).__name__} gave no loss on batch {number + 1}; labelled batches need labels"
        )
    return loss


def sampled_loss(seed: int = 0) -> Loss:
    r"""A loss without labels: minus the log-likelihood of outputs that are sampled around the model's own.

    The divergence of a model from itself has its least value, zero, where all gates are one, so its gradient
    there says nothing; its curvature does. Let f(x) be the last hidden states as `Divergence` sees them (all
    real tokens, the first, the mean one; each over its size, so that |f|^2 is one), and J_h = df / dgate_h.
    Turning off head h moves the output by |J_h|^2 to second order, which is the divergence that it causes.
    With v ~ N(0, I), the gradient of -log N(f + v; f, I) in the gate is v . J_h up to its sign, and

        E_v (v . J_h)^2 = |J_h|^2,    E_v |v . J_h| = sqrt(2 / pi) |J_h|.

    This is the Fisher information of the gates under a Gaussian around the output: the paper's formula
    E |dL / dgate_h|, with labels that the model itself gave, estimates the root of the divergence.

    Args:
        seed: of v; every batch has its own.

    Returns:
        The loss; its value has no meaning, its gradient has.

    Source:
        Hutchinson 1989, "A stochastic estimator of the trace of the influence matrix"; Martens 2020,
        arXiv:1412.1193, on sampling labels from the model.
    """

    def loss(model: PreTrainedModel, inputs: Mapping[str, Any], number: int) -> Tensor:
        states = last_hidden_states(model, inputs)
        if not states:
            raise CalibrationError(f"{type(model).__name__} gives no hidden states to score heads by")
        random = torch.Generator().manual_seed(seed * 1_000_003 + number)
        found, examples = [view for s in states for view in views(*s)], len(states[0][0])
        total = torch.zeros((), device=found[0].device)
        for view in found:
            noise = torch.randn(view.shape, generator=random).to(view)
            size = (view.detach().square().sum() * len(found) / examples).sqrt()
            total = total + (view * noise).sum() / size.clamp_min(torch.finfo(view.dtype).tiny)
        return total / examples

    return loss
