"""The forms of all modules of a model: as config.json has them, and given to a host's model.

This file ships with saved checkpoints: it imports torch, transformers and siblings alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from .conversion import convert_
from .embeddings import EmbeddingPlan, token_embeddings
from .errors import ConfigError
from .families import all_attention_layers, feed_forward_layers
from .plan import LayerPlan
from .shrinking import FeedForwardPlan, HeadsPlan, ValuePlan

# Newest layout of config.json and of the factors' names; a newer one is refused. 1 knows queries and keys.
FORMAT = 2

# By section of config.json, plans by the module's name relative to the base model. Sections are applied in
# this order: queries and keys are shared by the heads that stay.
Plans = dict[str, dict[str, Any]]

QUERY_KEY = "layers"
SECTIONS: dict[str, type[Any]] = {
    HeadsPlan.section: HeadsPlan,
    ValuePlan.section: ValuePlan,
    QUERY_KEY: LayerPlan,
    FeedForwardPlan.section: FeedForwardPlan,
    EmbeddingPlan.section: EmbeddingPlan,
}

_KINDS = {FeedForwardPlan.section: "feed-forward", EmbeddingPlan.section: "token embedding"}


def read_plans(config: PreTrainedConfig) -> Plans:
    """The forms as config.json has them.

    Args:
        config: a collaborative config.

    Returns:
        Plans by section and name; sections that are not there are left out.

    Raises:
        ConfigError: the settings are malformed, or of a newer format.
    """
    settings = getattr(config, "collab", None) or {}
    _check_mapping("collab", settings)
    version = settings.get("format", FORMAT)
    if type(version) is not int or version < 1:
        raise ConfigError(f"the collab format in config.json must be from 1 to {FORMAT}, got {version!r}")
    if version > FORMAT:
        raise ConfigError(
            f"this checkpoint has collab format {version}, newer than {FORMAT}; update collab_hf"
        )
    found = {section: settings[section] for section in SECTIONS if section in settings}
    for section, values in found.items():
        _check_mapping(f"{section} of collab", values)
    return {
        section: {name: SECTIONS[section].from_dict(plan, name) for name, plan in values.items()}
        for section, values in found.items()
    }


def _check_mapping(name: str, values: Any) -> None:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{name} in config.json must be a mapping, got {values!r}")


def write_plans(plans: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The opposite of `read_plans`.

    Args:
        plans: by section and name.

    Returns:
        What config.json keeps under `collab`; of format 1 where queries and keys alone have forms.
    """
    found = {
        section: {name: plan.to_dict() for name, plan in plans[section].items()}
        for section in SECTIONS
        if plans.get(section)
    }
    found.setdefault(QUERY_KEY, {})
    return {"format": 1 if set(found) == {QUERY_KEY} else FORMAT, **found}


def apply_plans_(model: nn.Module, plans: Mapping[str, Mapping[str, Any]]) -> None:
    """Give the modules of a dense model the forms that plans name, in place; their numbers are uninitialised.

    Args:
        model: a transformers model.
        plans: by section and by the module's name relative to the base model.

    Raises:
        ConfigError: a plan names no module of this model, or does not fit it.
    """
    around = dict(_held(model))
    attention = {name: module for name, module, _ in all_attention_layers(model)}
    modules = {
        **dict.fromkeys((HeadsPlan.section, ValuePlan.section, QUERY_KEY), attention),
        FeedForwardPlan.section: {name: module for name, module, _ in feed_forward_layers(model)},
        EmbeddingPlan.section: token_embeddings(model),
    }
    for section in SECTIONS:
        for name, plan in plans.get(section, {}).items():
            if name not in modules[section]:
                kind = _KINDS.get(section, "attention layer")
                raise ConfigError(f"config.json has collab settings for {name}, which is no {kind} here")
            module = modules[section][name]
            if section == QUERY_KEY:
                convert_(module, plan, name)
            else:
                # What is tied to an embedding may be anywhere in the model.
                shrink_(module, model if section == EmbeddingPlan.section else around[module], plan, name)


def shrink_(module: Any, around: nn.Module, plan: Any, name: str) -> None:
    """Give a module its smaller sizes, and note what was done to it.

    Args:
        module: a dense module of the host.
        around: the module that holds it.
        plan: of `shrinking.py`.
        name: the module's name, for messages.
    """
    touched = plan.shrink_(module, around, name)
    vars(module)["collab_plans"] = {**getattr(module, "collab_plans", {}), plan.section: plan}
    for linear in touched:
        vars(linear)["collab_resized"] = True


def _held(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Every module with the one that holds it."""
    for module in model.modules():
        for child in module.children():
            yield child, module
