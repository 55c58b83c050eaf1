"""Directories that appear whole or not at all, whatever ends the run that writes them."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..modeling.errors import CheckpointError
from ..progress import stage

# Longer names leave no room for what a scratch directory adds to them (most file systems allow 255 bytes).
_LONGEST_NAME = 180
# Other runs with --overwrite may put their own result there between our two renames.
_TRIES = 10


def check_output(path: Path, *, original: Path | None = None, overwrite: bool = False) -> None:
    """Refuse a place that `new_directory` could not write, before any work is done.

    What killed runs left beside the place is swept, and a checkpoint that one of them had moved away in
    order to replace it is put back, with a warning.

    Args:
        path: the directory to make.
        original: the checkpoint that is read; where it is local, it must not be overwritten.
        overwrite: whether an existing checkpoint is replaced.

    Raises:
        CheckpointError: path exists and overwrite is False, is no checkpoint, or holds the original; or the
            place is not writable.
    """
    try:
        path = _real(path)
        _sweep(path)
        if os.path.lexists(path):
            _check_existing(path, original, overwrite)
        parent = next(p for p in path.parents if os.path.lexists(p))
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from error
    if not parent.is_dir():
        raise CheckpointError(f"cannot write {path}: {parent} is {_kind(parent)}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise CheckpointError(f"cannot write {path}: no permission in {parent}")


@contextmanager
def new_directory(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A directory that appears whole or not at all: written beside its place, then renamed.

    Of two runs into one place without overwrite, the one that ends last is refused.

    Args:
        path: the directory to make.
        overwrite: whether an existing one is replaced, at the very end.

    Yields:
        The directory to write into.

    Raises:
        CheckpointError: path exists and overwrite is False or it is no checkpoint, or it can't be written.
    """
    check_output(path, overwrite=overwrite)
    stage(f"Writing {path}")
    path = _real(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f"{_prefix(path)}{os.getpid()}-", dir=path.parent))
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror}") from error
    # Inside, since mkdtemp makes a private one, and a checkpoint has the rights that any new directory gets.
    new, old = scratch / "new", scratch / "old"
    try:
        new.mkdir()
        yield new
        for file in new.rglob("*.safetensors"):  # safetensors keeps its files private
            file.chmod(new.stat().st_mode & 0o666)
        _put(new, path, old, overwrite)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        _put_back(old, path)
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def scratch_beside(file: Path) -> Iterator[Path]:
    """A directory on the disk of a file to come; what killed runs left of theirs goes first.

    Args:
        file: the file; its directory exists.

    Yields:
        The directory.
    """
    _sweep(file)
    prefix = f"{_prefix(file)}{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=file.parent) as scratch:
        yield Path(scratch)


def _put(new: Path, path: Path, old: Path, overwrite: bool) -> None:
    """Rename the finished directory to its place."""
    for _ in range(_TRIES):
        if overwrite and not old.exists():
            with suppress(FileNotFoundError):
                path.rename(old)
        try:
            # The one step that decides: rename replaces no directory that holds anything, and no file.
            new.rename(path)
        except (FileExistsError, NotADirectoryError):
            occupied = True
        except OSError:
            occupied = os.path.lexists(path)
            if not occupied:
                raise
        else:
            return
        if not overwrite:
            break
        # Another run has put its result there since; the newest one stays.
        shutil.rmtree(old, ignore_errors=True)
    raise CheckpointError(f"{path} appeared during this run, so the result is not written")


def _put_back(old: Path, path: Path) -> bool:
    """Give a checkpoint that was moved away its name again, if nothing stands there."""
    if not old.exists() or os.path.lexists(path):
        return False
    try:
        old.rename(path)
    except OSError:
        return False
    return True


def _sweep(path: Path) -> None:
    """Remove what runs into this place left beside it that can't do so any more."""
    prefix = _prefix(path)
    if not path.parent.is_dir():
        return
    for scratch in sorted(path.parent.glob(f"{_escaped(prefix)}*")):
        found = re.match(r"(\d+)-", scratch.name.removeprefix(prefix))
        if found is None or scratch.is_symlink() or _lives(int(found[1])):
            continue
        if _put_back(scratch / "old", path):
            warnings.warn(f"{path} was restored: a run was killed while it replaced it", stacklevel=3)
        shutil.rmtree(scratch, ignore_errors=True)


def _prefix(path: Path) -> str:
    """How the names of scratch directories begin; process numbers mean something on one machine only."""
    name = path.name
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    machine = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
    return f".{name}.{machine}-"


def _escaped(text: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", text)


def _lives(process: int) -> bool:
    if os.name == "nt":  # where signal 0 is Ctrl-C
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # not ours, so it lives
        return True
    return True


def _real(path: Path) -> Path:
    """Where the directory will be; a link stands for the directory that it leads to."""
    path = path.absolute()
    if not path.is_symlink():
        return path
    if not path.exists():
        raise CheckpointError(f"cannot write {path}: it is a link to nothing")
    return path.resolve()


def _check_existing(path: Path, original: Path | None, overwrite: bool) -> None:
    if not overwrite:
        raise CheckpointError(f"{path} exists; choose another directory or pass --overwrite")
    if not path.is_dir():
        raise CheckpointError(f"{path} is a file, not a directory")
    if any(path.iterdir()) and not (path / "config.json").is_file():
        raise CheckpointError(f"{path} is no checkpoint (it has no config.json), so it is not overwritten")
    if original and original.exists() and original.resolve().is_relative_to(path.resolve()):
        raise CheckpointError(f"{path} holds the model to read from, so it is not overwritten")


def _kind(path: Path) -> str:
    return "a file" if path.exists() else "a link to nothing"
