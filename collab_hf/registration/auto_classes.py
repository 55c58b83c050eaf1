"""Make transformers' Auto classes know the collaborative models."""

from __future__ import annotations

from collections import UserDict
from functools import cache
from types import ModuleType
from typing import Any

from transformers import PreTrainedConfig

from ..modeling import configuration_collab
from ..modeling.families import FAMILIES
from .after_import import after_import
from .peft_targets import extend_peft

_PREFIX = "collab_"
_registered: set[type[PreTrainedConfig]] = set()


@cache
def register() -> None:
    """Register every family's config; its models follow when such a config is first met.

    AutoConfig is not imported for it, which would take most of the time of `import collab_hf`.
    """
    configuration_collab.on_config = _register_models
    configuration_collab.on_push = _push_model
    after_import("transformers.models.auto.configuration_auto", _register_configs)
    extend_peft({t: [family.query, family.value] for family in FAMILIES.values() for t in family.model_types})


class _RegisteredConfigs(UserDict[str, Any]):
    """What `AutoConfig.register` was given, by model type; None stands for ours until it is looked up.

    AutoConfig is often imported in the middle of a host's files, which can't be asked for their classes then.
    """

    def __init__(self, hosts: Any, registered: Any) -> None:
        self._hosts = hosts
        super().__init__(registered)
        # Of every host: which of them have attention that is known takes their model files to tell.
        self.data.update({_PREFIX + model_type: None for model_type in hosts._mapping})

    def __setitem__(self, model_type: str, config: Any) -> None:
        super().__setitem__(model_type, config)
        if not model_type.startswith(_PREFIX):  # a user's own
            self.data.setdefault(_PREFIX + model_type, None)

    def __getitem__(self, model_type: str) -> Any:
        if self.data[model_type] is None:
            host = self._hosts[model_type.removeprefix(_PREFIX)]
            self.data[model_type] = configuration_collab.config_class(host)
        return self.data[model_type]


def _register_configs(auto: ModuleType) -> None:
    hosts = auto.CONFIG_MAPPING
    hosts._extra_content = _RegisteredConfigs(hosts, hosts._extra_content)


def _register_models(base: type[PreTrainedConfig]) -> None:
    """Register the collaborative classes of one family, which imports its modeling file."""
    if base in _registered:
        return
    _registered.add(base)
    from transformers.models.auto import modeling_auto

    from ..modeling import modeling_collab

    config = configuration_collab.config_class(base)
    for auto_name, reference in modeling_collab.auto_map(base.model_type).items():
        auto_class = getattr(modeling_auto, auto_name, None) or getattr(modeling_auto, f"_{auto_name}")
        model = getattr(modeling_collab, reference.rpartition(".")[2])
        auto_class.register(config, model, exist_ok=True)
    auto_classes: list[Any] = [found for found in vars(modeling_auto).values() if isinstance(found, type)]
    for auto_class in auto_classes:
        mapping = getattr(auto_class, "_model_mapping", None)
        own = getattr(mapping, "_extra_content", {}).get(base)  # what a user registered
        if isinstance(own, type):
            auto_class.register(config, modeling_collab.model_class(own), exist_ok=True)


def _push_model(*args: Any, **kwargs: Any) -> str:
    from ..hub.publish import push_model

    return push_model(*args, **kwargs)
