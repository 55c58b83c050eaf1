"""How far the model's output moves when the scores of some layers are replaced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..calibration.held_out import Batch
from ..errors import CalibrationError
from ..host.inputs import evaluating


class Divergence:
    """Compares a model with itself, changed, on the same inputs.

    The measure is the mean of three relative squared errors of the base model's last hidden states: over all
    tokens, of the first token, and of the mean token. A head reads one of the three. Half of it is about one
    minus the cosine of the embeddings.

    Args:
        model: a transformers model; it runs in eval mode and is left as it was found.
        batches: model inputs by name.

    Raises:
        CalibrationError: no batch, or an output without hidden states.
    """

    def __init__(self, model: PreTrainedModel, batches: Sequence[Batch]) -> None:
        if not batches:
            raise CalibrationError("calibration data held no batch")
        self._model = model
        self._batches = batches
        self._reference = [_views(*self._run(batch)) for batch in batches]

    def measure(self) -> float:
        """Divergence of the model, as it is now, from what it was: 0 where nothing changed."""
        errors, norms = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
        for batch, reference in zip(self._batches, self._reference, strict=True):
            for i, (new, old) in enumerate(zip(_views(*self._run(batch)), reference, strict=True)):
                errors[i] += (new - old).square().sum().double().cpu()
                norms[i] += old.square().sum().double().cpu()
        return float((errors / norms.clamp_min(torch.finfo(torch.float64).tiny)).mean())

    def _run(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Last hidden states (B, T, D), and the mask of real tokens (B, T) where the inputs have one."""
        base = self._model.base_model
        seen: list[Any] = []
        hook = base.register_forward_hook(lambda _module, _args, output: seen.append(output))
        device, dtype = self._model.device, self._model.dtype
        inputs = {
            k: v.to(device, dtype if v.is_floating_point() else v.dtype) if isinstance(v, Tensor) else v
            for k, v in batch.items()
        }
        try:
            with evaluating(self._model), torch.no_grad():
                self._model(**inputs)
        finally:
            hook.remove()
        hidden = getattr(seen[-1], "last_hidden_state", None) if seen else None
        if hidden is None:
            raise CalibrationError(f"{type(base).__name__} gives no hidden states to compare")
        mask = inputs.get("attention_mask")
        return hidden, mask if isinstance(mask, Tensor) and mask.shape == hidden.shape[:2] else None


def _views(hidden: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """What heads read: every real token (N, D), the first one (B, D), the mean one (B, D)."""
    hidden = hidden.float()
    if mask is None:
        return hidden.flatten(0, 1), hidden[:, 0], hidden.mean(1)
    weight = mask.to(hidden).unsqueeze(-1)
    return hidden[mask.bool()], hidden[:, 0], (hidden * weight).sum(1) / weight.sum(1).clamp_min(1)
