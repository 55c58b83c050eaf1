"""Tell PEFT, once it is imported, which projections of the collaborative models take adapters by default."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

_MODULE = "peft.utils.constants"
_PREFIX = "collab_"


def extend_peft(defaults: Mapping[str, list[str]]) -> None:
    """Give each `collab_` model type default target modules: the host's, or the given ones for LoRA.

    PEFT is not imported for it: where it is not loaded yet, its tables are extended when it is.

    Args:
        defaults: names of projections by the hosts' model types, such as `bert`.
    """
    module = sys.modules.get(_MODULE)
    if module is not None:
        _extend(module, defaults)
    elif not any(isinstance(finder, _Watch) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watch(defaults))


def _extend(module: ModuleType, defaults: Mapping[str, list[str]]) -> None:
    for name, table in vars(module).items():
        if name.endswith("_MODULES_MAPPING") and isinstance(table, dict):
            for model_type, projections in defaults.items():
                if model_type in table:
                    table.setdefault(_PREFIX + model_type, table[model_type])
                elif name.endswith("_TO_LORA_TARGET_MODULES_MAPPING"):
                    table.setdefault(_PREFIX + model_type, projections)


class _Watch(MetaPathFinder):
    """Finds one module as everyone else does, and extends its tables after it was executed."""

    def __init__(self, defaults: Mapping[str, list[str]]) -> None:
        self._defaults = defaults
        self._searching = False

    def find_spec(
        self, fullname: str, path: Any = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's own spec with a loader that extends it; nothing for other modules."""
        if fullname != _MODULE or self._searching:
            return None
        self._searching = True
        try:
            spec = find_spec(fullname)
        finally:
            self._searching = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Extending(spec.loader, self._defaults)
        return spec


class _Extending(Loader):
    """The loader of PEFT's table, and what comes after it."""

    def __init__(self, loader: Loader, defaults: Mapping[str, list[str]]) -> None:
        self._loader, self._defaults = loader, defaults

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the module's own loader."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module, then extend its tables."""
        self._loader.exec_module(module)
        _extend(module, self._defaults)
