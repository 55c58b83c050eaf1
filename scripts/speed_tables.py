"""The tables of docs/benchmarks/speed.md from what `bench_speed.py` measured."""

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
_BUDGETS = ("", "half", "quarter", "eighth")  # what is kept; the ceiling keeps nothing

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
    memory = ", ".join(f"{ratio:.2f} in {dtype}" for dtype, ratio in values["memory_ratio"].items())
    parts = [
        f"Measured with {values['machine']}, {values['threads']} threads, torch {values['torch']}. Peak "
        f"activation memory of the default block at length 512 over dense: {memory}.\n"
    ]
    for name, title in TITLES.items():
        if group := values["groups"].get(name):
            extent = "whole grid (`--full`)" if group["full"] else "short grid"
            how = f"{group['date']}, {extent}, `--only {name} --seconds {group['seconds']:g}`."
            parts.append(f"## {title}\n\n{how}\n\n{_GROUPS[name](group['rows'])}")
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
    parts = ["Time over dense, by length. `-`: no difference measured.\n"]
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        chosen = [row for row in rows if row["dtype"] == dtype]
        lengths = sorted({row["length"] for row in chosen})
        forms: dict[tuple[str, ...], dict[int, str]] = {}
        for row in chosen:
            form = row["budget"], row["method"], row["ranks"], str(row["batch"])
            forms.setdefault(form, {})[row["length"]] = _shown(row, spread=False)
        methods = list(dict.fromkeys(row["method"] for row in chosen))
        lines = [[*form, *(cells.get(length, "") for length in lengths)] for form, cells in forms.items()]
        lines.sort(key=lambda line: (_BUDGETS.index(line[0]), methods.index(line[1]), int(line[3])))
        parts.append(_table(["keeps", "method", "ranks", f"{dtype}, batch", *map(str, lengths)], lines))
    return "\n".join(parts)


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
