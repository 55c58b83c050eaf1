"""Streamed activation statistics of each attention layer's input.

The forward passes of the whole model run once over the calibration batches; forward pre-hooks on the
attention modules add every real token to a `MomentsAccumulator`. Memory is D x D per layer, whatever the
amount of data.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .errors import CalibrationError
from .tensors.moments import Moments, MomentsAccumulator

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
    device, dtype = _placement(model)
    recorder = _Recorder(model, layers)
    count = 0
    with recorder.attached(), evaluating(model), torch.no_grad():
        for count, batch in enumerate(_with_progress(batches, progress), start=1):
            inputs = _inputs(batch, count, device, dtype)
            try:
                model(**inputs)
            except (TypeError, ValueError, IndexError) as error:  # unknown input, token id out of range, ...
                raise CalibrationError(
                    f"{type(model).__name__} refused calibration batch {count} "
                    f"with the inputs {', '.join(inputs)}: {error}"
                ) from error
    if count == 0:
        raise CalibrationError(
            "calibration data held no batch; pass at least one, or calibration=None to do without data"
        )
    return recorder.statistics()


class _Recorder:
    """Hooks on the layers and on the sub-models above them, and the accumulators that the hooks fill."""

    def __init__(self, model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
        self._layers = layers
        self._queries = {name: MomentsAccumulator(name) for name in layers}
        self._keys: dict[str, MomentsAccumulator] = {}  # cross-attention only
        paths = {module: path for path, module in model.named_modules()}
        self._towers = {name: _tower(model, paths.get(module, "")) for name, module in layers.items()}
        self._masks: dict[nn.Module, Mapping[str, Any]] = {}  # the arguments each tower was called with last

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Keep the hooks registered inside the with block."""
        with ExitStack() as stack:
            for tower in dict.fromkeys(self._towers.values()):
                stack.enter_context(_pre_hook(tower, self._see_tower))
            for name, module in self._layers.items():
                stack.enter_context(_pre_hook(module, self._layer_hook(name)))
            yield

    def _see_tower(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments = _arguments(module, args, kwargs)
        self._masks[module] = {k: arguments.get(k) for k in ("attention_mask", "encoder_attention_mask")}

    def _layer_hook(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            arguments = _arguments(module, args, kwargs)
            masks = self._masks.get(self._towers[name], {})
            query_input = arguments.get("hidden_states", next(iter(arguments.values()), None))
            if not isinstance(query_input, Tensor):
                raise CalibrationError(
                    "the first input of an attention layer must be a tensor, "
                    f"got {type(query_input).__name__} ({name})"
                )
            self._queries[name].update(_real_tokens(query_input, masks.get("attention_mask")))
            key_input = next((arguments[k] for k in _KEY_INPUT_NAMES if arguments.get(k) is not None), None)
            if isinstance(key_input, Tensor) and key_input is not query_input:
                accumulator = self._keys.setdefault(name, MomentsAccumulator(f"key side of {name}"))
                accumulator.update(_real_tokens(key_input, masks.get("encoder_attention_mask")))

        return hook

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
    """Rows (num_tokens, hidden_size) of (batch, tokens, hidden_size), where mask (batch, tokens) says so."""
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


@contextmanager
def _pre_hook(module: nn.Module, hook: Any) -> Iterator[None]:
    """Keep a forward pre-hook registered inside the with block."""
    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
