"""Which parameters train, and how the model is put for it and put back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel

from ..errors import FamilyError, RecoveryError
from ..host.blocks import blocks
from ..modeling import host_internals
from ..parts.registry import PARTS
from .config import RecoveryConfig, Trainable


def trainable_parameters(student: nn.Module, which: Trainable) -> dict[str, nn.Parameter]:
    """The parameters that recovery trains.

    Args:
        student: a model that is smaller than its original, of its depth.
        which: `factors`, `attention`, `blocks` or `all`.

    Returns:
        Parameters by name, each once, in the model's order.

    Raises:
        FamilyError: the model has no compressed layer, and `factors` or `attention` are to train.
    """
    made = [(part, module) for part in PARTS.values() for _, module in part.converted(student)]
    if not made and which in ("factors", "attention"):
        raise FamilyError(
            f"{type(student).__name__} has no compressed layer to recover; "
            "run compress_ on it first, or train all of it"
        )
    if which == "all":
        chosen = list(student.parameters())
    elif which == "attention":
        chosen = [parameter for _, module in made for parameter in module.parameters()]
    elif which == "blocks":
        # In a model of the host's own class nothing is marked: any block may be smaller.
        names = [name for part in PARTS.values() for name, _ in part.converted(student)]
        holders = blocks(student, names or None)
        chosen = [parameter for block in holders.values() for parameter in block.parameters()]
        chosen += [parameter for part, module in made for parameter in part.trained(module)]
    else:
        chosen = [parameter for part, module in made for parameter in part.trained(module)]
    wanted = {id(parameter) for parameter in chosen if parameter.is_floating_point()}
    return {name: p for name, p in student.named_parameters() if id(p) in wanted}


@contextmanager
def only_training(models: list[nn.Module], parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Make the parameters alone require a gradient, in eval mode; afterwards everything is as it was.

    Args:
        models: student and teacher. Eval mode keeps dropout out of the comparison.
        parameters: of the student.

    Yields:
        Nothing.
    """
    modes = {module: module.training for model in models for module in model.modules()}
    gradients = {p: (p.requires_grad, p.grad) for model in models for p in model.parameters()}
    try:
        for model in models:
            model.eval().requires_grad_(False)
        for parameter in parameters.values():
            parameter.requires_grad_(True)
            parameter.grad = None
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, (required, gradient) in gradients.items():
            parameter.requires_grad_(required)
            parameter.grad = gradient


@contextmanager
def attention_backend(models: list[PreTrainedModel], *, eager: bool) -> Iterator[None]:
    """Switch to eager attention, which alone hands out its weights, and back.

    Args:
        models: student and teacher.
        eager: whether to.

    Yields:
        Nothing.
    """
    if not eager:
        yield
        return
    before = [host_internals.attention_backend(model.config) for model in models]
    try:
        for model in models:
            model.set_attn_implementation("eager")
        yield
    finally:
        for model, backend in zip(models, before, strict=True):
            model.set_attn_implementation(backend)


def check_teacher(student: PreTrainedModel, teacher: PreTrainedModel, config: RecoveryConfig) -> None:
    """Refuse a teacher that a student can't learn from.

    Args:
        student: the compressed model.
        teacher: the original.
        config: how recovery trains.

    Raises:
        RecoveryError: it is the student itself, shares weights with it, or has other sizes.
    """
    if student is teacher:
        raise RecoveryError("student and teacher are the same model; load the original a second time")
    shared = {id(p) for p in student.parameters()} & {id(p) for p in teacher.parameters()}
    if shared:
        raise RecoveryError("student and teacher share weights; load the original a second time")
    for name in ("hidden_size", "num_hidden_layers", "num_labels", "vocab_size"):
        ours, theirs = (getattr(m.config.get_text_config(), name, None) for m in (student, teacher))
        if name == "num_hidden_layers" and config.teacher_blocks:
            if max(config.teacher_blocks) >= (theirs or 0):
                raise RecoveryError(f"teacher_blocks must be below {theirs}, got {config.teacher_blocks}")
            theirs = len(config.teacher_blocks)
        if ours != theirs:
            raise RecoveryError(f"the teacher does not fit: its {name} is {theirs}, the student's {ours}")
