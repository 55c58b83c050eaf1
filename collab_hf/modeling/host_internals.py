"""The names of transformers that are not public and that collab_hf can't do without, all of them, here alone.

Each is reached by one function, and tests/test_host_internals.py says which version of transformers lacks it.
This file ships with saved checkpoints: it imports transformers alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import transformers

from .errors import VersionError

if TYPE_CHECKING:
    # Their file takes seconds to import.
    from transformers import PreTrainedConfig, PreTrainedModel


def attention_backend(config: PreTrainedConfig) -> Any:
    """Which attention function a model uses: `eager`, `sdpa` and so on.

    Args:
        config: a model's config.

    Returns:
        The name in `AttentionInterface`, a str; None where none was chosen yet.
    """
    # Read in every forward pass and followed by torch.compile, so without the check that the others make.
    return config._attn_implementation


def record_outputs_(model: PreTrainedModel) -> None:
    """Have hidden states and attention weights recorded for a model whose class was changed in place.

    Args:
        model: the model; transformers registers a class's recorders when a model of it is built.

    Raises:
        VersionError: transformers lacks the registry.
    """
    registry = _private("transformers.utils.output_capturing", "_CAN_RECORD_REGISTRY")
    # Keyed by the class's name in every version: newer registries make that key themselves.
    dict.__setitem__(registry, str(type(model)), _private(model, "_can_record_outputs"))


def forget_renaming_(model: PreTrainedModel) -> None:
    """Drop the renaming of weights that was looked up for a model's former class when it was loaded.

    Args:
        model: the model; the renaming is looked up anew when it is saved.
    """
    vars(model)["_weight_conversions"] = None


def share_renaming(host: type[PreTrainedModel], name: str) -> None:
    """Give the class of a name the host's renaming of weights on disk (ViT's, say).

    Args:
        host: a class of transformers, which looks renamings up by the name of the class or the model type.
        name: of the class that is built on it.

    Raises:
        VersionError: transformers lacks the table of renamings.
    """
    place = "transformers.conversion_mapping"
    find = _private(place, "get_checkpoint_conversion_mapping")
    register = _private(place, "register_checkpoint_conversion_mapping")
    renaming = find(host.__name__) or find(getattr(host.config_class, "model_type", ""))
    if renaming:
        register(name, renaming, overwrite=True)


def heads_of(model_type: str) -> dict[str, str]:
    """Which class of transformers each Auto class gives for a model type.

    Args:
        model_type: such as `bert`.

    Returns:
        `AutoModelForMaskedLM` -> `BertForMaskedLM`, and so on; the first where there are several. Those that
        read another type's config are left out.

    Raises:
        VersionError: the Auto classes lack their tables.
    """
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    found = {}
    for name, auto_class in list(vars(auto).items()):
        # The bases that the Auto classes have in common know no models.
        if isinstance(auto_class, type) and name.startswith("Auto"):
            classes = _private(_private(auto_class, "_model_mapping"), "_model_mapping")
            if model_type in classes:
                entry = classes[model_type]
                found[name] = entry if isinstance(entry, str) else entry[0]
    return {name: host for name, host in found.items() if _reads(host, model_type)}


def _reads(host: str, model_type: str) -> bool:
    """Whether a class of transformers is for configs of a type; Qwen2's AutoModelForDecision is not."""
    config = getattr(getattr(transformers, host, None), "config_class", None)
    return config is None or bool(config.model_type == model_type)


class _Derived(dict[str, Any]):
    """Configs by model type; that of `collab_bert`, say, is made of BERT's when it is first asked for."""

    def __init__(self, hosts: Any, prefix: str, make: Callable[[Any], Any], known: Mapping[str, Any]) -> None:
        super().__init__(known)
        self._hosts, self._prefix, self._make = hosts, prefix, make

    def __contains__(self, name: object) -> bool:
        if super().__contains__(name):
            return True
        return isinstance(name, str) and name.startswith(self._prefix) and self._host(name) in self._hosts

    def __missing__(self, name: str) -> Any:
        if name not in self:
            raise KeyError(name)
        return self.setdefault(name, self._make(self._hosts[self._host(name)]))

    def _host(self, name: str) -> str:
        return name.removeprefix(self._prefix)


def derive_configs(prefix: str, make: Callable[[Any], Any]) -> None:
    """Let `AutoConfig` know a config for every model type with a prefix, without importing the hosts' files.

    Args:
        prefix: of the new model types, such as `collab_`.
        make: makes the config class of a host's, when its model type is first met.

    Raises:
        VersionError: `AutoConfig` lacks its table.
    """
    hosts = transformers.CONFIG_MAPPING
    known = _private(hosts, "_extra_content")
    if not isinstance(known, _Derived):
        vars(hosts)["_extra_content"] = _Derived(hosts, prefix, make, known)


def own_heads_of(config: type[PreTrainedConfig]) -> dict[str, type[PreTrainedModel]]:
    """Which class of a user's own each Auto class gives for a config class.

    Args:
        config: a config class.

    Returns:
        Those that a user registered by name of the Auto class.

    Raises:
        VersionError: the Auto classes lack their tables.
    """
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    found = {}
    for name, auto_class in list(vars(auto).items()):
        if isinstance(auto_class, type) and name.startswith("Auto"):
            own = _private(_private(auto_class, "_model_mapping"), "_extra_content").get(config)
            if isinstance(own, type):
                found[name] = own
    return found


def _private(owner: Any, name: str) -> Any:
    """An attribute of an object, or of the module of that name."""
    try:
        return getattr(importlib.import_module(owner) if isinstance(owner, str) else owner, name)
    except (AttributeError, ModuleNotFoundError) as error:
        raise VersionError(
            f"transformers {transformers.__version__} lacks {name}, which collab_hf needs; see "
            "docs/benchmarks/compatibility.md for the versions that work"
        ) from error
