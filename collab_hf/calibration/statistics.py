"""Streamed activation statistics of each attention layer's input.

The forward passes of the whole model run once over the calibration batches; hooks on the attention modules
add every real token to a `MomentsAccumulator`. Memory is D x D per layer, whatever the
amount of data.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CalibrationError
from ..tensors.moments import Moments, MomentsAccumulator

# What the host classes call the key/value input of cross-attention, in the order it is looked for.
_KEY_INPUT_NAMES = ("encoder_hidden_states", "key_value_states")


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """What one attention layer reads.

    Attributes:
        query: moments of the input of the query projection.
        key: moments of the input of the key projection; the same object as query in self-attention.
    """

    query: Moments
    key: Moments


def collect_statistics(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Mapping[str, Any]],
    *,
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
    if not sum(1 for _ in watch_layers(model, layers, batches, recorder.see, progress=progress)):
        raise CalibrationError(
            "calibration data held no batch; pass at least one, or calibration=None to do without data"
        )
    return recorder.statistics()


@dataclass(frozen=True, eq=False)
class LayerCall:
    """One call of an attention layer.

    Attributes:
        name: the layer's.
        arguments: its arguments by parameter name.
        output: what it returned.
        masks: `attention_mask` and `encoder_attention_mask` that the sub-model around the layer was given.
    """

    name: str
    arguments: Mapping[str, Any]
    output: Any
    masks: Mapping[str, Any]

    @property
    def query_input(self) -> Tensor:
        """Input of the query projection, (B, T, D).

        Raises:
            CalibrationError: the layer's first input is not a tensor.
        """
        found = self.arguments.get("hidden_states", next(iter(self.arguments.values()), None))
        if not isinstance(found, Tensor):
            raise CalibrationError(
                "the first input of an attention layer must be a tensor, "
                f"got {type(found).__name__} ({self.name})"
            )
        return found


def watch_layers(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Mapping[str, Any]],
    see: Callable[[LayerCall], None],
    *,
    progress: bool = False,
) -> Generator[int]:
    """Run the model over batches in eval mode and show every call of the layers.

    Args:
        model: called as model(**batch); left as it was found.
        layers: attention modules of the model by name.
        batches: model inputs by name, as for `collect_statistics`.
        see: gets each call after it happened.
        progress: show a progress bar on stderr.

    Yields:
        The number of batches that have run, after each of them.

    Raises:
        CalibrationError: a batch that is no mapping with tensors, or that the model refuses.
    """
    device, dtype = _placement(model)
    with _attached(model, layers, see), evaluating(model), torch.no_grad():
        for count, batch in enumerate(_with_progress(batches, progress), start=1):
            inputs = _inputs(batch, count, device, dtype)
            try:
                model(**inputs)
            except (TypeError, ValueError, IndexError) as error:  # unknown input, token id out of range, ...
                raise CalibrationError(
                    f"{type(model).__name__} refused calibration batch {count} "
                    f"with the inputs {', '.join(inputs)}: {error}"
                ) from error
            yield count


@contextmanager
def _attached(
    model: nn.Module, layers: Mapping[str, nn.Module], see: Callable[[LayerCall], None]
) -> Iterator[None]:
    """Hooks on the layers and on the sub-models above them, inside the with block."""
    paths = {module: path for path, module in model.named_modules()}
    towers = {name: _tower(model, paths.get(module, "")) for name, module in layers.items()}
    masks: dict[nn.Module, Mapping[str, Any]] = {}  # the arguments each tower was called with last

    def see_tower(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments = _arguments(module, args, kwargs)
        masks[module] = {k: arguments.get(k) for k in ("attention_mask", "encoder_attention_mask")}

    def layer_hook(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            see(LayerCall(name, _arguments(module, args, kwargs), output, masks.get(towers[name], {})))

        return hook

    with ExitStack() as stack:
        for tower in dict.fromkeys(towers.values()):
            stack.callback(tower.register_forward_pre_hook(see_tower, with_kwargs=True).remove)
        for name, module in layers.items():
            stack.callback(module.register_forward_hook(layer_hook(name), with_kwargs=True).remove)
        yield


class _Recorder:
    """Accumulators of what the layers read."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self._queries = {name: MomentsAccumulator(name) for name in layers}
        self._keys: dict[str, MomentsAccumulator] = {}  # cross-attention only

    def see(self, call: LayerCall) -> None:
        """Add the real tokens of a call."""
        source, arguments = call.query_input, call.arguments
        self._queries[call.name].update(_real_tokens(source, call.masks.get("attention_mask")))
        key_input = next((arguments[k] for k in _KEY_INPUT_NAMES if arguments.get(k) is not None), None)
        if isinstance(key_input, Tensor) and key_input is not source:
            accumulator = self._keys.setdefault(call.name, MomentsAccumulator(f"key side of {call.name}"))
            accumulator.update(_real_tokens(key_input, call.masks.get("encoder_attention_mask")))

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


def _tower(model: nn.Module, path: str) -> nn.Module:
    """The innermost sub-model around a layer, whose attention_mask argument describes the layer's tokens.

    Sub-models are known by `main_input_name`, which transformers gives to every PreTrainedModel; a plain
    torch model is one tower.
    """
    parts = path.split(".")
    for depth in range(len(parts) - 1, 0, -1):
        parent = model.get_submodule(".".join(parts[:depth]))
        if hasattr(parent, "main_input_name"):
            return parent
    return model


def _real_tokens(hidden_states: Tensor, mask: Any) -> Tensor:
    """Leave padding out.

    Args:
        hidden_states: (batch, tokens, hidden_size).
        mask: of real tokens; anything but a tensor of shape (batch, tokens) is not about them.

    Returns:
        (num_tokens, hidden_size).
    """
    if isinstance(mask, Tensor) and mask.shape == hidden_states.shape[:-1]:
        return hidden_states[mask.to(hidden_states.device) != 0]
    return hidden_states.reshape(-1, hidden_states.shape[-1])


def _arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a forward call by parameter name."""
    return {**dict(zip(inspect.signature(module.forward).parameters, args, strict=False)), **kwargs}


def _inputs(batch: Any, number: int, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """A batch as keyword arguments on the model's device."""
    if not isinstance(batch, Mapping) or not any(isinstance(value, Tensor) for value in batch.values()):
        found = (
            f"one with {', '.join(map(str, batch)) or 'nothing'}"
            if isinstance(batch, Mapping)
            else type(batch).__name__
        )
        raise CalibrationError(
            f"calibration batch {number} must be a mapping of model inputs with at least one tensor, "
            f"got {found}; a tokenizer called with return_tensors='pt' makes one"
        )
    return {
        name: value.to(device, dtype if value.is_floating_point() else value.dtype)
        if isinstance(value, Tensor)
        else value
        for name, value in batch.items()
    }


def _placement(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device of the model's first parameter and dtype of its first floating one; CPU and float32 else."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return device, next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _with_progress(batches: Iterable[Mapping[str, Any]], progress: bool) -> Iterable[Mapping[str, Any]]:
    if not progress:
        return batches
    from tqdm import tqdm  # comes with transformers; writes to stderr

    return tqdm(batches, desc="calibration", unit="batch")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside the with block; afterwards every module gets its own earlier mode back.

    Args:
        model: any module; its sub-modules may be in different modes.

    Yields:
        Nothing.
    """
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
