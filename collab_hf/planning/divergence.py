"""How far the model's output moves when the scores of some layers are replaced."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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
        _check_number(batches)
        self._model = model
        self._batches = batches
        self._replay = Replay(model)
        self._reference = []
        for number, batch in enumerate(batches):
            with self._replay.recording(number):
                self._reference.append(_run(model, batch))

    def measure(self) -> float:
        """Divergence of the model, as it is now, from what it was: 0 where nothing changed."""

        def again(number: int) -> list[Tensor]:
            with self._replay.replaying(number):
                return _run(self._model, self._batches[number])

        return _mean_error((again(number), reference) for number, reference in enumerate(self._reference))

    @staticmethod
    def between(model: PreTrainedModel, original: PreTrainedModel, batches: Sequence[Batch]) -> float:
        """Divergence of one model from another; of their outputs, one batch is in memory at a time.

        Args:
            model: the changed model.
            original: what it is compared with.
            batches: model inputs by name.

        Returns:
            0 where both give the same.

        Raises:
            CalibrationError: no batch, or an output without hidden states.
        """
        _check_number(batches)
        return _mean_error((_run(model, batch), _run(original, batch)) for batch in batches)


def _check_number(batches: Sequence[Batch]) -> None:
    if not batches:
        raise CalibrationError("calibration data held no batch")


def _run(model: PreTrainedModel, batch: Batch) -> list[Tensor]:
    """The three views of the last hidden states; of a model with two towers, those of each."""
    with evaluating(model), torch.no_grad():
        states = last_hidden_states(model, move(batch, model.device, model.dtype))
    if not states:
        raise CalibrationError(f"{type(model).__name__} gives no hidden states to compare")
    return [view for hidden, mask in states for view in views(hidden, mask)]


def _mean_error(runs: Iterable[tuple[list[Tensor], list[Tensor]]]) -> float:
    """Mean of the views' relative squared errors, from what was found and the reference by batch."""
    sums: Tensor | float = 0.0
    for found, reference in runs:
        squares = [
            (float((new - old).square().sum()), float(old.square().sum()))
            for new, old in zip(found, reference, strict=True)
        ]
        sums = sums + torch.tensor(squares, dtype=torch.float64)
    errors, norms = torch.as_tensor(sums).T
    return float((errors / norms.clamp_min(torch.finfo(torch.float64).tiny)).mean())
