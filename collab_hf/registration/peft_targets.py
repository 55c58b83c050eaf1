"""Tell PEFT which projections of the collaborative models take adapters by default."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import ModuleType

_PREFIX = "collab_"


def extend_peft(defaults: Mapping[str, list[str]]) -> None:
    """Give each `collab_` model type default target modules: the host's, or the given ones for LoRA.

    PEFT has tables by model type and no function to add to them. It looks a model's type up in what the
    config's `to_dict` gives, so this is called there: then PEFT is imported if it is used at all, whether
    before collab_hf or after it. Nothing is done where it is not.

    Args:
        defaults: names of projections by the hosts' model types, such as `bert`.
    """
    module = sys.modules.get("peft.utils.constants")
    if module is not None:
        _extend(module, defaults)


def _extend(module: ModuleType, defaults: Mapping[str, list[str]]) -> None:
    for name, table in list(vars(module).items()):
        if name.endswith("MODULES_MAPPING") and isinstance(table, dict):
            for model_type, projections in defaults.items():
                if model_type in table:
                    table.setdefault(_PREFIX + model_type, table[model_type])
                elif name.endswith("TO_LORA_TARGET_MODULES_MAPPING"):
                    table.setdefault(_PREFIX + model_type, projections)
