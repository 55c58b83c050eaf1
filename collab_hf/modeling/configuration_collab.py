"""Collaborative versions of transformers' config classes, made on demand by name.

`CollabBertConfig` is `BertConfig` with a model type of its own and the field `collab`: the form of each
layer that is converted. This file ships with saved checkpoints and imports transformers alone; it stands
apart from modeling_collab.py so that registering the configs does not load any model's code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import transformers
from transformers import PreTrainedConfig

if TYPE_CHECKING:
    # Also what tells transformers to ship that file with a checkpoint.
    from .modeling_collab import model_class as model_class

# Set by the package to register model classes with the Auto classes when a config is first met.
on_config: Callable[[type[PreTrainedConfig]], None] | None = None

# Set by the package to tell PEFT about the projections; PEFT asks for them after a config's `to_dict`.
on_to_dict: Callable[[], None] | None = None

# Set by the package to publish a model with its own card; without it transformers publishes as ever.
on_push: Callable[..., str] | None = None

# Stands in config.json as the name of the weights' file where the host's own class would find every factor of
# its own shape, read it as something else and leave the rest random: that class stops here, with this text.
_FOREIGN = "transformers_weights"
_FOR_OTHERS = (
    "none for this class: use this collab_hf, a later one, or an Auto class with trust_remote_code=True"
)

_PREFIX = "collab_"
_CLASSES: dict[str, type[PreTrainedConfig]] = {}


def config_class(base: type[PreTrainedConfig]) -> type[PreTrainedConfig]:
    """Make the collaborative version of a config class.

    Args:
        base: a transformers config class, such as BertConfig.

    Returns:
        A subclass with model type `collab_` + the base's, and the field `collab`.
    """
    name = "Collab" + base.__name__
    if name not in _CLASSES:

        def register_models_first(self: Any, **kwargs: Any) -> None:
            if on_config is not None:
                on_config(base)
            if kwargs.get(_FOREIGN) == _FOR_OTHERS:
                del kwargs[_FOREIGN]
            base.__post_init__(self, **kwargs)

        def to_dict(self: Any) -> dict[str, Any]:
            if on_to_dict is not None:
                on_to_dict()
            values = _with_plain_parts(base.to_dict(self))
            return {**values, _FOREIGN: _FOR_OTHERS} if _fits_host(self) else values

        members = {
            "__annotations__": {"collab": "dict | None"},
            "__doc__": base.__doc__,
            "__module__": __name__,
            "__post_init__": register_models_first,
            "__qualname__": name,
            "collab": None,
            "model_type": _PREFIX + base.model_type,
            "to_dict": to_dict,
        }
        made: Any = type(name, (base,), members)
        made.register_for_auto_class("AutoConfig")  # so that saving a model ships this file
        # Where several threads get here at once, all of them take the class that came first.
        _CLASSES.setdefault(name, made)
    return _CLASSES[name]


def _fits_host(config: Any) -> bool:
    """Whether the factors of some layer have the shapes of the host's own projections, or may have them."""
    settings = getattr(config, "collab", None)
    layers = settings.get("layers") if isinstance(settings, dict) else None
    plans = [plan for plan in layers.values() if isinstance(plan, dict)] if isinstance(layers, dict) else []
    heads, head_dim = getattr(config, "num_attention_heads", 0), getattr(config, "head_dim", None)
    full = heads * head_dim if heads and head_dim else getattr(config, "hidden_size", 0)
    # An exact content bias adds rows to the key projection, whose shape then stops every other class.
    folded = [plan for plan in plans if plan.get("content_bias") == "folded"]
    # What is no number is refused where the layers are built.
    ranks = [rank for plan in folded if isinstance(rank := plan.get("query_rank"), int)]
    return any(plan.get("method") == "copy" for plan in folded) or any(rank >= full for rank in ranks)


def _with_plain_parts(settings: dict[str, Any]) -> dict[str, Any]:
    """A config's settings with the host's own configs inside: the outer one alone has the layers' forms.

    A host builds its parts from its config before any layer is converted.
    """
    for value in settings.values():
        kind = value.get("model_type") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind.startswith(_PREFIX):
            value["model_type"] = kind.removeprefix(_PREFIX)
            for name in ("collab", "auto_map"):
                value.pop(name, None)
    return settings


def __getattr__(name: str) -> type[PreTrainedConfig]:
    """Resolve `CollabBertConfig` and the like, as `auto_map` and pickles name them."""
    base = getattr(transformers, name.removeprefix("Collab"), None) if name.startswith("Collab") else None
    if isinstance(base, type) and issubclass(base, PreTrainedConfig):
        return config_class(base)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
