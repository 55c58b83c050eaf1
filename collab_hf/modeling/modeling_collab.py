"""Collaborative versions of transformers' model classes, made on demand by name.

`CollabBertForMaskedLM` is `BertForMaskedLM` with the attention layers named in `config.collab` converted.
Saved checkpoints name these classes in `auto_map` and ship this file with the ones it imports, so that they
load with `trust_remote_code=True` where collab_hf is not installed. It imports torch and transformers alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from threading import RLock
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init

from . import configuration_collab
from .attention import CollabAttention
from .configuration_collab import config_class
from .embeddings import LowRankEmbedding, resized_head
from .errors import CheckpointError, ConfigError
from .families import find_host, relative_name
from .host_internals import forget_renaming_, heads_of, share_renaming
from .initialisation import checked_mixing, fill_mixing_
from .plans import apply_plans_, read_plans, write_plans

_CLASSES: dict[str, type[PreTrainedModel]] = {}

# Transformers replaces methods of its classes while it loads a model (`tie_weights`, for one). Of models that
# two threads load at once, one can be left with tied weights on the meta device, so they take turns.
_LOADING = RLock()


class _CollabModel:
    """Mixed in before the host's model class."""

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        ours: Any = self.config_class  # type: ignore[attr-defined]
        if type(config).__name__ == ours.__name__:
            # Of a checkpoint's own code, transformers loads a copy for the config and one for the model.
            config.__class__ = ours
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        plans = read_plans(config)
        apply_plans_(self, plans)  # type: ignore[arg-type]
        if any(plans.values()):
            forget_renaming_(self)  # type: ignore[arg-type]
        # The host initialised its own layers; what has taken their place since is still empty memory. Shared
        # projections are not: they are rows of the host's.
        for _, module in list(changed_modules(self)):  # type: ignore[arg-type]
            for inner in [module] if isinstance(module, CollabAttention) else module.modules():
                self._init_weights(inner)
        adopt_configs_(self, plans)  # type: ignore[arg-type]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, CollabAttention):
            # Hosts name projections and biases here that are gone.
            name = (self.config.collab or {}).get("mixing")  # type: ignore[attr-defined]
            head_dim = module.collab_family.width(module)
            fill_mixing_(module.mixing, head_dim, checked_mixing(name, module.collab_plan))
            return
        super()._init_weights(module)  # type: ignore[misc]
        if isinstance(module, LowRankEmbedding):
            init.normal_(module.up, std=module.up.shape[1] ** -0.5)

    def _get_resized_lm_head(self, old_lm_head: nn.Linear, *args: Any, **kwargs: Any) -> nn.Linear:
        new: nn.Linear = super()._get_resized_lm_head(old_lm_head, *args, **kwargs)  # type: ignore[misc]
        return resized_head(old_lm_head, new)

    @classmethod
    def from_pretrained(
        cls,
        *args: Any,
        output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load as transformers does, and be strict about the factors.

        Args:
            *args: as for PreTrainedModel.
            output_loading_info: whether to return the loading report too.
            ignore_mismatched_sizes: whether weights of another shape, such as another task's head, may be
                initialised anew; never the factors.
            **kwargs: as for PreTrainedModel.

        Returns:
            The model, or the model and the loading report.

        Raises:
            CheckpointError: a factor is missing, unknown or has another shape than config.json says.
        """
        # Always lenient here, since transformers' own refusal does not name the weight.
        with _LOADING:
            model, info = super().from_pretrained(  # type: ignore[misc]
                *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
            )
        check_factors(model, info)
        if info["mismatched_keys"] and not ignore_mismatched_sizes:
            name, found, expected = min(info["mismatched_keys"])
            raise CheckpointError(
                f"{name} has shape {tuple(found)} in the checkpoint and {tuple(expected)} in the model; pass "
                "ignore_mismatched_sizes=True to initialise it anew"
            )
        return (model, info) if output_loading_info else model

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Publish as transformers does, where collab_hf is installed with a card of what was done.

        Args:
            *args: as for PreTrainedModel.
            **kwargs: as for PreTrainedModel.

        Returns:
            URL of the commit.
        """
        if configuration_collab.on_push is None or kwargs.get("create_pr"):
            return super().push_to_hub(*args, **kwargs)  # type: ignore[misc]
        return configuration_collab.on_push(self, *args, **kwargs)


def model_class(base: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The collaborative version of a model class.

    Args:
        base: a transformers model class, such as BertForMaskedLM.

    Returns:
        A subclass named `Collab` + the base's name.
    """
    name = "Collab" + base.__name__
    if name in _CLASSES and base not in _CLASSES[name].__bases__:
        del _CLASSES[name]  # a notebook's cell that defines a class was run again
    if name not in _CLASSES:
        members = {
            "__doc__": base.__doc__,
            "__module__": __name__,
            "__qualname__": name,
            "config_class": config_class(_config_class_of(base)),
        }
        # Renamed weights are looked up by class name, and classes of others are skipped.
        share_renaming(base, name)
        # Where several threads get here at once, all of them take the class that came first.
        _CLASSES.setdefault(name, type(name, (_CollabModel, base), members))
    return _CLASSES[name]


def own_class(name: str) -> type[PreTrainedModel] | None:
    """A user's own model class by its name.

    Args:
        name: such as `MyBert`.

    Returns:
        The class that was defined last under this name, if the module that does so is imported; else None.
    """
    found, waiting = None, list(PreTrainedModel.__subclasses__())
    while waiting:
        one = waiting.pop(0)
        waiting.extend(one.__subclasses__())
        if one.__name__ == name and not one.__module__.startswith("transformers."):
            found = one
    return found


def _config_class_of(model: type[PreTrainedModel]) -> type[PreTrainedConfig]:
    if model.config_class is None:
        raise ConfigError(f"{model.__name__} has no config class")
    return model.config_class


def __getattr__(name: str) -> type[PreTrainedModel]:
    """Resolve `CollabBertModel` and the like, as `auto_map` and pickles name them."""
    host = name.removeprefix("Collab")
    if name.startswith("Collab"):
        # Parts of models, such as Dinov2Encoder, are not at the top.
        if name in _CLASSES:
            return _CLASSES[name]  # of a user's own model too
        base = getattr(transformers, host, None) or find_host(host) or own_class(host)
        if isinstance(base, type) and issubclass(base, PreTrainedModel):
            return model_class(base)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def auto_map(model_type: str) -> dict[str, str]:
    """Which collaborative class each Auto class stands for.

    Args:
        model_type: the base config's, such as `bert`.

    Returns:
        `AutoModelForMaskedLM` -> `modeling_collab.CollabBertForMaskedLM`, and so on.
    """
    return {auto: f"modeling_collab.Collab{host}" for auto, host in heads_of(model_type).items()}


def adopt_configs_(model: PreTrainedModel, plans: Mapping[str, Mapping[str, Any]]) -> None:
    """Give a converted model, and the models inside that have configs of their own, collaborative configs.

    Args:
        model: a transformers model whose layers are converted.
        plans: by section and by the module's name relative to the base model. Each config gets those of the
            modules in its own model, by names relative to that.
    """
    names = {relative_name(model, name): id(module) for name, module in model.named_modules()}
    changed = {s: {names[n]: plan for n, plan in own.items() if n in names} for s, own in plans.items()}
    seen: set[int] = set()
    for inner in [m for m in model.modules() if isinstance(m, PreTrainedModel)]:
        config = inner.config
        inside = {id(module): relative_name(inner, name) for name, module in inner.named_modules()}
        found = {s: {inside[i]: p for i, p in own.items() if i in inside} for s, own in changed.items()}
        if inner is model:
            found = {section: dict(own) for section, own in plans.items()}
        is_ours = type(config).model_type.startswith("collab_")
        if id(config) in seen or is_ours or not any(found.values()):
            continue
        seen.add(id(config))
        adopt_config_(config, found)


def adopt_config_(config: PreTrainedConfig, plans: Mapping[str, Mapping[str, Any]]) -> None:
    """Turn a host's config into the collaborative one of its class.

    Args:
        config: of a host's model.
        plans: by section and by the module's name relative to the base model.
    """
    base: Any = type(config)
    config.__class__ = config_class(base)
    vars(config).update(collab=write_plans(plans), auto_map=auto_map(base.model_type))
    if configuration_collab.on_config is not None:
        configuration_collab.on_config(base)


def changed_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules whose numbers must come from a checkpoint of ours, by full name."""
    for name, module in model.named_modules():
        if isinstance(module, CollabAttention) or getattr(module, "collab_resized", False):
            yield name, module


def check_factors(model: PreTrainedModel, info: dict[str, Any]) -> None:
    """Refuse a loaded model whose factors did not all come from the checkpoint.

    Args:
        model: the loaded model.
        info: transformers' loading report.

    Raises:
        CheckpointError: names the factors.
    """
    prefixes = tuple(f"{relative_name(model, name)}." for name, _ in changed_modules(model))
    problems = []
    for kind, keys in (
        ("missing", "missing_keys"),
        ("unknown", "unexpected_keys"),
        ("wrong-shaped", "mismatched_keys"),
    ):
        names = [key if isinstance(key, str) else key[0] for key in info.get(keys, ())]
        bad = sorted(n for n in names if relative_name(model, n).startswith(prefixes))
        if bad:
            more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
            problems.append(f"{kind} factor {bad[0]}{more}")
    if problems and prefixes:
        raise CheckpointError(f"the checkpoint does not fit its config.json: {', '.join(problems)}")
