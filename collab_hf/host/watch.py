"""Run a model and watch the calls of its layers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CalibrationError
from ..progress import Steps
from .inputs import checked_inputs, evaluating, placement


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
    device, dtype = placement(model)
    steps = Steps(batches, title="Running the model on calibration examples", unit="batch", progress=progress)
    with _attached(model, layers, see), evaluating(model), torch.no_grad():
        for count, batch in enumerate(steps, start=1):
            inputs = checked_inputs(batch, count, device, dtype)
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


def _arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a forward call by parameter name."""
    return {**dict(zip(inspect.signature(module.forward).parameters, args, strict=False)), **kwargs}
