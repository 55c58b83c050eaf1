"""The tables of docs/benchmarks/speed.md."""

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
    groups: dict[str, Any] = {}
    for one in rows:
        how = {"date": "2026-01-01", "seconds": 0.5, "full": False, "rows": []}
        groups.setdefault(one["group"], how)["rows"].append(one)
    where = {"machine": "x86_64", "threads": 2, "torch": "2"}
    return {**where, "memory_ratio": {"fp32": 0.9}, "groups": groups}


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
    assert "| quarter | cp | 8x8 | 1 | - |" in text
    assert "no difference measured" in text
    assert "0.99 " not in text


def test_methods_by_length() -> None:
    rows = [row("methods", "ceiling", 0.5, budget="", ranks="", length=16)]
    for budget in ("quarter", "half"):
        for method in ("svd", "cp"):
            for batch in (8, 1):
                rows += [row("methods", method, 0.8, budget=budget, batch=batch, length=n) for n in (64, 16)]
    rows.append(row("methods", "svd", 0.7, dtype="bf16"))
    lines = speed_tables.tables(values(*rows)).splitlines()
    assert "2026-01-01, short grid, `--only methods --seconds 0.5`." in lines
    assert "| keeps | method | ranks | fp32, batch | 16 | 64 |" in lines
    assert "|  | ceiling |  | 1 | 0.50 |  |" in lines
    forms = [line.split(" | ")[:4] for line in lines if "8x8" in line]
    assert [(form[0].strip("| "), form[1], form[3]) for form in forms[:-1]] == [
        (budget, method, batch)
        for budget in ("half", "quarter")
        for method in ("svd", "cp")
        for batch in ("1", "8")
    ]
    assert "| quarter | svd | 8x8 | 1 | 0.70 |" in lines


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

    def run(*arguments: str) -> dict[str, Any]:
        argv = ["bench_speed.py", "--seconds", "0.001", "--out", str(tmp_path), *arguments]
        monkeypatch.setattr(sys, "argv", argv)
        bench_speed.main()
        values: dict[str, Any] = json.loads((tmp_path / "speed.json").read_text())
        return values

    first = run("--full")
    assert set(first["groups"]) == set(bench_speed.GROUPS)
    assert all(row["group"] == name for name, group in first["groups"].items() for row in group["rows"])
    page = (tmp_path / "speed.md").read_text()
    assert all(title in page for title in speed_tables.TITLES.values())
    assert set(first["memory_ratio"]) == {"fp32", "bf16"}

    # One group alone leaves the others as they were, but not those of another machine.
    second = run("--only", "models")
    assert not second["groups"]["models"]["full"]
    rest = set(bench_speed.GROUPS) - {"models"}
    assert all(second["groups"][name] == first["groups"][name] for name in rest)
    (tmp_path / "speed.json").write_text(json.dumps({**second, "torch": "another"}))
    assert set(run("--only", "models")["groups"]) == {"models"}
