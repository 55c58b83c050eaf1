"""Write checkpoints whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedModel

from ..files import OWN_FILES, REPORT_FILE, belongings
from ..modeling.errors import CheckpointError
from .atomic import check_output as check_output
from .atomic import new_directory as new_directory
from .load import load_processor
from .precheck import one_sentence

# Files that don't say which class reads them, unless one of these entries stands in them: the model type
# says it instead, and a compressed model's is one of its own.
_CLASS_ENTRIES = {
    "tokenizer_config.json": ("tokenizer_class",),
    "preprocessor_config.json": ("image_processor_type", "feature_extractor_type", "processor_class"),
}
# Larger checkpoints are cut into files of this size, which the Hub takes and others load one by one.
SHARD_SIZE = "5GB"
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")


def save_checkpoint(
    model: PreTrainedModel,
    directory: Path,
    *,
    original: str | Path,
    processor: Any = None,
    heir: bool = False,
) -> None:
    """Write a compressed model as a checkpoint, with what belongs to the original beside it.

    Args:
        model: the compressed model.
        directory: an empty directory, such as `new_directory` gives.
        original: the checkpoint it was made from; where it is local, what belongs to it (tokenizer,
            sentence-transformers modules, licence) is taken over.
        processor: tokenizer or image processor to save where the original is not local, or does not say
            which class reads its files; None to load it from there.
        heir: whether recipe and reports of a portable original are the model's too.

    Raises:
        CheckpointError: the disk is full or not writable.
    """
    try:
        ours = bool(getattr(model.config, "collab", None)) and _is_compressed(Path(original))
        save_belongings(directory, original=original, processor=processor, own=ours or heir)
        model.save_pretrained(directory, max_shard_size=SHARD_SIZE)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write the checkpoint: {one_sentence(error)}") from error


def save_belongings(
    directory: Path, *, original: str | Path, processor: Any = None, own: bool = False
) -> None:
    """Write what belongs to a model besides its config, weights and code.

    Args:
        directory: where it goes.
        original: as for `save_checkpoint`.
        processor: as for `save_checkpoint`.
        own: whether recipe and reports come along.
    """
    if Path(original).is_dir():
        take_over(Path(original), directory, own=own)
        if _names_no_class(directory):
            _save_beside(processor or load_processor(original), directory)
    elif processor is not None:
        processor.save_pretrained(directory)


def take_over(original: Path, directory: Path, *, own: bool) -> None:
    """Copy what belongs to a model besides its config, weights and code, contents alone.

    Args:
        original: the checkpoint that has it.
        directory: where it goes; rights are those of any new file.
        own: whether recipe and reports come along.
    """
    files = belongings(original)
    if own:
        files |= {name: original / name for name in OWN_FILES if (original / name).is_file()}
    for name, file in files.items():
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


def _names_no_class(directory: Path) -> bool:
    for name, entries in _CLASS_ENTRIES.items():
        values = _entries(directory / name)
        if values is not None and not any(values.get(entry) for entry in entries):
            return True
    bare = not (directory / "tokenizer_config.json").is_file()
    return bare and any((directory / name).is_file() for name in _TOKENIZER_FILES)


def _save_beside(processor: Any, directory: Path) -> None:
    """Save a tokenizer or image processor, and leave the original's own files as they are but for that."""
    if processor is None:
        return
    kept = {file: file.read_bytes() for file in directory.iterdir() if file.is_file()}
    processor.save_pretrained(directory)
    for file, content in kept.items():
        if file.name not in _CLASS_ENTRIES:
            file.write_bytes(content)


def is_portable(directory: Path) -> bool:
    """Whether a checkpoint of ours is of the host's own class, as its report says.

    Args:
        directory: the checkpoint.

    Returns:
        False where there is no report.
    """
    return bool((_entries(directory / REPORT_FILE) or {}).get("portable"))


def _is_compressed(directory: Path) -> bool:
    return bool((_entries(directory / "config.json") or {}).get("collab"))


def _entries(file: Path) -> dict[str, Any] | None:
    """A JSON file's entries, or None where it is absent or no mapping."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None
