"""Read tab-separated tables of examples."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from ..errors import DataError


def read_table(path: Path, columns: Sequence[str], max_examples: int | None = None) -> list[tuple[str, ...]]:
    """Read named columns of a tab-separated file whose first line names its columns.

    Args:
        path: UTF-8, without quoting.
        columns: the columns to return.
        max_examples: rows at most, spread evenly over the file; None for all.

    Returns:
        One tuple per row, in the order of columns; at least one row, no cell empty.

    Raises:
        DataError: no such file, a column missing, a row cut short or with an empty cell, no rows.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            found = list(reader.fieldnames or ())
            if not set(columns) <= set(found):
                raise DataError(
                    f"{path} must have the tab-separated columns {', '.join(columns)}, "
                    f"got {', '.join(found) or 'an empty file'}"
                )
            rows = []
            for row in reader:
                cells = tuple((row[column] or "").strip() for column in columns)
                if not all(cells):
                    raise DataError(f"{path}, line {reader.line_num}: every column needs a value")
                rows.append(cells)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} can't be read: {reason}") from error
    if not rows:
        raise DataError(f"{path} holds no example")
    count = min(len(rows), max_examples or len(rows))
    return [rows[index * len(rows) // count] for index in range(count)]


def read_scores(path: Path, max_examples: int | None = None) -> tuple[list[tuple[str, str]], list[float]]:
    """Read pairs of sentences with human scores.

    Args:
        path: a tab-separated file with the columns sentence1, sentence2, score.
        max_examples: rows at most; None for all.

    Returns:
        The pairs, and one score each.

    Raises:
        DataError: as for `read_table`, or a score that is no finite number.
    """
    rows = read_table(path, ("sentence1", "sentence2", "score"), max_examples)
    scores = []
    for *_, score in rows:
        try:
            scores.append(float(score))
        except ValueError:
            raise DataError(f"a score in {path} must be a number, got {score!r}") from None
        if not math.isfinite(scores[-1]):
            raise DataError(f"a score in {path} must be finite, got {score}")
    return [(first, second) for first, second, _ in rows], scores
