"""Make transformers' Auto classes know the collaborative models."""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from . import configuration_collab
from .families import FAMILIES
from .peft_targets import extend_peft

_registered: set[type[PreTrainedConfig]] = set()


def register() -> None:
    """Register every family's config; its models follow when such a config is first met."""
    configuration_collab.on_config = _register_models
    configuration_collab.on_push = _push_model
    for model_type in sorted({t for family in FAMILIES.values() for t in family.model_types}):
        collab = configuration_collab.config_class(CONFIG_MAPPING[model_type])
        AutoConfig.register(collab.model_type, collab, exist_ok=True)
    extend_peft({t: [family.query, family.value] for family in FAMILIES.values() for t in family.model_types})


def _register_models(base: type[PreTrainedConfig]) -> None:
    """Register the collaborative classes of one family, which imports its modeling file."""
    if base in _registered:
        return
    _registered.add(base)
    from transformers.models.auto import modeling_auto

    from . import modeling_collab

    config = configuration_collab.config_class(base)
    for auto_name, reference in modeling_collab.auto_map(base.model_type).items():
        auto_class = getattr(modeling_auto, auto_name, None) or getattr(modeling_auto, f"_{auto_name}")
        model = getattr(modeling_collab, reference.rpartition(".")[2])
        auto_class.register(config, model, exist_ok=True)


def _push_model(*args: Any, **kwargs: Any) -> str:
    from .hub import push_model

    return push_model(*args, **kwargs)
