"""Text for people: tables, and settings without their defaults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any

Change = tuple[int, int]  # before and after


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows of text in columns, numbers to the right.

    Args:
        header: titles of the columns.
        rows: cells, as many in each row as in the header.

    Returns:
        Lines without a newline at the end.
    """
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    numeric = [all(row[column][:1].isdigit() for row in rows) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    )


def change_text(change: Change, arrow: str = "->") -> str:
    """A number before and after, such as `12 -> 8`, or the one that stayed."""
    before, after = change
    return f"{before:,}" if before == after else f"{before:,} {arrow} {after:,}"


def share(after: float, before: float) -> str:
    """Before and after as a percentage, such as `66.0%`."""
    return f"{after / before:.1%}" if before else "-"


def changed_repr(settings: Any) -> str:
    """A dataclass of settings as the call that makes it, without fields that are at their defaults.

    Args:
        settings: a dataclass.

    Returns:
        Such as `CollabConfig(budget=0.25)`.
    """
    shown = []
    for field in fields(settings):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        value = getattr(settings, field.name)
        if value != default:
            shown.append(f"{field.name}={value!r}")
    return f"{type(settings).__name__}({', '.join(shown)})"
