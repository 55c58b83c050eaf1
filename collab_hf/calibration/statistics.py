"""Streamed activation statistics of each attention layer's input.

The forward passes of the whole model run once over the calibration batches; hooks on the attention modules
add every real token to a `MomentsAccumulator`. Memory is D x D per layer, whatever the
amount of data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from torch import Tensor, nn

from ..errors import CalibrationError
from ..host.inputs import real_tokens
from ..host.watch import LayerCall, watch_layers
from ..processes import ALONE, Processes
from ..tensors.moments import LayerStatistics, MomentsAccumulator

# What the host classes call the key/value input of cross-attention, in the order it is looked for.
_KEY_INPUT_NAMES = ("encoder_hidden_states", "key_value_states", "key_tensor")


def collect_statistics(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Mapping[str, Any]],
    *,
    processes: Processes = ALONE,
    progress: bool = False,
) -> dict[str, LayerStatistics]:
    """Run the model over batches and collect the moments of every attention layer's input.

    Padding is left out: the 2-D attention mask that the layer's own sub-model received (the text tower's mask
    says nothing about a vision tower, nor the encoder's about the decoder's queries) selects the tokens,
    wherever its shape is that of the layer's input; all tokens count elsewhere (images, audio whose mask is
    in raw frames). A module that runs several times per forward pass (ALBERT) sums up all its calls. The
    model runs in eval mode without gradients and is left as it was found, after an error too.

    Args:
        model: called as model(**batch); its parameters and buffers stay as they are.
        layers: attention modules of the model by name; names come back as keys and stand in error messages.
        batches: model inputs by name. Tensors are moved to the model's device, floating ones to its dtype;
            other values are passed on as they are. Read once, in order.
        processes: that share the batches, one after another in turns; each gets the statistics of all.
        progress: show a progress bar on stderr.
    Returns:
        Statistics by layer name, in the order of layers, on the device where each layer ran.
    Raises:
        CalibrationError: no layers, no batches, a batch that is not a mapping with at least one tensor, a
            batch that the model refuses, activations that are not finite (layer named), or a layer that saw
            no token (named).
    """
    if not layers:
        raise CalibrationError("calibration needs at least one attention layer, got none")
    recorder = _Recorder(layers)
    # Whole, what is given may know its length, which the first line of the log tells.
    alone = processes.count == 1
    mine = batches if alone else islice(batches, processes.rank, None, processes.count)

    def run() -> int:
        return sum(1 for _ in watch_layers(model, layers, mine, recorder.see, progress=progress))

    if not sum(processes.gather(run)):
        raise CalibrationError(
            "the calibration data has no batch; pass at least one, or calibration=None to work without data"
        )
    recorder.total_(processes)
    return recorder.statistics()


class _Recorder:
    """Accumulators of what the layers read."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self._queries = {name: MomentsAccumulator(name) for name in layers}
        self._keys: dict[str, MomentsAccumulator] = {}  # cross-attention only

    def see(self, call: LayerCall) -> None:
        """Add the real tokens of a call."""
        source, arguments = call.query_input, call.arguments
        self._queries[call.name].update(real_tokens(source, call.masks.get("attention_mask")))
        key_input = next((arguments[k] for k in _KEY_INPUT_NAMES if arguments.get(k) is not None), None)
        if isinstance(key_input, Tensor) and key_input is not source:
            accumulator = self._keys.setdefault(call.name, MomentsAccumulator(f"key side of {call.name}"))
            accumulator.update(real_tokens(key_input, call.masks.get("encoder_attention_mask")))

    def total_(self, processes: Processes) -> None:
        """Add up what all processes saw, layer by layer."""
        if processes.count == 1:
            return
        found = processes.gather(
            lambda: [{n: a.hidden_size for n, a in side.items()} for side in (self._queries, self._keys)]
        )
        for number, side in enumerate((self._queries, self._keys)):
            sizes: dict[str, int] = {}
            for process in found:
                sizes |= {name: size for name, size in process[number].items() if size is not None}
            # In one order everywhere: one process may have seen a layer first that another saw last or never.
            for name in sorted(sizes):
                where = name if side is self._queries else f"key side of {name}"
                accumulator = side.setdefault(name, MomentsAccumulator(where))
                accumulator.total_(processes.total, sizes[name], processes.device)

    def statistics(self) -> dict[str, LayerStatistics]:
        """What was collected, by layer name."""
        accumulators = [(n, a) for n, a in [*self._queries.items(), *self._keys.items()] if a.count == 0]
        if accumulators:
            unseen = ", ".join(dict.fromkeys(name for name, _ in accumulators))
            raise CalibrationError(
                f"no token of the calibration data reached {unseen}; the batches must make the model run "
                "every layer that is to be compressed, and hold tokens that are not padding"
            )
        result = {}
        for name, accumulator in self._queries.items():
            query = accumulator.moments()
            result[name] = LayerStatistics(query, self._keys[name].moments() if name in self._keys else query)
        return result
