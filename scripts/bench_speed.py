"""Time attention blocks and models, dense against every method; write the tables of docs/benchmarks/speed.md.

    python scripts/bench_speed.py              about ten minutes on two quiet cores
    python scripts/bench_speed.py --full       every shape, method, budget, length and batch: hours
    python scripts/bench_speed.py --only models --seconds 2
    python scripts/bench_speed.py --seconds 0.01 --out /tmp/speed

A group that is measured alone takes its place among the tables that are there, if they are of this machine.

Every ratio is a median of paired times, taken in turns; see collab_hf/measure/bench.py.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

import speed_tables
from collab_hf.measure.bench import MIN_PAIRS, Timing, compare_all
from collab_hf.measure.bench_counts import peak_memory
from speed_cases import (
    BATCHES,
    BERT_BASE,
    BUDGETS,
    DEFAULT,
    LENGTHS,
    OTHER_SHAPES,
    Block,
    CeilingBlock,
    Shape,
    build_model,
    default_plan,
    describe,
    forward_and_backward,
    plans,
)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# A whole model's ratio hardly depends on its depth; two layers keep the run short.
MODEL_LAYERS = 2
# Tokens in a call from which fewer rounds have to do.
MANY_TOKENS = 4096


@dataclass(frozen=True)
class Settings:
    """What the command line asks for: seconds a comparison, and whether the grid is whole."""

    seconds: float
    full: bool


@dataclass(frozen=True)
class Row:
    """One comparison with dense: the group of rows, the case, what was timed, and the result."""

    group: str
    shape: str
    dtype: str
    length: int
    batch: int
    budget: str
    method: str
    ranks: str
    timing: Timing

    def to_dict(self) -> dict[str, Any]:
        """Plain values, times and ratios to four digits."""
        values = {**asdict(self), "measured": self.timing.latency.measured}
        rounded: dict[str, Any] = json.loads(json.dumps(values), parse_float=_rounded)
        return rounded


def blocks(settings: Settings) -> Iterator[Row]:
    """The default form against dense at every length, batch and dtype, with the ceiling beside it."""
    for dtype in DTYPES:
        built = _blocks(BERT_BASE, dtype, {"quarter": 0.25}, (DEFAULT,))
        for length in LENGTHS:
            for batch in BATCHES:
                yield from _forward("blocks", BERT_BASE, built, dtype, length, batch, settings)


def methods(settings: Settings) -> Iterator[Row]:
    """Every method at a half, a quarter and an eighth."""
    lengths, batches = (LENGTHS, BATCHES) if settings.full else ((16, 128, 197, 512), (4,))
    for dtype in DTYPES:
        built = _blocks(BERT_BASE, dtype, BUDGETS, tuple(plans(BERT_BASE, 0.5)))
        for length in lengths:
            for batch in batches:
                yield from _forward("methods", BERT_BASE, built, dtype, length, batch, settings)


def shapes(settings: Settings) -> Iterator[Row]:
    """The default form in the shapes of other models."""
    names = tuple(plans(BERT_BASE, 0.5)) if settings.full else (DEFAULT,)
    for shape in OTHER_SHAPES:
        for dtype in DTYPES:
            built = _blocks(shape, dtype, BUDGETS if settings.full else {"quarter": 0.25}, names)
            for length in LENGTHS if settings.full else shape.lengths:
                for batch in BATCHES if settings.full else (8,):
                    yield from _forward("shapes", shape, built, dtype, length, batch, settings)


def training(settings: Settings) -> Iterator[Row]:
    """Forward and backward of a block."""
    for dtype in DTYPES:
        budgets = BUDGETS if settings.full else {"quarter": 0.25}
        built = _blocks(
            BERT_BASE, dtype, budgets, tuple(plans(BERT_BASE, 0.5)) if settings.full else (DEFAULT,)
        )
        del built["ceiling", "", ""]
        for length in LENGTHS if settings.full else (16, 128, 197, 512):
            for batch in BATCHES if settings.full else (8,):
                states = torch.randn(batch, length, BERT_BASE.hidden_size, dtype=DTYPES[dtype])
                calls = {key: forward_and_backward(block.train(), states) for key, block in built.items()}
                yield from _rows("training", BERT_BASE, calls, dtype, length, batch, settings)


def models(settings: Settings) -> Iterator[Row]:
    """Whole models, embeddings and feed-forward layers included."""
    plan = default_plan(BERT_BASE)
    for dtype, torch_dtype in DTYPES.items():
        built: dict[_Key, nn.Module] = {("dense", "", ""): build_model(BERT_BASE, MODEL_LAYERS)}
        built[DEFAULT, "quarter", describe(plan)] = build_model(BERT_BASE, MODEL_LAYERS, plan)
        for length in LENGTHS:
            for batch in BATCHES:
                if batch * length > 8192 and not settings.full:
                    continue
                ids = torch.randint(0, 30000, (batch, length))
                calls = {key: _inference(model.to(torch_dtype), ids) for key, model in built.items()}
                yield from _rows("models", BERT_BASE, calls, dtype, length, batch, settings)


GROUPS = {"blocks": blocks, "methods": methods, "shapes": shapes, "training": training, "models": models}
_Key = tuple[str, str, str]  # method, budget, ranks


def _rounded(digits: str) -> float:
    return float(f"{float(digits):.4g}")


def _blocks(shape: Shape, dtype: str, budgets: dict[str, float], names: tuple[str, ...]) -> dict[_Key, Block]:
    built: dict[_Key, Block] = {("dense", "", ""): Block(shape), ("ceiling", "", ""): CeilingBlock(shape)}
    for budget, share in budgets.items():
        for name, plan in plans(shape, share).items():
            if name in names:
                built[name, budget, describe(plan)] = Block(shape, plan)
    return {key: block.eval().to(DTYPES[dtype]) for key, block in built.items()}


def _forward(
    group: str,
    shape: Shape,
    built: dict[_Key, Block],
    dtype: str,
    length: int,
    batch: int,
    settings: Settings,
) -> Iterator[Row]:
    states = torch.randn(batch, length, shape.hidden_size, dtype=DTYPES[dtype])
    calls = {key: _inference(block, states) for key, block in built.items()}
    yield from _rows(group, shape, calls, dtype, length, batch, settings)


def _inference(module: nn.Module, inputs: torch.Tensor) -> Callable[[], None]:
    def call() -> None:
        with torch.inference_mode():
            module(inputs)

    return call


def _rows(
    group: str,
    shape: Shape,
    calls: dict[_Key, Callable[[], None]],
    dtype: str,
    length: int,
    batch: int,
    settings: Settings,
) -> Iterator[Row]:
    keys = [key for key in calls if key[0] != "dense"]
    fewest = 5 if batch * length > MANY_TOKENS else MIN_PAIRS
    timings = compare_all(
        calls["dense", "", ""],
        {str(place): calls[key] for place, key in enumerate(keys)},
        seconds=settings.seconds,
        min_pairs=fewest,
    )
    for place, (method, budget, ranks) in enumerate(keys):
        timing = timings[str(place)]
        yield Row(group, shape.name, dtype, length, batch, budget, method, ranks, timing)


def memory(length: int = 512, batch: int = 8) -> dict[str, float]:
    """Peak activation memory of the default block over dense, by dtype."""
    ratios = {}
    for name, dtype in DTYPES.items():
        states = torch.randn(batch, length, BERT_BASE.hidden_size, dtype=dtype)
        pair = [Block(BERT_BASE, plan).eval().to(dtype) for plan in (None, default_plan(BERT_BASE))]
        before, after = (peak_memory(_inference(block, states)) for block in pair)
        ratios[name] = after / before
    return ratios


def main() -> None:
    """Measure what is asked for, write speed.json, and the tables into speed.md beside it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the whole grid")
    parser.add_argument("--only", choices=[*GROUPS], action="append", help="one group of cases; repeatable")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each comparison")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).resolve().parent.parent / "docs" / "benchmarks"
    )
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    settings = Settings(given.seconds, given.full)
    where = {
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": given.threads,
        "torch": torch.__version__,
    }
    file = given.out / "speed.json"
    before = json.loads(file.read_text()) if file.exists() else {}
    # What was measured elsewhere can't stand beside what is measured now.
    groups = before["groups"] if all(before.get(name) == value for name, value in where.items()) else {}
    for name in given.only or GROUPS:
        rows = []
        for row in GROUPS[name](settings):
            print(name, row.dtype, f"{row.length}x{row.batch}", row.method, row.budget, row.timing.latency)
            sys.stdout.flush()
            rows.append(row.to_dict())
        groups[name] = {"date": datetime.now(UTC).date().isoformat(), **asdict(settings), "rows": rows}
    values = {**where, "memory_ratio": memory(), "groups": groups}
    given.out.mkdir(parents=True, exist_ok=True)
    # A row a line.
    file.write_text(json.dumps(values).replace('{"group"', '\n{"group"') + "\n")
    speed_tables.write(values, given.out / "speed.md")


if __name__ == "__main__":
    main()
