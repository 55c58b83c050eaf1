"""Make transformers' Auto classes know the collaborative models."""

from __future__ import annotations

from threading import RLock
from typing import Any

from transformers import PreTrainedConfig

from ..modeling import configuration_collab
from ..modeling.families import FAMILIES
from ..modeling.host_internals import derive_configs, own_heads_of
from .peft_targets import extend_peft

_PREFIX = "collab_"
_registering = RLock()
_registered: set[type[PreTrainedConfig]] = set()


def register() -> None:
    """Register a config for every host; its models follow when such a config is first met.

    Hosts' files are not imported for it: those of all families would take seconds.
    """
    configuration_collab.on_config = _register_models
    configuration_collab.on_to_dict = _extend_peft
    configuration_collab.on_push = _push_model
    derive_configs(_PREFIX, configuration_collab.config_class)


def _register_models(base: type[PreTrainedConfig]) -> None:
    """Register the collaborative classes of one family, which imports its modeling file."""
    if base in _registered:
        return
    # Threads that load their first models at once wait for the one that registers them.
    with _registering:
        if base in _registered:
            return
        from transformers.models.auto import modeling_auto

        from ..modeling import modeling_collab

        config = configuration_collab.config_class(base)
        for auto_name, reference in modeling_collab.auto_map(base.model_type).items():
            model = getattr(modeling_collab, reference.rpartition(".")[2])
            getattr(modeling_auto, auto_name).register(config, model, exist_ok=True)
        for auto_name, own in own_heads_of(base).items():
            getattr(modeling_auto, auto_name).register(
                config, modeling_collab.model_class(own), exist_ok=True
            )
        _registered.add(base)


def _extend_peft() -> None:
    known = {t: family for family in FAMILIES.values() for t in family.model_types if not family.is_fused}
    extend_peft({t: [family.query, family.value] for t, family in known.items()})


def _push_model(*args: Any, **kwargs: Any) -> str:
    from ..hub.publish import push_model

    return push_model(*args, **kwargs)
