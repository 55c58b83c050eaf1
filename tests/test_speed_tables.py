"""The tables of docs/speed.md."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from random_models import PLANS

import bench_speed
import speed_tables
from speed_cases import BERT_BASE, BUDGETS, OTHER_SHAPES, Shape, default_plan, plans


def row(group: str, method: str, ratio: float, **case: Any) -> dict[str, Any]:
    spread = {"median": ratio, "low": ratio - 0.01, "high": ratio + 0.01}
    timing = {"seconds_before": 0.1, "latency": spread, "throughput": {**spread, "median": 1 / ratio}}
    base = {
        "shape": "BERT-base",
        "dtype": "fp32",
        "length": 16,
        "batch": 1,
        "budget": "quarter",
        "ranks": "8x8",
    }
    return {**base, "group": group, "method": method, "timing": timing, **case}


def values(*rows: dict[str, Any]) -> dict[str, Any]:
    machine = {"date": "2026-01-01", "machine": "x86_64", "threads": 2, "torch": "2", "full": False}
    return {**machine, "memory_ratio": {"fp32": 0.9}, "rows": list(rows)}


def test_a_page_keeps_its_text(tmp_path: Path) -> None:
    page = tmp_path / "speed.md"
    page.write_text(f"above\n{speed_tables.START}\nold\n{speed_tables.END}\nbelow\n")
    speed_tables.write(values(row("models", "tucker", 0.8)), page)
    text = page.read_text()
    assert text.startswith("above\n")
    assert text.endswith("\nbelow\n")
    assert "old" not in text
    speed_tables.write(values(row("models", "tucker", 0.8)), page)
    assert page.read_text() == text


def test_targets_and_the_ceiling() -> None:
    rows = [row("blocks", "ceiling", 0.6), row("blocks", "tucker", 0.7)]
    rows += [row("blocks", "ceiling", 0.6, length=512), row("blocks", "tucker", 0.9, length=512)]
    text = speed_tables.tables(values(*rows))
    assert "| fp32 | 16 | 1 | 100.00 | 0.70 (0.69 to 0.71) | 0.60 | 75% |  |" in text
    assert "| 0.60 | 25% | missed |" in text
    assert "missed in 1 of 2 cases" in text


def test_what_was_not_measured_is_no_number() -> None:
    rows = [row("methods", "cp", 0.995), row("training", "cp", 0.995)]
    text = speed_tables.tables(values(*rows))
    assert "| quarter | cp | 8x8 | - |" in text
    assert "no difference measured" in text
    assert "0.99 " not in text


def test_plans_keep_to_their_budgets() -> None:
    for shape in (BERT_BASE, *OTHER_SHAPES):
        dense = shape.attention.dense_parameters
        for share in BUDGETS.values():
            for name, plan in plans(shape, share).items():
                # The next size up is a rank of 8 or one dimension a head more: less than a tenth of dense.
                assert share - 0.1 < plan.num_parameters(shape.attention) / dense <= share, (shape, name)
    assert default_plan(BERT_BASE).score_width == 32
    assert PLANS["tucker"].content_bias == default_plan(BERT_BASE).content_bias == "folded"


def test_every_group_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = Shape("tiny", 256, 4, (4,))
    for name, value in {
        "BERT_BASE": tiny,
        "OTHER_SHAPES": (tiny,),
        "LENGTHS": (4, 6),
        "BATCHES": (1, 2),
        "BUDGETS": {"half": 0.5},
    }.items():
        monkeypatch.setattr(bench_speed, name, value)
    monkeypatch.setattr(
        sys, "argv", ["bench_speed.py", "--full", "--seconds", "0.001", "--out", str(tmp_path)]
    )
    bench_speed.main()
    found = json.loads((tmp_path / "speed.json").read_text())
    assert {row["group"] for row in found["rows"]} == set(bench_speed.GROUPS)
    page = (tmp_path / "speed.md").read_text()
    assert all(title in page for title in speed_tables.TITLES.values())
    assert set(found["memory_ratio"]) == {"fp32", "bf16"}
