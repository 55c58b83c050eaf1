"""Run code on a module of another package once it is imported, without importing it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


def after_import(name: str, then: Callable[[ModuleType], object]) -> None:
    """Call `then` with a module: at once where it is imported already, else as the last step of its import.

    Args:
        name: full name of the module.
        then: gets the module.
    """
    module = sys.modules.get(name)
    if module is not None:
        then(module)
    else:
        sys.meta_path.insert(0, _Watch(name, then))


class _Watch(MetaPathFinder):
    """Finds one module as everyone else does, and has `then` called after it was executed."""

    def __init__(self, name: str, then: Callable[[ModuleType], object]) -> None:
        self._name, self._then = name, then
        self._searching = False

    def find_spec(
        self, fullname: str, path: Any = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's own spec with a loader that does more; nothing for other modules."""
        if fullname != self._name or self._searching:
            return None
        self._searching = True
        try:
            spec = find_spec(fullname)
        finally:
            self._searching = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Extending(spec.loader, self._then)
        return spec


class _Extending(Loader):
    """The loader of a module, and what comes after it."""

    def __init__(self, loader: Loader, then: Callable[[ModuleType], object]) -> None:
        self._loader, self._then = loader, then

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the module's own loader."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module, then call `then`."""
        if module.__spec__ is not None:
            # Others ask the loader for more than this one has, the source for instance.
            module.__loader__ = module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._then(module)
