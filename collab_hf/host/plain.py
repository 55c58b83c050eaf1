"""Refuse what surgery can't work on before anything is done: wrapped models, weights that are not plain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..errors import ConfigError, FamilyError

# Classes whose weight is the matrix that forward uses; torch's own attention has a Linear by another name.
_PLAIN = (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear, Conv1D, nn.Embedding)


def inner_model(model: Any) -> PreTrainedModel:
    """The transformers model that surgery works on.

    Args:
        model: a transformers model, or an encoder of sentence-transformers, which works on with the smaller
            model inside.

    Returns:
        The transformers model.

    Raises:
        ConfigError: something else; the message says what to pass.
        FamilyError: a model with adapters.
    """
    if isinstance(model, str | Path):
        raise ConfigError(
            f"surgery works on a loaded model, got the name {str(model)!r}; load it with "
            f"load_model({str(model)!r}), or call compress_checkpoint({str(model)!r}, output)"
        )
    if isinstance(model, PreTrainedModel):
        # Saving it would write the adapters alone.
        if any(type(module).__module__.startswith("peft.") for module in model.modules()):
            raise FamilyError(f"{type(model).__name__} has adapters; {_WITHOUT_ADAPTERS}")
        return model
    kind = type(model).__name__
    if not isinstance(model, nn.Module):
        raise ConfigError(f"surgery works on a transformers model, got a {kind}")
    inside = _outermost(model)
    package = type(model).__module__.partition(".")[0]
    if package == "sentence_transformers" and len(inside) == 1:
        return inner_model(next(iter(inside.values())))
    if package == "peft":
        raise FamilyError(f"{kind} is a model with adapters; {_WITHOUT_ADAPTERS}")
    if not inside:
        raise ConfigError(f"surgery works on a transformers model, and {kind} holds none")
    path = next(iter(inside))
    raise ConfigError(
        f"surgery works on a transformers model, got a {kind} around one; pass its .{path}, and wrap that "
        "afterwards"
    )


_WITHOUT_ADAPTERS = (
    "merge them first (merge_and_unload of PEFT), or compress the model without them and add them afterwards"
)


def _outermost(model: nn.Module) -> dict[str, PreTrainedModel]:
    """The transformers models inside of a module that no other one of them holds, by path."""
    found: dict[str, PreTrainedModel] = {}
    for path, module in model.named_modules():
        if isinstance(module, PreTrainedModel) and not any(path.startswith(f"{outer}.") for outer in found):
            found[path] = module
    return found


def check_plain(module: Any, what: str) -> None:
    """Refuse a projection or a table whose numbers are not simply its weight.

    Args:
        module: where the weight should be.
        what: it is called in the message.

    Raises:
        FamilyError: adapters around it, quantised, pruned or parametrised weights, or none in memory.
    """
    kind = type(module)
    weight = getattr(module, "weight", None)
    if getattr(weight, "is_meta", False):
        raise FamilyError(
            f"{what} is not in memory but on the meta device, as device_map leaves what it offloads; "
            "load the model without device_map to compress it"
        )
    # Hosts have tables of their own, which scale what they look up.
    is_known = kind in _PLAIN or kind.__module__.startswith("transformers.models.")
    if is_known and type(weight) is nn.Parameter and weight.is_floating_point():
        return
    if kind.__module__.startswith("peft."):
        raise FamilyError(f"{what} has an adapter ({kind.__module__}.{kind.__name__}); {_WITHOUT_ADAPTERS}")
    held = "" if isinstance(weight, nn.Parameter) else f" with a weight of type {type(weight).__name__}"
    raise FamilyError(
        f"{what} is no plain projection but a {kind.__module__}.{kind.__name__}{held}; compress the model "
        "first, and quantise, prune or parametrise it afterwards"
    )
