"""Make pretrained Transformers smaller by surgery on their attention.

Names are imported when first used, so that `import collab_hf` costs little more than transformers itself.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .registration import register

if TYPE_CHECKING:
    from .calibration import collect_statistics as collect_statistics
    from .checkpoint import load_model as load_model
    from .config import CollabConfig as CollabConfig
    from .config import LayerPlan as LayerPlan
    from .errors import CollabError as CollabError
    from .surgery import CompressionReport as CompressionReport
    from .surgery import compress_ as compress_

__version__ = "0.1.0"

_HOME = {
    "CollabConfig": "config",
    "CollabError": "errors",
    "CompressionReport": "surgery",
    "LayerPlan": "config",
    "collect_statistics": "calibration",
    "compress_": "surgery",
    "load_model": "checkpoint",
}

__all__ = [*sorted(_HOME), "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return __all__


register()
