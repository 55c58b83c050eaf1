"""How far the model's output moves when the scores of some layers are replaced."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..calibration.held_out import Batch
from ..errors import CalibrationError
from ..host.inputs import evaluating, move, views
from ..host.replay import Replay
from ..host.states import last_hidden_states


class Divergence:
    """Compares a model with itself, changed, on the same inputs.

    The measure is the mean of three relative squared errors of the base model's last hidden states (of the
    decoder's, or of each tower's, where the base model gives none): over all tokens, of the first token, and
    of the mean token. A head reads one of the three. Half of it is about one minus the cosine of the
    embeddings.

    Layers before the first one that changed don't run again.

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
        self._replay = Replay(model)
        self._reference = []
        for number, batch in enumerate(batches):
            with self._replay.recording(number):
                self._reference.append(self._run(batch))

    def measure(self) -> float:
        """Divergence of the model, as it is now, from what it was: 0 where nothing changed."""
        count = len(self._reference[0])
        errors, norms = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
        for number, (batch, reference) in enumerate(zip(self._batches, self._reference, strict=True)):
            with self._replay.replaying(number):
                found = self._run(batch)
            for i, (new, old) in enumerate(zip(found, reference, strict=True)):
                errors[i] += (new - old).square().sum().double().cpu()
                norms[i] += old.square().sum().double().cpu()
        return float((errors / norms.clamp_min(torch.finfo(torch.float64).tiny)).mean())

    @classmethod
    def between(cls, model: PreTrainedModel, original: PreTrainedModel, batches: Sequence[Batch]) -> float:
        """Divergence of one model from another.

        Args:
            model: the changed model.
            original: what it is compared with.
            batches: model inputs by name.

        Returns:
            0 where both give the same.
        """
        found = cls(original, batches)
        found._model = model
        return found.measure()

    def _run(self, batch: Batch) -> list[Tensor]:
        """The three views of the last hidden states; of a model with two towers, those of each."""
        device, dtype = self._model.device, self._model.dtype
        with evaluating(self._model), torch.no_grad():
            states = last_hidden_states(self._model, move(batch, device, dtype))
        if not states:
            raise CalibrationError(f"{type(self._model).__name__} gives no hidden states to compare")
        return [view for hidden, mask in states for view in views(hidden, mask)]
