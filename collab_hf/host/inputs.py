"""Inputs of a model: on its device, with their real tokens, pooled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import CalibrationError, ExportError

Pooling = Literal["mean", "cls"]


def pool(states: Tensor, mask: Tensor | None, pooling: Pooling = "mean") -> Tensor:
    """One embedding per example.

    Args:
        states: last hidden states, (batch, tokens, hidden_size).
        mask: (batch, tokens), non-zero for real tokens; None where all are real.
        pooling: `mean` over real tokens, or `cls`, the first state.

    Returns:
        (batch, hidden_size).
    """
    if pooling == "cls":
        return states[:, 0]
    if mask is None:
        return states.mean(1)
    weight = mask.unsqueeze(-1).to(states.dtype)
    return (states * weight).sum(1) / weight.sum(1).clamp_min(1)


def usual_pooling(config: Any) -> Pooling:
    """How a model's states become embeddings where nobody says: the first state of images, else the mean.

    Args:
        config: the model's.

    Returns:
        `cls` or `mean`.
    """
    images_alone = hasattr(config, "image_size") and not hasattr(config, "vocab_size")
    return "cls" if images_alone else "mean"


def views(hidden: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """What task heads read of the last hidden states, in float32 at least.

    Args:
        hidden: (batch, tokens, hidden_size).
        mask: (batch, tokens), 1 for real tokens; None where all are.

    Returns:
        Every real token (N, hidden_size), the first one and the mean one, (batch, hidden_size) each.
    """
    hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    if mask is None:
        return hidden.flatten(0, 1), hidden[:, 0], hidden.mean(1)
    weight = mask.to(hidden).unsqueeze(-1)
    return hidden[mask.bool()], hidden[:, 0], (hidden * weight).sum(1) / weight.sum(1).clamp_min(1)


def checked_inputs(batch: Any, number: int, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """A batch as keyword arguments on the model's device."""
    check_batch(batch, number)
    return move(batch, device, dtype)


def check_batch(batch: Any, number: int) -> None:
    """Refuse what is no batch of model inputs.

    Args:
        batch: a mapping with tensors, if all is well.
        number: of the batch, from 1, for the message.

    Raises:
        CalibrationError: it is something else.
    """
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


def placement(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device of the model's first parameter and dtype of its first floating one; CPU and float32 else."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return device, next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


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


def real_tokens(hidden_states: Tensor, mask: Any) -> Tensor:
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


def fitting_mask(mask: Any, states: Tensor) -> Tensor | None:
    """The mask of real tokens that belongs to hidden states.

    Args:
        mask: of the inputs; that of multiple-choice questions has one dimension more than the states.
        states: (batch, tokens, hidden_size).

    Returns:
        (batch, tokens), or None where the mask is of something else.
    """
    if not isinstance(mask, Tensor) or mask.dim() < 2:
        return None
    flat = mask.flatten(0, -2)
    return flat if flat.shape == states.shape[:2] else None


def move(batch: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """A batch on a device, its floating tensors in a dtype.

    Args:
        batch: model inputs by name.
        device: of the model.
        dtype: of the model.

    Returns:
        The batch.
    """
    return {
        name: value.to(device, dtype if value.is_floating_point() else value.dtype)
        if isinstance(value, Tensor)
        else value
        for name, value in batch.items()
    }


def example_inputs(model: PreTrainedModel, *, batch: int, length: int) -> Inputs:
    """Random inputs that a model takes, the last text padded.

    Args:
        model: a text or image model.
        batch: number of examples.
        length: tokens of a text, at least 4.

    Returns:
        Tensors by name, in the order of the model's arguments.

    Raises:
        ExportError: the model takes neither text nor images.
    """
    config: Any = model.config
    random = torch.Generator().manual_seed(0)
    if model.main_input_name == "pixel_values" and hasattr(config, "image_size"):
        size = config.image_size
        height, width = size if isinstance(size, list | tuple) else (size, size)
        shape = (batch, config.num_channels, height, width)
        return {"pixel_values": torch.randn(shape, generator=random)}
    if model.main_input_name != "input_ids" or not hasattr(config, "vocab_size"):
        raise ExportError(
            f"{type(model).__name__} takes neither text nor images, so there is no example for it"
        )
    ids = torch.randint(0, config.vocab_size, (batch, length), generator=random)
    mask = torch.ones_like(ids)
    mask[-1, length - 3 :] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if getattr(config, "type_vocab_size", 0):
        inputs["token_type_ids"] = torch.zeros_like(ids)
    if type(model).__name__.endswith("ForMultipleChoice"):
        raise ExportError("a multiple-choice model has no export: its inputs have one dimension more")
    return inputs


Inputs = dict[str, Tensor]
