"""How far the model's output moves when the scores of some layers are replaced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..calibration.statistics import evaluating
from ..errors import CalibrationError
from ..modeling.families import Family
from ..tensors.factors import SharedFactors

# Held-out examples: with more, the curves of the measured models no longer changed in their first digit.
_MOST_HELD_OUT = 64
_HELD_OUT_SHARE = 4

Batch = Mapping[str, Any]


def split_batches(batches: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    """Set examples aside that the statistics don't see: every fourth, 64 at most, spread over all batches.

    Args:
        batches: model inputs; tensors of one batch have the examples along their first dimension.

    Returns:
        Batches for the statistics, and batches held out. With fewer than 4 examples in all, or inputs that
        can't be taken apart, both are all batches.
    """
    sizes = [_num_examples(batch) for batch in batches]
    if None in sizes or sum(filter(None, sizes)) < _HELD_OUT_SHARE:
        return list(batches), list(batches)
    total = sum(filter(None, sizes))
    stride = max(_HELD_OUT_SHARE, -(-total // _MOST_HELD_OUT))
    kept, held, position = [], [], 0
    for batch, size in zip(batches, sizes, strict=True):
        aside = (torch.arange(position, position + (size or 0)) % stride) == stride // 2
        position += size or 0
        if aside.any():
            held.append(_rows(batch, aside))
        if not aside.all():
            kept.append(_rows(batch, ~aside))
    return kept, held


def _num_examples(batch: Batch) -> int | None:
    sizes = {len(v) if v.dim() else 0 for v in batch.values() if isinstance(v, Tensor)}
    return sizes.pop() if len(sizes) == 1 else None


def _rows(batch: Batch, chosen: Tensor) -> Batch:
    return {k: v[chosen.to(v.device)] if isinstance(v, Tensor) else v for k, v in batch.items()}


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


def fits_head(factors: SharedFactors, head_dim: int) -> bool:
    """Whether a head of the dense layer can hold the form: scores no wider, content bias folded."""
    return factors.plan.score_width <= head_dim and factors.content_bias is None


@contextmanager
def replaced(
    layers: Mapping[str, tuple[nn.Module, Family]], factors: Mapping[str, SharedFactors]
) -> Iterator[None]:
    """Let dense layers compute the scores of shared factors inside the with block.

    A head whose scores are no wider than head_dim is a dense head with weights A P_h and B Q_h, so the host
    serves as it is and nothing is converted.

    Args:
        layers: dense attention module and family by name.
        factors: shared factors for some of the layers, each with `fits_head`.

    Yields:
        Nothing.
    """
    with ExitStack() as stack, torch.no_grad():
        for name, result in factors.items():
            module, family = layers[name]
            stack.enter_context(_replaced_layer(module, family, result))
        yield


@contextmanager
def _replaced_layer(module: nn.Module, family: Family, factors: SharedFactors) -> Iterator[None]:
    query, key = family.projection(module, "query"), family.projection(module, "key")
    head_dim = family.shape(module).head_dim

    def dense(shared: Tensor, maps: Tensor, like: Tensor) -> nn.Parameter:
        # (D, R) (H, R, w) -> (H * d, D), zeros beyond the score width
        weight = torch.nn.functional.pad((shared @ maps.to(shared)).mT, (0, 0, 0, head_dim - maps.shape[2]))
        return nn.Parameter(weight.flatten(0, 1).to(like), requires_grad=False)

    before = query.weight, query.bias, key.weight
    mixing = factors.mixing
    with torch.no_grad():
        bias = mixing.bias
        if bias is not None:
            padded = torch.nn.functional.pad(bias, (0, head_dim - bias.shape[1])).flatten()
            query.bias = nn.Parameter(padded.to(query.weight), requires_grad=False)
        query.weight = dense(factors.shared_query, mixing.query_maps(), before[0])
        key.weight = dense(factors.shared_key, mixing.key_maps(), before[2])
    try:
        yield
    finally:
        query.weight, query.bias, key.weight = before
