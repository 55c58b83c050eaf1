"""States to resume from: directories that appear whole, with safetensors and JSON inside."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import RecoveryError
from .config import RecoveryConfig

_TENSORS, _VALUES = "tensors.safetensors", "state.json"
_NAME = re.compile(r"step-(\d{8})")


def save_state(directory: Path, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Write a state beside its place, rename it, and only then remove the older ones.

    Args:
        directory: holds the states of one run; made where it is missing.
        step: updates so far.
        tensors: by name.
        values: plain values for JSON.

    Raises:
        RecoveryError: the directory can't be written.
    """
    place = directory / f"step-{step:08d}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=directory))
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, beside / _TENSORS
        )
        (beside / _VALUES).write_text(json.dumps(values), encoding="utf-8")
        if place.exists():  # of a run that went on from an earlier state
            shutil.rmtree(place)
        beside.replace(place)
    except (OSError, SafetensorError) as error:
        raise RecoveryError(f"cannot write the recovery state {place}: {error}") from error
    for other in directory.iterdir():
        # What a killed process left half written goes with the older states.
        if other != place and (_NAME.fullmatch(other.name) or other.name.startswith(".unfinished-")):
            shutil.rmtree(other, ignore_errors=True)


def load_state(directory: Path, fingerprint: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read the newest state.

    Args:
        directory: holds the states of one run; may be missing.
        fingerprint: of the run that wants to resume.

    Returns:
        Tensors and values as they were saved, or None where there is no state.

    Raises:
        RecoveryError: the state is of another run, or unreadable.
    """
    if not directory.is_dir():
        return None
    places = sorted(place for place in directory.iterdir() if _NAME.fullmatch(place.name))
    if not places:
        return None
    try:
        values: dict[str, Any] = json.loads((places[-1] / _VALUES).read_text(encoding="utf-8"))
        tensors = load_file(places[-1] / _TENSORS)
        if not isinstance(values, dict):
            raise ValueError(f"{_VALUES} must hold a mapping, got {values!r}")
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise RecoveryError(
            f"the recovery state {places[-1]} can't be read: {error}; remove it to start anew"
        ) from error
    if values.get("fingerprint") != fingerprint:
        raise RecoveryError(
            f"the recovery state {places[-1]} belongs to a run with other settings, data or model; "
            "remove it, choose another directory, or don't resume"
        )
    return tensors, values


def fingerprint(
    config: RecoveryConfig,
    parameters: Mapping[str, nn.Parameter],
    teacher: nn.Module,
    batches: Iterable[Mapping[str, Any]],
) -> str:
    """A digest of everything that a run's result depends on.

    Args:
        config: how it trains.
        parameters: what trains.
        teacher: the original.
        batches: model inputs, those that judge included.

    Returns:
        Hexadecimal digits.
    """
    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True, default=str).encode())
    tensors: list[Tensor] = [*parameters.values(), *teacher.parameters()]
    for batch in batches:
        tensors += [value for _, value in sorted(batch.items()) if isinstance(value, Tensor)]
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
