"""The tables of docs/speed.md from what `bench_speed.py` measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

START, END = "<!-- tables: scripts/bench_speed.py -->", "<!-- end of tables -->"

TITLES = {
    "blocks": "Attention block, default form at a quarter, BERT-base shape",
    "methods": "Attention block, every method, BERT-base shape",
    "shapes": "Attention block, other shapes",
    "training": "Forward and backward of the attention block, BERT-base shape",
    "models": "Whole model: embeddings and two layers of the BERT-base shape",
}
TARGETS = {"fp32": 0.80, "bf16": 0.88}

_Row = dict[str, Any]


def write(values: dict[str, Any], file: Path) -> None:
    """Put the tables between the marks of a page, or into a new one.

    Args:
        values: what bench_speed.py wrote as JSON.
        file: the page; what stands outside of the marks is kept.
    """
    text = file.read_text() if file.exists() else f"# Speed\n\n{START}\n{END}\n"
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    file.write_text(f"{before}{START}\n\n{tables(values)}\n{END}{after}")


def tables(values: dict[str, Any]) -> str:
    """Markdown of all groups.

    Args:
        values: what bench_speed.py wrote as JSON.

    Returns:
        Paragraphs and tables that end in a newline.
    """
    extent = "the whole grid" if values["full"] else "the short grid"
    memory = ", ".join(f"{ratio:.2f} in {dtype}" for dtype, ratio in values["memory_ratio"].items())
    parts = [
        f"Measured on {values['date']}: {values['machine']}, {values['threads']} threads, torch "
        f"{values['torch']}, {extent}. Peak activation memory of the default block at length 512 over dense: "
        f"{memory}.\n"
    ]
    for group, title in TITLES.items():
        rows = [row for row in values["rows"] if row["group"] == group]
        if rows:
            parts.append(f"## {title}\n\n{_GROUPS[group](rows)}")
    return "\n".join(parts)


def _blocks(rows: list[_Row]) -> str:
    lines = []
    ceilings = {_case(row): row for row in rows if row["method"] == "ceiling"}
    forms = [row for row in rows if row["method"] != "ceiling"]
    misses = 0
    for row in forms:
        ratio, ceiling = _latency(row)["median"], _latency(ceilings[_case(row)])["median"]
        missed = ratio > TARGETS[row["dtype"]]
        misses += missed
        # Of the time that a block without query and key would save.
        reached = f"{(1 - ratio) / (1 - ceiling):.0%}" if ceiling < 1 else "-"
        dense = f"{row['timing']['seconds_before'] * 1e3:.2f}"
        lines.append(
            [*_where(row), dense, _shown(row), f"{ceiling:.2f}", reached, "missed" if missed else ""]
        )
    ranks = forms[0]["ranks"] if forms else ""
    text = (
        f"Ranks {ranks}, folded bias. Target: {TARGETS['fp32']:.2f} of dense time in fp32, "
        f"{TARGETS['bf16']:.2f} in bf16; missed in {misses} of {len(forms)} cases. Ceiling: no query and key "
        "projection at all.\n\n"
    )
    header = ["dtype", "length", "batch", "dense ms", "time over dense", "ceiling", "of it reached", "target"]
    return text + _table(header, lines)


def _methods(rows: list[_Row]) -> str:
    cases = sorted({_case(row) for row in rows}, key=lambda case: (case[1] != "fp32", case[2], case[3]))
    header = ["keeps", "method", "ranks", *(f"{dtype} {length}x{batch}" for _, dtype, length, batch in cases)]
    forms = dict.fromkeys((row["budget"], row["method"], row["ranks"]) for row in rows)
    lines = []
    for form in forms:
        cells = {
            _case(row): _shown(row, spread=False)
            for row in rows
            if (row["budget"], row["method"], row["ranks"]) == form
        }
        lines.append([*form, *(cells.get(case, "") for case in cases)])
    note = "Time over dense; length x batch. `-`: no difference measured.\n\n"
    return note + _table(header, lines)


def _shapes(rows: list[_Row]) -> str:
    lines = [
        [row["shape"], *_where(row), row["budget"], row["method"], row["ranks"], _shown(row)] for row in rows
    ]
    header = ["shape", "dtype", "length", "batch", "keeps", "method", "ranks", "time over dense"]
    return _table(header, lines)


def _training(rows: list[_Row]) -> str:
    lines = [[*_where(row), row["budget"], row["method"], row["ranks"], _shown(row)] for row in rows]
    return _table(["dtype", "length", "batch", "keeps", "method", "ranks", "time over dense"], lines)


def _models(rows: list[_Row]) -> str:
    lines = []
    for row in rows:
        dense = f"{row['timing']['seconds_before'] * 1e3:.1f}"
        lines.append([*_where(row), dense, _shown(row, "throughput")])
    return _table(["dtype", "length", "batch", "dense ms", "throughput over dense"], lines)


_GROUPS = {
    "blocks": _blocks,
    "methods": _methods,
    "shapes": _shapes,
    "training": _training,
    "models": _models,
}


def _latency(row: _Row) -> dict[str, float]:
    latency: dict[str, float] = row["timing"]["latency"]
    return latency


def _case(row: _Row) -> tuple[str, str, int, int]:
    return row["shape"], row["dtype"], row["length"], row["batch"]


def _where(row: _Row) -> list[str]:
    return [row["dtype"], str(row["length"]), str(row["batch"])]


def _shown(row: _Row, kind: str = "latency", *, spread: bool = True) -> str:
    ratio = row["timing"][kind]
    if ratio["high"] - ratio["low"] >= abs(ratio["median"] - 1):
        return f"no difference measured ({ratio['low']:.2f} to {ratio['high']:.2f})" if spread else "-"
    quartiles = f" ({ratio['low']:.2f} to {ratio['high']:.2f})" if spread else ""
    return f"{ratio['median']:.2f}{quartiles}"


def _table(header: list[str], lines: list[list[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
