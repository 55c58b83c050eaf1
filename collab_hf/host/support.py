"""What collab_hf can do with each model of transformers, by model type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ..modeling.families import FAMILIES, FEED_FORWARDS, Family

PARTS = ("query_key", "heads", "value_output", "feed_forward")


@dataclass(frozen=True)
class Support:
    """One model type.

    Attributes:
        model_type: as in config.json.
        parts: by part, None where it can be made smaller, else why not.
        note: for which of its settings that is not so; None for none.
    """

    model_type: str
    parts: Mapping[str, str | None]
    note: str | None = None


def supported_models() -> list[Support]:
    """Every model type that has rows, in alphabetical order.

    Composites (`encoder-decoder`, `vision-encoder-decoder`) do what their parts do. A model that is not here
    may have layers that copy those of one that is.

    Returns:
        Model types with what can be done.
    """
    attention: dict[str, list[Family]] = {}
    for row in FAMILIES.values():
        for model_type in row.model_types:
            attention.setdefault(model_type, []).append(row)
    neurons = {model_type for row in FEED_FORWARDS.values() for model_type in row.model_types}
    found = []
    for model_type, rows in sorted(attention.items()):
        parts = {part: _reason(rows, part) for part in PARTS[:-1]}
        parts["feed_forward"] = None if model_type in neurons else "its feed-forward has no row"
        notes = [note for row in rows for note in _notes(row)]
        found.append(Support(model_type, parts, next(iter(notes), None)))
    return found


def _notes(row: Family) -> Iterator[str]:
    if row.refuses_if is not None:
        yield f"not queries and keys where {row.refuses_if} is {row.refuses_value}: {row.refuses}"
    if row.keeps_heads_if is not None:
        yield f"not heads where {row.keeps_heads_if} is true: {row.keeps_heads}"


def _reason(rows: list[Family], part: str) -> str | None:
    """Why no class of a model type allows a part in any setting."""
    open_rows = [
        replace(
            row,
            refuses=None if row.refuses_if else row.refuses,
            keeps_heads=None if row.keeps_heads_if else row.keeps_heads,
        )
        for row in rows
    ]
    reasons = [row.reason(part) for row in open_rows]
    return None if None in reasons else reasons[0]


def why_not(one: Support) -> str:
    """All that keeps parts of a model type, each once."""
    return "; ".join(dict.fromkeys(reason for reason in (*one.parts.values(), one.note) if reason))


def as_markdown() -> str:
    """The table of docs/families.md."""
    titles = ("queries and keys", "heads", "values", "feed-forward")
    lines = [f"| model type | {' | '.join(titles)} | why not |", "|---" * (len(titles) + 2) + "|"]
    for one in supported_models():
        marks = ["no" if one.parts[part] else "yes" for part in PARTS]
        lines.append(f"| `{one.model_type}` | {' | '.join(marks)} | {why_not(one)} |")
    return "\n".join(lines) + "\n"
