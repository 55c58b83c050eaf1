"""Give a converted model its collaborative class and config, or take them away again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from ..modeling.host_internals import forget_renaming_, record_outputs_
from ..modeling.modeling_collab import adopt_configs_, model_class


def adopt_(model: PreTrainedModel, plans: Mapping[str, Mapping[str, Any]]) -> None:
    """Give a model whose layers are converted its collaborative class and config, in place.

    Args:
        model: a transformers model; its inner models are adopted too.
        plans: by section and by the module's name relative to the base model, written into the config.
    """
    adopt_configs_(model, plans)
    for inner in [m for m in model.modules() if isinstance(m, PreTrainedModel)]:
        # A tower whose layers all stay dense stays the host's.
        if hasattr(inner.config, "collab"):
            inner.__class__ = model_class(type(inner))
            record_outputs_(inner)
            forget_renaming_(inner)


def disown_(model: PreTrainedModel) -> None:
    """Give a model its host's class and config class."""
    disown_config_(model.config)
    if type(model).__name__.startswith("Collab"):  # models inside of loaded ones are the host's as they are
        model.__class__ = type(model).__bases__[1]
    record_outputs_(model)
    forget_renaming_(model)


def disown_config_(config: Any) -> None:
    """Give a config its host's class, without the forms and the code of ours."""
    if hasattr(config, "collab"):
        config.__class__ = type(config).__bases__[0]
        for name in ("collab", "auto_map"):
            if name in vars(config):
                delattr(config, name)
