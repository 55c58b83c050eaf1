"""Write checkpoints whole or not at all."""

from __future__ import annotations

import fnmatch
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedModel

from ..files import WRITTEN_ANEW
from ..modeling.errors import CheckpointError
from .load import _one_sentence


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
        patterns = (".*", *WRITTEN_ANEW) if Path(folder) == original else (".*",)
        return {name for pattern in patterns for name in fnmatch.filter(names, pattern)}

    return ignored
