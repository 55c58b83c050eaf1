"""The last hidden states of a model, whatever head, towers or decoder it has."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from .inputs import fitting_mask


def last_hidden_states(
    model: PreTrainedModel, inputs: Mapping[str, Any]
) -> list[tuple[Tensor, Tensor | None]]:
    """Run a model, and see what its base model gives to a head.

    Args:
        model: with or without a task head.
        inputs: by name, on the model's device.

    Returns:
        Hidden states (B, T, D), with the mask of real tokens (B, T) where the inputs have one: of the base
        model; where that gives none, of the decoder, or of each tower. Empty where there are none at all.
    """
    seen: dict[nn.Module, Tensor] = {}

    def see(module: nn.Module, _: Any, output: Any) -> None:
        # A plain tuple where config.json says return_dict: false.
        states = (
            output[0] if isinstance(output, tuple) and output else getattr(output, "last_hidden_state", None)
        )
        if isinstance(states, Tensor):
            seen[module] = states

    inner = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    with ExitStack() as stack:
        for module in inner:
            stack.callback(module.register_forward_hook(see).remove)
        model(**inputs)
    decodes = bool(getattr(model.config, "is_encoder_decoder", False))
    if model.base_model in seen:
        chosen: list[nn.Module] = [model.base_model]
    else:
        # What another one of them is inside of gives the same states again.
        inside = {part for module in seen for part in module.modules() if part is not module}
        chosen = [module for module in seen if module not in inside]
        chosen = chosen[-1:] if decodes else chosen
    name = "decoder_attention_mask" if decodes else "attention_mask"
    return [(seen[module], fitting_mask(inputs.get(name), seen[module])) for module in chosen]
