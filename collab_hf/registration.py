"""Make transformers' Auto classes know the collaborative models."""

from __future__ import annotations

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.models.auto import modeling_auto

from . import modeling_collab
from .families import FAMILIES

_registered: set[type[PreTrainedConfig]] = set()


def register() -> None:
    """Register every family's config; its models follow when such a config is first met."""
    modeling_collab.on_config = _register_models
    for model_type in sorted({t for family in FAMILIES.values() for t in family.model_types}):
        collab = modeling_collab.config_class(CONFIG_MAPPING[model_type])
        AutoConfig.register(collab.model_type, collab, exist_ok=True)


def _register_models(base: type[PreTrainedConfig]) -> None:
    """Register the collaborative classes of one family, which imports its modeling file."""
    config = modeling_collab.config_class(base)
    if config in _registered:
        return
    _registered.add(config)
    for auto_name, reference in modeling_collab.auto_map(base.model_type).items():
        auto_class = getattr(modeling_auto, auto_name, None) or getattr(modeling_auto, f"_{auto_name}")
        auto_class.register(config, getattr(modeling_collab, reference.rpartition(".")[2]), exist_ok=True)
