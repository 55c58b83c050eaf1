"""What can be wrong with a checkpoint's files, found before transformers reads them, in plain words."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ..modeling.errors import CheckpointError

CONFIG_FILE = "config.json"
# Sizes that every model of some kind has; a zero in one of them ends in a division somewhere below.
_SIZES = (
    *("hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size", "max_position_embeddings"),
    *("embedding_size", "type_vocab_size", "num_channels", "intermediate_size"),
)
_NUMBER = re.compile(r"-?\d+")
_LFS_POINTER = b"version https://git-lfs"


def check_local(directory: Path) -> None:
    """Refuse a directory that is no checkpoint, or whose files are not what their names say.

    Args:
        directory: of the checkpoint.

    Raises:
        CheckpointError: no directory, no config.json, a malformed config.json or index, or weights that are
            cut or were never fetched.
    """
    if not directory.exists():
        raise CheckpointError(f"{directory} is not a directory")
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is a file; give the checkpoint's directory")
    if not (directory / CONFIG_FILE).is_file():
        raise CheckpointError(f"{directory} has no config.json, so it is no transformers checkpoint")
    quantised = bool(_check_config(directory / CONFIG_FILE).get("quantization_config"))
    for index in sorted(directory.glob("*.index.json")):
        _check_index(index)
    for file in sorted([*directory.glob("*.safetensors"), *directory.glob("*.bin")]):
        if _begins(file, _LFS_POINTER):
            raise CheckpointError(f"{file} is a pointer of Git LFS, not weights; run `git lfs pull` there")
    for file in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(file, "pt") as opened:
                kinds = {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} is corrupt or truncated: {one_sentence(error)}") from error
        if not quantised:
            _check_kinds(file, kinds)


def check_finite(model: nn.Module, name: str) -> None:
    """Refuse a model with NaN or infinity among its weights.

    Args:
        model: any.
        name: the checkpoint's, for the message.

    Raises:
        CheckpointError: names a weight.
    """
    for weight, parameter in model.named_parameters():
        if not parameter.numel() or not parameter.is_floating_point() or parameter.element_size() < 2:
            continue  # torch compares no numbers of 8 bits
        # One pass without a copy, which a weight that is mapped from its file could not have in memory.
        if not all(map(torch.isfinite, parameter.detach().aminmax())):
            raise CheckpointError(f"{weight} in {name} is not finite")


def explain_pickles(directory: Path) -> None:
    """Say which pickled weights can't be read, once loading has failed; no code in them runs.

    Args:
        directory: of the checkpoint.

    Raises:
        CheckpointError: a file is corrupt, or holds more than weights.
    """
    for file in sorted(directory.glob("pytorch_model*.bin")):
        try:
            found = torch.load(file, map_location="meta", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
            forbidden = re.search(r"GLOBAL ([\w.]+)", str(error))
            if forbidden:
                raise CheckpointError(
                    f"{file} holds more than weights ({forbidden[1]}), and what comes with weights never runs"
                ) from error
            kind = ", or holds more than weights" if isinstance(error, pickle.UnpicklingError) else ""
            raise CheckpointError(f"{file} is corrupt or truncated{kind}: {one_sentence(error)}") from error
        if not isinstance(found, Mapping):
            raise CheckpointError(f"{file} holds a {type(found).__name__}, not weights by name")


def explain_json(directory: Path, names: Iterable[str]) -> None:
    """Say which JSON files are none, once reading them has failed.

    Args:
        directory: of the checkpoint.
        names: of files that may be there.

    Raises:
        CheckpointError: one of them can't be read, or is no mapping.
    """
    for name in names:
        if name.endswith(".json") and (directory / name).is_file():
            read_json(directory / name)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file that holds one mapping.

    Args:
        file: to read.

    Returns:
        Its entries.

    Raises:
        CheckpointError: it can't be read, or is something else.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"), parse_constant=_constant)
    except RecursionError as error:
        raise CheckpointError(f"{file} can't be read: it is nested too deeply") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} can't be read: {one_sentence(error)}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} must hold a mapping, got a {type(values).__name__}")
    return values


def _constant(name: str) -> float:
    """What Python reads beside JSON's numbers: infinity is a limit that some configs mean, NaN is none."""
    if name == "NaN":
        raise ValueError("NaN is no number")
    return float(name)


def one_sentence(error: BaseException) -> str:
    """The first sentence of an error's text, with the next line where the first only announces it."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if lines[0].endswith(":") and len(lines) > 1:
        return f"{lines[0]} {lines[1]}"
    first = re.split(r"\.\s+(?=[A-Z])", lines[0])[0]
    # A KeyError's text is the key alone.
    return f"no entry {first}" if isinstance(error, KeyError) else first


def _check_config(file: Path) -> dict[str, Any]:
    """The entries, whose values are of kinds that transformers can take."""
    values = read_json(file)
    model_type = values.get("model_type", "from before there was one")
    if not isinstance(model_type, str) or not model_type:
        raise CheckpointError(f"{file} must name a model_type, got {model_type!r}")
    architectures = values.get("architectures")
    if architectures is not None and not (
        isinstance(architectures, list) and all(isinstance(name, str) for name in architectures)
    ):
        raise CheckpointError(f"architectures in {file} must be a list of names, got {architectures!r}")
    labels = values.get("id2label")
    if labels is not None and not (
        isinstance(labels, dict) and labels and all(map(_NUMBER.fullmatch, labels))
    ):
        raise CheckpointError(f"id2label in {file} must give a name for each label's number, got {labels!r}")
    for name in ("collab", "quantization_config"):
        if not isinstance(values.get(name) or {}, dict):
            raise CheckpointError(f"{name} in {file} must be a mapping, got {values[name]!r}")
    _check_numbers(file, values)
    return values


def _check_numbers(file: Path, values: Mapping[str, Any]) -> None:
    for name in ("dtype", "torch_dtype"):
        kind = values.get(name)
        known = isinstance(kind, str) and isinstance(
            getattr(torch, kind.removeprefix("torch."), None), torch.dtype
        )
        # Models of several parts may have one for each.
        if not (kind is None or kind == "auto" or known or isinstance(kind, dict)):
            raise CheckpointError(f"{name} in {file} must be a type of torch, such as float32, got {kind!r}")
    for name in _SIZES:
        value = values.get(name, 1)
        if value is None and name == "intermediate_size":  # some models derive it
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise CheckpointError(f"{name} in {file} must be a whole number of at least 1, got {value!r}")


def _check_kinds(file: Path, kinds: Mapping[str, str]) -> None:
    """Refuse weights that are whole numbers, which transformers would read as numbers of the same size."""
    for name, kind in kinds.items():
        if name.endswith((".weight", ".bias")) and kind.startswith(("I", "U", "BOOL")):
            raise CheckpointError(f"{name} in {file} is of {kind}, which no weight is; was it quantised?")


def _check_index(file: Path) -> None:
    values = read_json(file)
    shards = values.get("weight_map")
    if not isinstance(shards, Mapping) or not all(isinstance(name, str) for name in shards.values()):
        raise CheckpointError(f"weight_map in {file} must give a file for each weight")
    if not shards:
        raise CheckpointError(f"weight_map in {file} names no weight")
    for name in sorted(set(shards.values())):
        if Path(name).name != name:
            raise CheckpointError(f"weight_map in {file} must name files beside it, got {name!r}")
        if not (file.parent / name).is_file():
            raise CheckpointError(f"{file.parent} lacks {name}, which {file.name} names")
    if not isinstance(values.get("metadata"), Mapping):
        raise CheckpointError(f"metadata in {file} must be a mapping, got {values.get('metadata')!r}")


def _begins(file: Path, content: bytes) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(len(content)) == content
    except OSError as error:
        raise CheckpointError(f"{file} can't be read: {error.strerror}") from error
