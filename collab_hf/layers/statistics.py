"""Moments of what the attention layers of a model read, from its own data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CalibrationError
from ..tensors import Moments, MomentsAccumulator


@dataclass(frozen=True, eq=False)
class InputMoments:
    """What one attention layer reads.

    Attributes:
        query: moments of the queries' input.
        key: moments of the keys' input; the same object in self-attention.
    """

    query: Moments
    key: Moments


class _Recorder:
    """Adds the inputs of one layer; it is a forward pre-hook."""

    def __init__(self, name: str, batch_first: bool) -> None:
        self.query, self.key = MomentsAccumulator(name), MomentsAccumulator(name)
        self.crosses = False
        self._batch_first = batch_first

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = dict(zip(("query", "key", "value", "key_padding_mask"), args, strict=False)) | kwargs
        query, key, padding = given["query"], given["key"], given.get("key_padding_mask")
        real = _real_tokens(padding, self._batch_first)
        if query is key:
            rows = _rows(query, real)
            self.query.update(rows)
            self.key.update(rows)
        else:
            self.crosses = True
            self.query.update(_rows(query, None))
            self.key.update(_rows(key, real))

    def moments(self) -> InputMoments:
        query = self.query.moments()
        return InputMoments(query, self.key.moments() if self.crosses else query)


def collect_moments(
    model: nn.Module, layers: Mapping[str, nn.MultiheadAttention], batches: Iterable[Any]
) -> dict[str, InputMoments]:
    """Run a model on data in eval mode and watch what its attention layers read.

    Args:
        model: any module.
        layers: layers of it by name.
        batches: inputs of the model, each a tensor, a sequence of arguments or a mapping of keywords. Keys
            that a key_padding_mask blocks are left out.

    Returns:
        Moments by name, on the inputs' device.

    Raises:
        CalibrationError: a layer that no batch reached, or values that are not finite.
    """
    recorders = {name: _Recorder(name, layer.batch_first) for name, layer in layers.items()}
    handles = [
        layer.register_forward_pre_hook(recorders[name], with_kwargs=True) for name, layer in layers.items()
    ]
    try:
        with _slow_eval(model), torch.no_grad():
            for batch in batches:
                _call(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: recorder.moments() for name, recorder in recorders.items()}


@contextmanager
def _slow_eval(model: nn.Module) -> Iterator[None]:
    """Eval mode, without the fused path that calls no attention module; all is as before afterwards."""
    training = {module: module.training for module in model.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    model.eval()
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, mode in training.items():
            module.training = mode


def _call(model: nn.Module, batch: Any) -> None:
    if isinstance(batch, Tensor):
        model(batch)
    elif isinstance(batch, Mapping):
        model(**batch)
    elif isinstance(batch, (tuple, list)):
        model(*batch)
    else:
        raise CalibrationError(
            f"a batch must be a tensor, a sequence or a mapping of inputs, got {type(batch).__name__}"
        )


def _real_tokens(padding: Tensor | None, batch_first: bool) -> Tensor | None:
    """Which keys count, in the layout of the inputs."""
    if padding is None:
        return None
    real = ~padding if padding.dtype == torch.bool else ~padding.isneginf()
    return real if batch_first or real.dim() == 1 else real.T


def _rows(tokens: Tensor, real: Tensor | None) -> Tensor:
    return tokens.flatten(0, -2) if real is None else tokens[real]
