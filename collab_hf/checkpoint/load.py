"""Load checkpoints with plain errors, and write them whole or not at all."""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)

from ..modeling import modeling_collab
from ..modeling.errors import CheckpointError
from ..registration.auto_classes import register

# What transformers raises for a path, a config or weights that it can't use.
_LOADING_ERRORS = (OSError, ValueError, KeyError, RuntimeError, SafetensorError, json.JSONDecodeError)

# At a checkpoint's top: weights and code, which are written anew, and what Trainer keeps of a run.
_WRITTEN_ANEW = (
    "*.safetensors",
    "*.bin",
    "*.index.json",
    "*.py",
    "*.onnx",
    "*.h5",
    "*.msgpack",
    "*.ot",
    "*.pt",
    "checkpoint-*",
)


def load_model(
    name: str | Path,
    *,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str | None = None,
    revision: str | None = None,
    subfolder: str = "",
    token: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a checkpoint, compressed or not, with the task head it was saved with, in eval mode.

    Args:
        name: a local directory, or an id on the Hub.
        dtype: dtype of the weights; `auto` keeps the checkpoint's.
        device: where to put the model; None for the CPU.
        revision: branch, tag or commit on the Hub.
        subfolder: folder of the checkpoint inside the repository or directory.
        token: access token for private repositories; None for the environment's.
        trust_remote_code: whether code in the checkpoint may run.

    Returns:
        The model.

    Raises:
        CheckpointError: the checkpoint is absent, corrupt, of an unknown architecture, or lacks weights.
    """
    register()
    _check_local(Path(name) / subfolder, str(name))
    where = {
        "revision": revision,
        "subfolder": subfolder,
        "token": token,
        "trust_remote_code": trust_remote_code,
    }
    try:
        config = AutoConfig.from_pretrained(name, **where)
        model, info = _model_class(config).from_pretrained(
            name, config=config, dtype=dtype, output_loading_info=True, **where
        )
    except _LOADING_ERRORS as error:
        raise CheckpointError(f"cannot load {name}: {_one_sentence(error)}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{name} lacks {len(missing)} weights of {type(model).__name__}, such as {missing[0]}"
        )
    loaded: PreTrainedModel = model
    if device is not None:
        nn.Module.to(loaded, torch.device(device))
    return loaded


def load_processor(name: str | Path, **where: Any) -> Any:
    """Load a checkpoint's tokenizer, or else its image processor.

    Args:
        name: a local directory, or an id on the Hub.
        **where: revision, subfolder, token, as for `load_model`.

    Returns:
        The tokenizer or image processor, or None where the checkpoint has neither.
    """
    register()
    for auto in (AutoTokenizer, AutoImageProcessor):
        try:
            processor = auto.from_pretrained(name, **where)
        except _LOADING_ERRORS:
            continue
        # Without any file transformers makes a tokenizer that knows its special tokens alone.
        if auto is AutoImageProcessor or len(processor) > len(processor.all_special_ids):
            return processor
    return None


def check_output(path: Path, *, original: Path | None = None, overwrite: bool = False) -> None:
    """Refuse a place that `new_directory` could not write, before any work is done.

    Args:
        path: the directory to make.
        original: the checkpoint that is read; where it is local, it must not be overwritten.
        overwrite: whether an existing checkpoint is replaced.

    Raises:
        CheckpointError: path exists and overwrite is False, is no checkpoint, or holds the original; or the
            place is not writable.
    """
    path = path.absolute()
    if path.exists():
        if not overwrite:
            raise CheckpointError(f"{path} exists; choose another directory or pass --overwrite")
        if not path.is_dir():
            raise CheckpointError(f"{path} is a file, not a directory")
        if any(path.iterdir()) and not (path / "config.json").is_file():
            raise CheckpointError(
                f"{path} is no checkpoint (it has no config.json), so it is not overwritten"
            )
        if original and original.exists() and original.resolve().is_relative_to(path.resolve()):
            raise CheckpointError(f"{path} holds the model that is read, so it is not overwritten")
    parent = next(p for p in path.parents if p.exists())
    if not parent.is_dir():
        raise CheckpointError(f"cannot write {path}: {parent} is a file")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise CheckpointError(f"cannot write {path}: no permission in {parent}")


@contextmanager
def new_directory(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A directory that appears whole or not at all: written beside its place, then renamed.

    Args:
        path: the directory to make.
        overwrite: whether an existing one is replaced, at the very end.

    Yields:
        The directory to write into.

    Raises:
        CheckpointError: path exists and overwrite is False or it is no checkpoint, or it can't be written.
    """
    path = path.absolute()
    check_output(path, overwrite=overwrite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror}") from error
    # Inside, since mkdtemp makes a private one, and a checkpoint has the rights that any new directory gets.
    new, old = scratch / "new", scratch / "old"
    try:
        new.mkdir()
        yield new
        for file in new.rglob("*.safetensors"):  # safetensors keeps its files private
            file.chmod(new.stat().st_mode & 0o666)
        if path.exists():
            path.replace(old)
        new.replace(path)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if old.exists() and not path.exists():
            old.replace(path)
        shutil.rmtree(scratch, ignore_errors=True)


def save_checkpoint(
    model: PreTrainedModel, directory: Path, *, original: str | Path, processor: Any = None
) -> None:
    """Write a compressed model as a checkpoint, with what belongs to the original beside it.

    Args:
        model: the compressed model.
        directory: an empty directory, such as `new_directory` gives.
        original: the checkpoint it was made from; where it is local, its other files (tokenizer,
            sentence-transformers modules, licence) are taken over.
        processor: tokenizer or image processor to save where the original is not local.

    Raises:
        CheckpointError: the disk is full or not writable.
    """
    try:
        if Path(original).is_dir():
            shutil.copytree(original, directory, dirs_exist_ok=True, ignore=_left_behind(Path(original)))
        elif processor is not None:
            processor.save_pretrained(directory)
        model.save_pretrained(directory)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write the checkpoint: {_one_sentence(error)}") from error


def _left_behind(original: Path) -> Callable[[str, list[str]], set[str]]:
    """What a copy leaves out: hidden files, and weights and code at the top (a module's own stay)."""

    def ignored(folder: str, names: list[str]) -> set[str]:
        patterns = (".*", *_WRITTEN_ANEW) if Path(folder) == original else (".*",)
        return {name for pattern in patterns for name in fnmatch.filter(names, pattern)}

    return ignored


def _check_local(path: Path, name: str) -> None:
    if not path.exists():
        # A Hub id is `name` or `owner/name`; anything else can only have been meant as a path.
        if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name:
            raise CheckpointError(f"{name or 'the empty path'} is not a directory")
        return
    if not path.is_dir():
        raise CheckpointError(f"{name} is a file; give the checkpoint's directory")
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{name} has no config.json, so it is no transformers checkpoint")
    for file in sorted(path.glob("*.safetensors")):
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} is corrupt or truncated: {_one_sentence(error)}") from error


def _model_class(config: PreTrainedConfig) -> Any:
    """The class that the checkpoint was saved from, or AutoModel where it is not transformers' own."""
    name = (config.architectures or [""])[0]
    home = modeling_collab if name.startswith("Collab") else transformers
    return getattr(home, name, AutoModel) if name else AutoModel


def _one_sentence(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0].strip() if text else type(error).__name__
