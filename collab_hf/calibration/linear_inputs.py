"""Streamed moments of what linear layers read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from ..errors import CalibrationError
from ..host.inputs import real_tokens
from ..host.watch import LayerCall, watch_layers
from ..tensors.moments import Moments, MomentsAccumulator


def linear_moments(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Mapping[str, Any]],
    *,
    progress: bool = False,
) -> dict[str, Moments]:
    """Run the model over batches and collect the moments of each linear layer's input, padding left out.

    Args:
        model: called as model(**batch); left as it was found.
        layers: linear layers of the model by name; the same layer may stand under several names.
        batches: model inputs by name.
        progress: show a progress bar on stderr.

    Returns:
        Moments by name, in the order of layers.

    Raises:
        CalibrationError: no batches, a batch that the model refuses, activations that are not finite, or a
            layer that saw no token (named).
    """
    first = {module: name for name, module in reversed([*layers.items()])}
    found = {name: MomentsAccumulator(name) for name in first.values()}

    def see(call: LayerCall) -> None:
        found[call.name].update(real_tokens(call.query_input, call.masks.get("attention_mask")))

    watched = {name: module for module, name in first.items()}
    for _ in watch_layers(model, watched, batches, see, progress=progress):
        pass
    unseen = [name for name, accumulator in found.items() if accumulator.count == 0]
    if unseen:
        raise CalibrationError(f"no token of the calibration data reached {', '.join(unseen)}")
    moments = {name: accumulator.moments() for name, accumulator in found.items()}
    return {name: moments[first[module]] for name, module in layers.items()}
