"""Tell PEFT, once it is imported, which projections of the collaborative models take adapters by default."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from .after_import import after_import

_MODULE = "peft.utils.constants"
_PREFIX = "collab_"


def extend_peft(defaults: Mapping[str, list[str]]) -> None:
    """Give each `collab_` model type default target modules: the host's, or the given ones for LoRA.

    PEFT is not imported for it: where it is not loaded yet, its tables are extended when it is.

    Args:
        defaults: names of projections by the hosts' model types, such as `bert`.
    """
    after_import(_MODULE, lambda module: _extend(module, defaults))


def _extend(module: ModuleType, defaults: Mapping[str, list[str]]) -> None:
    for name, table in vars(module).items():
        if name.endswith("_MODULES_MAPPING") and isinstance(table, dict):
            for model_type, projections in defaults.items():
                if model_type in table:
                    table.setdefault(_PREFIX + model_type, table[model_type])
                elif name.endswith("_TO_LORA_TARGET_MODULES_MAPPING"):
                    table.setdefault(_PREFIX + model_type, projections)
