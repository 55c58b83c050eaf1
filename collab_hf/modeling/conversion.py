"""Turn a dense attention module into a collaborative one."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .attention import CollabAttention
from .errors import ConfigError
from .families import Family, attention_row, family_of, find_host, row_of_class
from .mixing import build_mixing
from .plan import LayerPlan

_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def collab_attention_class(host: type[nn.Module], family: Family) -> type[nn.Module]:
    """The collaborative subclass of a host attention class, made once.

    Args:
        host: an attention class.
        family: its row.

    Returns:
        A class named `Collab` + the host's name.
    """
    if host not in _CLASSES:
        host_forward: Any = host.forward
        name = "Collab" + host.__name__

        # The host's signature, which those who watch its calls read.
        @functools.wraps(host_forward)
        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            return self.collab_forward(*args, **kwargs)

        members = {
            "collab_arguments": tuple(inspect.signature(host_forward).parameters)[1:],
            "collab_family": family.taken_apart(),
            "collab_has_backends": "get_interface" in host_forward.__code__.co_names,
            "collab_host": host,
            "forward": forward,
            "__module__": __name__,
            "__qualname__": name,
            "__doc__": host.__doc__,
        }
        # Where several threads get here at once, all of them take the class that came first.
        _CLASSES.setdefault(host, type(name, (CollabAttention, host), members))
    return _CLASSES[host]


def convert_(module: Any, plan: LayerPlan, name: str = "") -> None:
    """Turn a dense attention module into a collaborative one, in place; the mixing is left uninitialised.

    Shared projections begin as the first rows of the dense ones, which is the host's own initialisation where
    a model is new. An exact content bias begins at zero.

    Keeps the module and its projections as objects (hooks stay), their device, dtype, training mode and
    requires_grad. But where a tied plan leaves the key projection nothing to do, None takes its place; and
    where the host has one projection for queries, keys and values, three take its place.

    Args:
        module: a dense attention module of a known family.
        plan: the form it gets.
        name: the module's name, for messages.

    Raises:
        ConfigError: the module is no attention that collab_hf knows, or one whose queries and keys stay.
        RankError: the plan does not fit the module.
    """
    family = attention_row(module)
    if (reason := family.refusal(module)) is not None:
        raise ConfigError(
            f"queries and keys of {type(module).__name__} can't be compressed: {reason} ({name})"
        )
    shape = family.shape(module)
    plan.check(shape, name)
    weight = family.slot(module, "query").weight
    if family.is_fused:
        _take_apart_(module, family)
    host_class, family = type(module), family.taken_apart()
    query, key = family.projection(module, "query"), family.projection(module, "key")
    module.collab_biases = (query.bias is not None, key.bias is not None)
    rows = 0 if plan.tied else plan.key_rank
    rows += shape.num_heads if plan.content_bias == "exact" else 0
    with torch.device(weight.device):
        mixing = build_mixing(plan, shape.num_heads).to(weight.dtype)
    mixing.requires_grad_(weight.requires_grad)
    mixing.train(module.training)
    _resize_(query, plan.query_rank, plan.query_rank)
    if rows:
        _resize_(key, rows, 0 if plan.tied else plan.key_rank)
    else:
        setattr(module, family.key, None)
    module.__class__ = collab_attention_class(host_class, family)
    module.collab_plan = plan
    module.mixing = mixing


def _resize_(linear: Any, out_features: int, kept: int) -> None:
    old = linear.weight
    weight = old.new_zeros(out_features, linear.in_features)
    weight[:kept] = old.detach()[:kept]
    linear.weight = nn.Parameter(weight, requires_grad=old.requires_grad)
    linear.bias = None
    linear.out_features = out_features


def _take_apart_(module: Any, family: Family) -> None:
    """Give a fused host a Linear each for queries, keys and values; the fused modules go."""
    apart = family.taken_apart()
    old = [getattr(family, role).partition(":")[0] for role in ("query", "key", "value")]
    for role in ("query", "key", "value"):
        slot = family.slot(module, role)
        setattr(module, getattr(apart, role), _linear(slot.weight, slot.bias, slot.module))
    for name in dict.fromkeys(old):
        delattr(module, name)


def _linear(weight: Tensor, bias: Tensor | None, like: Any) -> nn.Linear:
    """A Linear of its own memory with the values, trainable and in the mode that another module is in."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    learns = like.weight.requires_grad
    linear.weight = nn.Parameter(weight.detach().clone(), requires_grad=learns)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone(), requires_grad=learns)
    return linear.train(like.training)


def put_together_(module: Any) -> None:
    """The opposite of taking a fused host apart, once its class is the host's again."""
    family = family_of(module)
    if family is None or not family.is_fused:
        return
    apart = family.taken_apart()
    linears = {role: getattr(module, getattr(apart, role)) for role in ("query", "key", "value")}
    parts: dict[str, list[nn.Linear]] = {}
    for role, linear in linears.items():
        parts.setdefault(getattr(family, role).partition(":")[0], []).append(linear)
    for role in linears:
        delattr(module, getattr(apart, role))
    for name, own in parts.items():
        weight = torch.cat([linear.weight.detach() for linear in own])
        fused = Conv1D(weight.shape[0], weight.shape[1])
        learns = own[0].weight.requires_grad
        fused.weight = nn.Parameter(weight.T.contiguous(), requires_grad=learns)
        biases = [torch.zeros(len(m.weight)).to(weight) if m.bias is None else m.bias for m in own]
        fused.bias = nn.Parameter(torch.cat([b.detach() for b in biases]), requires_grad=learns)
        setattr(module, name, fused.train(own[0].training))


def __getattr__(name: str) -> type[nn.Module]:
    """Classes made on demand, for unpickling in a fresh process."""
    host = find_host(name.removeprefix("Collab")) if name.startswith("Collab") else None
    row = None if host is None else row_of_class(host)
    if host is None or row is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return collab_attention_class(host, row)
