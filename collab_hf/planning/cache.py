"""Measured curves and statistics on disk, keyed by everything that they depend on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from ..config import CollabConfig
from ..modeling.errors import CollabError
from ..modeling.plan import LayerPlan
from ..parts.part import Option
from ..tensors import Moments
from ..tensors.moments import LayerStatistics
from .curves import Curve

# Part of every key: raise it when curves are measured in another way, or kept in one.
_VERSION = 8

# Of all entries together; one with the statistics of a model of BERT-base's size takes 60 MB.
_MOST_BYTES = 1_000_000_000

_UNFINISHED = ".unfinished-"
_LONGEST_WRITING = 3600.0  # seconds


def directory() -> Path:
    """Where curves are kept: $COLLAB_HF_CACHE, or `collab_hf` beside the Hub's cache."""
    return Path(os.environ.get("COLLAB_HF_CACHE") or Path(constants.HF_HOME) / "collab_hf") / "plans"


class Fingerprint:
    """What curves depend on beside settings: weights and data, hashed once for the keys of all parts.

    Args:
        model: the dense model; every weight counts, since divergence is that of the whole model.
        batches: model inputs.
    """

    def __init__(self, model: PreTrainedModel, batches: Iterable[Mapping[str, Any]]) -> None:
        self._digest = hashlib.blake2b(digest_size=20)
        _add(self._digest, _VERSION, torch.__version__, type(model).__name__)
        for name, value in model.state_dict().items():
            _add_tensor(self._digest, name, value)
        for number, batch in enumerate(batches):
            _add(self._digest, "batch", number)
            for name, value in batch.items():
                if isinstance(value, Tensor):
                    _add_tensor(self._digest, name, value)
                else:
                    _add(self._digest, name, value)

    def key(self, settings: Mapping[str, CollabConfig]) -> str:
        """A key for curves.

        Args:
            settings: settings of the planned layers; their budgets and targets do not matter.

        Returns:
            Hexadecimal digits.
        """
        digest = self._digest.copy()
        for name, config in settings.items():
            _add(
                digest, name, config.content_bias, config.damping, config.precision, config.reconstruct_steps
            )
        return digest.hexdigest()


def _add(digest: Any, *parts: Any) -> None:
    digest.update(json.dumps([str(part) for part in parts]).encode())


def _add_tensor(digest: Any, name: str, value: Tensor) -> None:
    value = value.detach().cpu().contiguous()
    _add(digest, name, value.dtype, tuple(value.shape))
    digest.update(value.view(-1).view(torch.uint8).numpy().tobytes())


def save(key: str, curves: Sequence[Curve], statistics: Mapping[str, LayerStatistics]) -> None:
    """Keep curves and statistics; a file appears whole, and where none can be written nothing happens.

    Args:
        key: what `Fingerprint` gave.
        curves: measured curves.
        statistics: moments that they were made from.
    """
    tensors: dict[str, Tensor] = {}
    moments = []
    for number, (name, item) in enumerate(statistics.items()):
        sides = {"query": item.query} if item.key is item.query else {"query": item.query, "key": item.key}
        moments.append([name, {side: value.count for side, value in sides.items()}])
        for side, value in sides.items():
            tensors[f"{number}.{side}.mean"] = value.mean.cpu()
            tensors[f"{number}.{side}.covariance"] = value.covariance.cpu()
    metadata = {"curves": json.dumps([_curve_to_list(c) for c in curves]), "moments": json.dumps(moments)}
    metadata["digest"] = _digest(key, metadata, tensors)
    folder = directory()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=folder) as scratch:
            written = Path(scratch) / "entry"
            save_file(tensors, written, metadata)
            written.replace(folder / f"{key}.safetensors")
        entries = sorted(folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime, reverse=True)
        for old, size in zip(entries, accumulate(path.stat().st_size for path in entries), strict=True):
            if size > _MOST_BYTES:
                old.unlink(missing_ok=True)
    except (OSError, SafetensorError):
        return  # a full or read-only disk costs time on the next run, nothing else


def load(
    key: str, shapes: Mapping[str, Any], plans: type[Any] = LayerPlan
) -> tuple[list[Curve], dict[str, LayerStatistics]] | None:
    """Find what `save` kept.

    Args:
        key: what `Fingerprint` gave.
        shapes: sizes of the planned sites by name.
        plans: class of the options' plans.

    Returns:
        Curves and statistics, or None where there is no entry or a damaged one.
    """
    path = directory() / f"{key}.safetensors"
    try:
        if not path.is_file():
            return None
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata["digest"] != _digest(key, metadata, tensors):
                raise ValueError("the entry is not what was saved")
            curves = [_curve_from_list(values, shapes, plans) for values in json.loads(metadata["curves"])]
            statistics = {}
            for number, (name, counts) in enumerate(json.loads(metadata["moments"])):
                sides = {
                    side: Moments(
                        tensors[f"{number}.{side}.mean"], tensors[f"{number}.{side}.covariance"], count
                    )
                    for side, count in counts.items()
                }
                statistics[name] = LayerStatistics(sides["query"], sides.get("key", sides["query"]))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, CollabError):
        with suppress(OSError):
            path.unlink(missing_ok=True)
        return None
    return curves, statistics


def _sweep(folder: Path) -> None:
    """Remove what killed runs left; writing an entry takes seconds."""
    for scratch in folder.glob(f"{_UNFINISHED}*"):
        if time.time() - scratch.stat().st_mtime > _LONGEST_WRITING:
            shutil.rmtree(scratch, ignore_errors=True)


def _digest(key: str, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """Of all that an entry says, and of its name: well-formed is not yet what was measured."""
    digest = hashlib.blake2b(digest_size=20)
    digest.update(json.dumps([key, metadata["curves"], metadata["moments"]]).encode())
    for name, value in sorted(tensors.items()):
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        digest.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _curve_to_list(curve: Curve) -> list[Any]:
    options = [[o.plan.to_dict() if o.plan else None, o.error, o.parameters] for o in curve.options]
    return [curve.name, curve.dense_parameters, options, curve.knots, curve.interaction]


def _curve_from_list(values: list[Any], shapes: Mapping[str, Any], plans: type[Any]) -> Curve:
    name, dense, options, knots, interaction = values
    read = tuple(
        Option(None if plan is None else plans.from_dict(plan, name), int(size), float(error))
        for plan, error, size in options
    )
    measured = tuple((float(error), float(loss)) for error, loss in knots)
    return Curve(name, shapes[name], int(dense), read, measured, float(interaction))
