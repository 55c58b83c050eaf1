"""Turn a dense attention module into a collaborative one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .attention import CollabAttention, CollabCrossAttention
from .families import FAMILIES
from .mixing import build_mixing
from .plan import LayerPlan

_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def collab_attention_class(host: type[nn.Module]) -> type[nn.Module]:
    """The collaborative subclass of a host attention class, made once.

    Args:
        host: a class named in `FAMILIES`.

    Returns:
        A class named `Collab` + the host's name.
    """
    if host not in _CLASSES:
        family = FAMILIES[host.__name__]
        base = CollabCrossAttention if family.cross else CollabAttention
        name = "Collab" + host.__name__
        members = {
            "collab_family": family,
            "collab_host": host,
            "__module__": __name__,
            "__qualname__": name,
            "__doc__": host.__doc__,
        }
        # Where several threads get here at once, all of them take the class that came first.
        _CLASSES.setdefault(host, type(name, (base, host), members))
    return _CLASSES[host]


def convert_(module: Any, plan: LayerPlan, name: str = "") -> None:
    """Turn a dense attention module into a collaborative one, in place; factors are left uninitialised.

    Keeps the module and its projections as objects (hooks stay), their device, dtype, training mode and
    requires_grad. But where a tied plan leaves the key projection nothing to do, None takes its place.

    Args:
        module: a dense attention module of a known family.
        plan: the form it gets.
        name: the module's name, for messages.

    Raises:
        RankError: the plan does not fit the module.
    """
    family = FAMILIES[type(module).__name__]
    shape = family.shape(module)
    plan.check(shape, name)
    query, key = family.projection(module, "query"), family.projection(module, "key")
    rows = 0 if plan.tied else plan.key_rank
    rows += shape.num_heads if plan.content_bias == "exact" else 0
    weight = query.weight
    with torch.device(weight.device):
        mixing = build_mixing(plan, shape.num_heads).to(weight.dtype)
    mixing.requires_grad_(weight.requires_grad)
    mixing.train(module.training)
    _resize_(query, plan.query_rank)
    if rows:
        _resize_(key, rows)
    else:
        setattr(module, family.key, None)
    module.__class__ = collab_attention_class(type(module))
    module.collab_plan = plan
    module.mixing = mixing


def _resize_(linear: Any, out_features: int) -> None:
    old = linear.weight
    linear.weight = nn.Parameter(
        old.new_empty(out_features, linear.in_features), requires_grad=old.requires_grad
    )
    linear.bias = None
    linear.out_features = out_features


def __getattr__(name: str) -> type[nn.Module]:
    """Classes made on demand, for unpickling in a fresh process."""
    host = name.removeprefix("Collab")
    if name.startswith("Collab") and host in FAMILIES:
        import importlib

        model_type = FAMILIES[host].model_types[0]
        modeling = importlib.import_module(f"transformers.models.{model_type}.modeling_{model_type}")
        return collab_attention_class(getattr(modeling, host))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
