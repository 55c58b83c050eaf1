"""What the loss compares: hidden states with their masks, embeddings, logits and attention weights.

Shapes: B batch, T tokens, D hidden_size, H num_heads, N tokens of the batch that are not padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import RecoveryError
from ..host.inputs import fitting_mask, pool, usual_pooling
from .config import LossWeights, Pooling

# Outputs that hold one tensor per layer, and the input that says which of their tokens are padding.
_MASK_OF = {"": "attention_mask", "encoder_": "attention_mask", "decoder_": "decoder_attention_mask"}


@dataclass(frozen=True)
class Wanted:
    """Which outputs a run of the model must give.

    Attributes:
        hidden: the hidden states after every layer.
        pooling: how embeddings are made of the last ones.
        embeddings: pooled embeddings.
        logits: the head's predictions.
        attention: attention weights.
        teacher_blocks: numbers of the teacher's hidden states that the student's are compared with; none for
            all, in order.
    """

    hidden: bool
    pooling: Literal["mean", "cls"]
    embeddings: bool
    logits: bool
    attention: bool
    teacher_blocks: tuple[int, ...] = ()

    @classmethod
    def by(
        cls, weights: LossWeights, pooling: Pooling, config: Any, teacher_blocks: Sequence[int] = ()
    ) -> Wanted:
        """What a loss with these weights needs."""
        if pooling == "auto":
            pooling = usual_pooling(config)
        embeddings = pooling != "none" and bool(weights.embedding or weights.similarity)
        return cls(
            hidden=weights.hidden > 0,
            pooling="cls" if pooling == "cls" else "mean",
            embeddings=embeddings,
            logits=weights.logits > 0,
            attention=weights.attention > 0,
            teacher_blocks=tuple(teacher_blocks),
        )


@dataclass(frozen=True, eq=False)
class Outputs:
    """The outputs of one run, by name; masks are boolean of shape (B, T), None where all tokens count.

    Attributes:
        hidden: (B, T, D) after every layer.
        hidden_masks: one for each of hidden.
        attention: (B, H, T, S) of every layer.
        attention_masks: of the queries, one for each of attention.
        embeddings: (B, D) of unit length, or None.
        logits: (B, classes) or (B, T, classes), or None.
        logits_mask: for logits of tokens.
    """

    hidden: tuple[Tensor, ...] = ()
    hidden_masks: tuple[Tensor | None, ...] = ()
    attention: tuple[Tensor, ...] = ()
    attention_masks: tuple[Tensor | None, ...] = ()
    embeddings: Tensor | None = None
    logits: Tensor | None = None
    logits_mask: Tensor | None = None


def chosen(found: Outputs, numbers: Sequence[int]) -> Outputs:
    """Some of the hidden states alone.

    Args:
        found: outputs of the teacher.
        numbers: of the layers, from 0; none for all.

    Returns:
        The outputs with those.
    """
    if not numbers or not found.hidden:
        return found
    masks = tuple(found.hidden_masks[number] for number in numbers)
    return replace(found, hidden=tuple(found.hidden[number] for number in numbers), hidden_masks=masks)


def run(model: PreTrainedModel, batch: Mapping[str, Any], wanted: Wanted) -> Outputs:
    """Run a model on a batch.

    Args:
        model: in eval mode.
        batch: model inputs on the model's device.
        wanted: what to give back; a model with a head gives logits instead of embeddings.

    Returns:
        The outputs, logits and embeddings in float32.

    Raises:
        RecoveryError: the model refuses the batch, or has none of the wanted outputs.
    """
    flags = {"output_hidden_states": wanted.hidden, "output_attentions": wanted.attention}
    try:
        found = model(**batch, **{name: True for name, value in flags.items() if value}, return_dict=True)
    except (TypeError, ValueError, IndexError) as error:
        raise RecoveryError(
            f"{type(model).__name__} refused a batch with the inputs {', '.join(batch)}: {error}"
        ) from error
    # The first hidden state is the embeddings', which no factor changes.
    hidden = [(h, m) for states, m in _stacks(found, "hidden_states", batch) for h in states[1:]]
    attention = []
    if wanted.attention:  # some models give them unasked, by output_attentions in their config
        attention = [(a, m) for states, m in _stacks(found, "attentions", batch) for a in states]
    logits = found.get("logits")
    last = found.get("last_hidden_state")
    embeddings = mask = None
    if isinstance(logits, Tensor):
        mask = _mask(logits, batch, _MASK_OF["decoder_" if model.config.is_encoder_decoder else ""])
    elif wanted.embeddings and isinstance(last, Tensor):
        name = _MASK_OF["decoder_" if model.config.is_encoder_decoder else ""]
        pooled = pool(last.float(), _mask(last, batch, name), wanted.pooling)
        embeddings = F.normalize(pooled, dim=-1)
    outputs = Outputs(
        tuple(h for h, _ in hidden if wanted.hidden),
        tuple(_mask(h, batch, m) for h, m in hidden if wanted.hidden),
        tuple(a for a, _ in attention),
        tuple(_mask(a.transpose(1, 2), batch, m) for a, m in attention),
        embeddings,
        logits.float() if wanted.logits and isinstance(logits, Tensor) else None,
        mask,
    )
    if not outputs.hidden and not outputs.attention and outputs.embeddings is None and outputs.logits is None:
        raise RecoveryError(f"{type(model).__name__} gives nothing that the loss weights ask for")
    return outputs


def _stacks(outputs: Mapping[str, Any], kind: str, batch: Mapping[str, Any]) -> Iterator[tuple[Any, str]]:
    """Every tuple of per-layer tensors with the name of its mask; those of inner towers too."""
    for name, value in outputs.items():
        prefix = name.removesuffix(kind)
        if prefix in _MASK_OF and name.endswith(kind) and value:
            yield value, _MASK_OF[prefix]
        elif isinstance(value, Mapping):
            yield from _stacks(value, kind, batch)


def _mask(states: Tensor, batch: Mapping[str, Any], name: str) -> Tensor | None:
    mask = fitting_mask(batch.get(name), states)
    return None if mask is None or states.dim() < 3 else mask != 0


def real_rows(values: Tensor, mask: Tensor | None) -> Tensor:
    """The rows (N, ...) of values (B, T, ...) that are not padding; values of shape (B, classes) as they are.

    Args:
        values: one row per token, or per example.
        mask: (B, T), or None where all count.

    Returns:
        The rows.
    """
    if mask is not None:
        return values[mask]
    return values.flatten(0, -2)
