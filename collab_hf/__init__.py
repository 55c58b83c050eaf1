"""Make pretrained Transformers smaller by surgery on their attention.

Names are imported when first used, so that `import collab_hf` costs little more than transformers' own
AutoConfig, where it registers the collaborative models: from then on Auto classes load them.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .calibration import collect_statistics as collect_statistics
    from .calibration import load_batches as load_batches
    from .checkpoint import load_model as load_model
    from .checkpoint import load_processor as load_processor
    from .checkpoint.onnx import export_onnx as export_onnx
    from .config import CollabConfig as CollabConfig
    from .errors import CollabError as CollabError
    from .hub import push as push
    from .layers.from_config import collaborative as collaborative
    from .modeling.families import Family as Family
    from .modeling.families import FeedForward as FeedForward
    from .modeling.families import register_family as register_family
    from .modeling.plan import LayerPlan as LayerPlan
    from .recovery import LossWeights as LossWeights
    from .recovery import RecoveryConfig as RecoveryConfig
    from .recovery import RecoveryReport as RecoveryReport
    from .recovery import recover_ as recover_
    from .surgery import CompressionReport as CompressionReport
    from .surgery import compress_ as compress_
    from .surgery import compress_checkpoint as compress_checkpoint
    from .surgery import to_dense_ as to_dense_

_HOME = {
    "CollabConfig": "config",
    "CollabError": "errors",
    "CompressionReport": "surgery",
    "Family": "modeling.families",
    "FeedForward": "modeling.families",
    "LayerPlan": "modeling.plan",
    "LossWeights": "recovery",
    "RecoveryConfig": "recovery",
    "RecoveryReport": "recovery",
    "collaborative": "layers.from_config",
    "collect_statistics": "calibration",
    "compress_": "surgery",
    "compress_checkpoint": "surgery",
    "export_onnx": "checkpoint.onnx",
    "load_batches": "calibration",
    "load_model": "checkpoint",
    "load_processor": "checkpoint",
    "recover_": "recovery",
    "push": "hub",
    "register_family": "modeling.families",
    "to_dense_": "surgery",
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


# The command registers when it has read its arguments: its help must not wait for transformers.
if "collab_hf_command" not in sys.modules:
    from .registration import register

    register()
