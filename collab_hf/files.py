"""The files of a checkpoint: their names, and which of them a smaller one takes over from its original.

One list says what is known to belong to a model; whatever is not on it (weights in other formats, earlier
outputs, logs of a run) is neither copied nor published.
"""

from __future__ import annotations

import json
import os
import re
import stat
import warnings
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from .modeling.errors import ConfigError

# What a compressed checkpoint has beside its weights.
RECIPE_FILE = "collab_recipe.yaml"
REPORT_FILE = "collab_report.json"
CARD_FILE = "README.md"
# What a healed checkpoint says of its recovery.
RECOVERY_FILE = "collab_recovery.json"
OWN_FILES = (RECIPE_FILE, REPORT_FILE, RECOVERY_FILE)

# Where `pip install` finds the package, as `git+https://...`; None as long as there is no public address.
PACKAGE_URL: str | None = None

MODULES_FILE = "modules.json"
# Where optimum and sentence-transformers look for a graph in a directory.
ONNX_GRAPH = "onnx/model.onnx"
_TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tokenizer.model", "spiece.model", "spm.model", "sentencepiece*.model", "*.spm", "*.tiktoken"),
    *("vocab.txt", "vocab.json", "vocab.bpe", "merges.txt", "bpe.codes", "dict.txt", "normalizer.json"),
)
_PROCESSOR = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
_GENERATION = ("generation_config.json", "chat_template.json", "chat_template.jinja")
_SENTENCE_TRANSFORMERS = (MODULES_FILE, "config_sentence_transformers.json", "sentence_*_config.json")
_WORDS = tuple(
    pattern
    for word in ("readme", "license", "licence", "notice", "copying", "citation")
    for pattern in (f"{word}*", f"{word.title()}*", f"{word.upper()}*")
)
# Files at the top of a checkpoint that belong to the model whatever form its weights have.
TAKEN_OVER = (*_TOKENIZER, *_PROCESSOR, *_GENERATION, *_SENTENCE_TRANSFORMERS, *_WORDS)
# Folders that belong to it, besides the modules of sentence-transformers that modules.json names.
FOLDERS = ("additional_chat_templates",)
# Files inside of such folders; a module's own weights (of a dense layer, say) are not the attention's.
IN_FOLDERS = ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors", "pytorch_model.bin")
# What the saved model itself consists of.
SAVED = ("config.json", "model*.safetensors", "model.safetensors.index.json", "*.py")

# Weights in every form that the Hub has: a push replaces them as a whole.
WEIGHT_FILES = (
    *("*.safetensors", "*.bin", "*.index.json", "*.h5", "*.msgpack", "*.ot", "*.gguf", "*.tflite", "*.ckpt"),
    *("*.onnx", "*.onnx_data", "*.mlmodel", "*.mlpackage/*", "onnx/*", "openvino/*", "coreml/*"),
)


def belongings(directory: Path) -> dict[str, Path]:
    """What belongs to a model besides its config, weights and code.

    A known file that can't be taken over (a link out of the directory, a pipe, no right to read) is left
    with a warning.

    Args:
        directory: the checkpoint.

    Returns:
        Files by their name relative to the directory, in order.
    """
    return _plain_files(directory, _candidates(directory, TAKEN_OVER))


def checkpoint_files(directory: Path) -> dict[str, Path]:
    """All files of a compressed checkpoint: what is published of its directory.

    Args:
        directory: the checkpoint.

    Returns:
        Files by their name relative to the directory, in order.
    """
    return _plain_files(directory, _candidates(directory, (*TAKEN_OVER, *SAVED, *OWN_FILES)))


def module_folders(directory: Path) -> tuple[str, ...]:
    """Folders of the modules of sentence-transformers, such as `1_Pooling`.

    Args:
        directory: the checkpoint.

    Returns:
        Relative paths that stay inside the directory; none where modules.json is absent or malformed.
    """
    try:
        modules = json.loads((directory / MODULES_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return ()
    listed = [m.get("path") for m in modules if isinstance(m, dict)] if isinstance(modules, list) else []
    paths = [PurePosixPath(path) for path in listed if isinstance(path, str) and path]
    return tuple(str(p) for p in paths if p.parts and not p.is_absolute() and ".." not in p.parts)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a file's name fits one of the patterns, in upper and lower case as written."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _candidates(directory: Path, patterns: Iterable[str]) -> Iterator[str]:
    """Names that are on the list, whatever stands behind them."""
    top = sorted(file.name for file in directory.iterdir())
    yield from (name for name in top if not name.startswith(".") and matches(name, patterns))
    for folder in sorted({*FOLDERS, *module_folders(directory)}):
        place = directory / folder
        # A folder that a link names is entered where it lies inside, links below it never: no loops.
        if not place.is_dir() or _outside(place, directory) or _holds(place, directory):
            continue
        for parent, folders, names in os.walk(place):
            folders[:] = sorted(name for name in folders if not name.startswith((".", "__pycache__")))
            inside = Path(parent).relative_to(directory).as_posix()
            yield from (
                f"{inside}/{name}"
                for name in sorted(names)
                if not name.startswith(".") and matches(name, IN_FOLDERS)
            )


def _plain_files(directory: Path, names: Iterable[str]) -> dict[str, Path]:
    found = {}
    for name in names:
        reason = _unusable(directory / name, directory)
        if reason is None:
            found[name] = directory / name
        elif reason:
            warnings.warn(f"{name} is left out: it is {reason} ({directory})", stacklevel=3)
    return found


def _unusable(file: Path, directory: Path) -> str | None:
    """Why a file is left: None where it is not, and the empty text where nothing is lost by it."""
    try:
        mode = file.stat().st_mode
    except OSError:
        return "a link to nothing"
    if stat.S_ISDIR(mode):
        return ""
    if not stat.S_ISREG(mode):
        return "no plain file"
    if _outside(file, directory):
        return "a link out of the directory"
    return None if os.access(file, os.R_OK) else "not readable"


def _outside(path: Path, directory: Path) -> bool:
    """Whether a path leads out of the directory; in the Hub's cache, files are links into its blobs."""
    real, root = path.resolve(), directory.resolve()
    snapshots = next((parent for parent in root.parents if parent.name == "snapshots"), None)
    roots = [root] if snapshots is None else [root, snapshots.parent / "blobs"]
    return not any(real.is_relative_to(inside) for inside in roots)


def _holds(path: Path, directory: Path) -> bool:
    return directory.resolve().is_relative_to(path.resolve())


# A number, and perhaps a unit.
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMG]?)B?", re.IGNORECASE)


def read_size(text: str) -> int:
    """Read a size such as `30MB`.

    Args:
        text: a number and KB, MB or GB (powers of ten), or bytes alone.

    Returns:
        Bytes.

    Raises:
        ConfigError: another form, or zero.
    """
    found = _SIZE.fullmatch(str(text).strip())
    size = 0.0 if found is None else float(found[1]) * 1000 ** "_KMG".index(found[2].upper() or "_")
    if size < 1:
        raise ConfigError(f"size must be a number with KB, MB or GB, such as 30MB, got {text!r}")
    return int(size)
