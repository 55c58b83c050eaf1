"""Calibration examples as the user names them: a file, a folder, a data set, a list, or "default".

Everything here reads; nothing needs a model. Sampling is without replacement, keeps the source's order and
depends on the seed alone.
"""

from __future__ import annotations

import csv
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import CalibrationError

DEFAULT = "default"
DEFAULT_TEXT_FILE = Path(__file__).with_name("calibration.txt")
# Generated images that stand for a user's; more were hardly better (`default_images`).
DEFAULT_IMAGES = 64

# Files that hold columns, by suffix, with the loader of the datasets library and its options. Tab-separated
# files have no quoting (IANA text/tab-separated-values), so a lone quotation mark must not swallow the lines
# after it.
_TABLES: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t", "quoting": csv.QUOTE_NONE}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
}
_IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")  # owner/name, or owner/name:configuration
# A text column with fewer distinct values than this share of its first rows holds labels (a topic, a genre),
# not examples.
_DISTINCT_SHARE = 0.1
_ROWS_LOOKED_AT = 1000
_SOURCES = (
    "a text file, a table (.csv .tsv .jsonl .parquet), an image folder, a data set id, a list, or 'default'"
)


def read_texts(source: Any, max_examples: int, seed: int) -> list[str]:
    """Read up to max_examples texts.

    Args:
        source: "default" (the text that ships with the package), a list of str, a `datasets.Dataset`, the
            path of a text file (UTF-8, one example a line, empty lines skipped) or of a table, a folder or
            Hub id of a data set (`owner/name` or `owner/name:configuration`; its train split, else its
            first). Of tables and data sets, every text column counts, label columns excepted.
        max_examples: at least 1; larger sources are sampled.
        seed: of the sampling.
    Returns:
        At least one text, without surrounding space.
    Raises:
        CalibrationError: the source can't be read, holds no text, or holds something else than text.
    """
    if isinstance(source, str | Path):
        path = DEFAULT_TEXT_FILE if source == DEFAULT else Path(source).expanduser()
        if path.is_file() and path.suffix.lower() in _IMAGE_SUFFIXES:
            raise CalibrationError(
                f"this model reads text, but {path} is an image; pass a text file or a data set"
            )
        if path.is_file() and path.suffix.lower() not in _TABLES:
            return _lines(path, max_examples, seed)
        return _text_columns(_load_dataset(source), str(source), max_examples, seed)
    if is_dataset(source):
        return _text_columns(source, "the data set", max_examples, seed)
    items = _as_list(source)
    wrong = next((item for item in items if not isinstance(item, str)), None)
    if wrong is not None:
        raise CalibrationError(
            f"this model reads text, but the list of examples holds a {type(wrong).__name__}"
        )
    return _some([item.strip() for item in items if item.strip()], "the list of examples", max_examples, seed)


def read_images(source: Any, max_examples: int, seed: int) -> Sequence[Any]:
    """Find up to max_examples images; files and data sets are decoded only when an item is opened.

    Args:
        source: "default" (generated images), a list of PIL images, a `datasets.Dataset` with an image column,
            an image folder (read with its sub-folders, sorted by path), or a folder or Hub id of a data set
            with images.
        max_examples: at least 1; larger sources are sampled.
        seed: of the sampling.
    Returns:
        At least one item for `open_image`.
    Raises:
        CalibrationError: the source can't be read, holds no image, or holds something else than images.
    """
    if isinstance(source, str | Path):
        if source == DEFAULT:
            from .default_images import default_images  # here, since it needs PIL

            return default_images(count=min(max_examples, DEFAULT_IMAGES))
        path = Path(source).expanduser()
        if path.is_file() and path.suffix.lower() not in _TABLES:
            raise CalibrationError(f"this model reads images, but {path} is a file; pass a folder of images")
        if path.is_dir():
            files = sorted(
                file for file in path.rglob("*") if file.suffix.lower() in _IMAGE_SUFFIXES and file.is_file()
            )
            if files:
                return _some(files, str(path), max_examples, seed)
        return _image_column(_load_dataset(source), str(source), max_examples, seed)
    if is_dataset(source):
        return _image_column(source, "the data set", max_examples, seed)
    items = _as_list(source)
    wrong = next((item for item in items if not hasattr(item, "convert")), None)
    if wrong is not None:
        raise CalibrationError(
            f"this model reads images, but the list of examples holds a {type(wrong).__name__}"
        )
    return _some(items, "the list of examples", max_examples, seed)


def read_texts_and_images(
    source: Any, max_examples: int, seed: int
) -> tuple[Sequence[str] | None, Sequence[Any] | None]:
    """Read what a source has for a model of two towers.

    Args:
        source: as for `read_texts` and `read_images`.
        max_examples: of each, at least 1.
        seed: of the sampling.
    Returns:
        Texts and images; None for what the source lacks.
    Raises:
        CalibrationError: it has neither.
    """
    try:
        texts = read_texts(source, max_examples, seed)
    except CalibrationError:
        return None, read_images(source, max_examples, seed)
    try:
        return texts, read_images(source, max_examples, seed)
    except CalibrationError:
        return texts, None


def open_image(images: Sequence[Any], index: int) -> Any:
    """Decode one image of `read_images`.

    Args:
        images: what read_images returned.
        index: which one, from 0.
    Returns:
        A PIL image in RGB.
    Raises:
        CalibrationError: the image can't be decoded (file named).
    """
    from PIL import Image

    name = f"image {index}"
    try:
        item = images[index]  # a data set decodes here
        if isinstance(item, Path):
            name = str(item)
            with Image.open(item) as opened:
                return opened.convert("RGB")
        return item.convert("RGB")
    except (
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
    ) as error:  # PNG decoding raises SyntaxError
        raise CalibrationError(f"{name} can't be decoded ({error}); remove it or repair it") from error


def _lines(path: Path, max_examples: int, seed: int) -> list[str]:
    """Non-empty lines of a UTF-8 file, sampled; two passes, so that memory doesn't grow with the file."""

    def lines() -> Iterator[str]:
        with path.open(encoding="utf-8-sig") as file:  # -sig: an editor's byte-order mark is not text
            yield from (line.strip() for line in file if line.strip())

    try:
        chosen = set(sample(sum(1 for _ in lines()), max_examples, seed))
        texts = [line for number, line in enumerate(lines()) if number in chosen]
    except UnicodeDecodeError as error:
        raise CalibrationError(
            f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8, one example a line"
        ) from error
    except OSError as error:
        raise CalibrationError(f"{path} can't be read: {error.strerror}") from error
    return _some(texts, str(path), max_examples, seed)


def _load_dataset(source: str | Path) -> Any:
    """One split of a local or Hub data set, by the datasets library."""
    path = Path(source).expanduser()
    if not path.exists() and (
        isinstance(source, Path) or path.suffix in {".txt", *_TABLES} or not _HUB_ID.fullmatch(source)
    ):
        raise CalibrationError(f"{source} does not exist; calibration data is {_SOURCES}")
    import datasets  # here, since it takes a second to import

    try:
        if path.is_file():
            loader, options = _TABLES[path.suffix.lower()]
            loaded = datasets.load_dataset(loader, data_files=str(path), **options)
        elif path.is_dir() and any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
            loaded = datasets.load_from_disk(str(path))
        else:
            name, _, configuration = str(path if path.exists() else source).partition(":")
            loaded = datasets.load_dataset(name, configuration or None)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())  # the library's messages run over several lines
        raise CalibrationError(
            f"{source} can't be loaded as a data set: {reason}; calibration data is {_SOURCES}"
        ) from error
    if isinstance(loaded, dict):  # DatasetDict: one data set per split
        return loaded["train"] if "train" in loaded else next(iter(loaded.values()))
    return loaded


def _text_columns(dataset: Any, name: str, max_examples: int, seed: int) -> list[str]:
    """Texts of the text columns, row by row."""
    strings = [
        c for c, f in dataset.features.items() if getattr(f, "dtype", None) in ("string", "large_string")
    ]
    if not strings:
        raise CalibrationError(
            f"{name} has no text column, only {', '.join(dataset.features) or 'none at all'}"
        )
    first = dataset.select(range(min(len(dataset), _ROWS_LOOKED_AT)))
    prose = [c for c in strings if len(set(first[c])) > max(1, _DISTINCT_SHARE * len(first))]
    rows = dataset.select(sample(len(dataset), max_examples, seed))
    columns = [rows[c] for c in prose or strings]
    texts = [text.strip() for row in zip(*columns, strict=True) for text in row if text and text.strip()]
    return _some(texts, name, max_examples, seed)


def _image_column(dataset: Any, name: str, max_examples: int, seed: int) -> Sequence[Any]:
    """The first image column, decoded on access."""
    column = next((c for c, feature in dataset.features.items() if type(feature).__name__ == "Image"), None)
    if column is None:
        raise CalibrationError(
            f"{name} has no image column, only {', '.join(dataset.features) or 'none at all'}"
        )
    images: Sequence[Any] = dataset.select(sample(len(dataset), max_examples, seed))[column]
    if len(images) == 0:
        raise CalibrationError(f"{name} holds no example")
    return images


def is_dataset(source: Any) -> bool:
    """Whether source is a `datasets.Dataset`, known by what is used of it, to import nothing."""
    return all(hasattr(source, name) for name in ("features", "select", "__len__"))


def _as_list(source: Any) -> list[Any]:
    if isinstance(source, bytes | dict) or not isinstance(source, Iterable):
        raise CalibrationError(f"calibration data must be {_SOURCES}, got {type(source).__name__}")
    return list(source)


def _some(examples: list[Any], name: str, max_examples: int, seed: int) -> list[Any]:
    """A sample of examples, at least one."""
    if not examples:
        raise CalibrationError(f"{name} holds no example")
    return [examples[index] for index in sample(len(examples), max_examples, seed)]


def sample(count: int, max_examples: int, seed: int) -> list[int]:
    """Sorted indices below count, at most max_examples of them."""
    if count <= max_examples:
        return list(range(count))
    return sorted(random.Random(seed).sample(range(count), max_examples))
