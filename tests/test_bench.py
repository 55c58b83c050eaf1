"""Timing in turns, honest about noise; memory and operations; `collab-hf bench`."""

import importlib.util
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_support import VOCABULARY, CommandLine, save_with_tokenizer
from random_models import PLANS, make_collab_
from transformers import BertForMaskedLM, BertModel, ViTModel

from collab_hf.measure.bench import (
    MIN_PAIRS,
    Case,
    Ratio,
    bench_models,
    check_case,
    compare_calls,
    forward_call,
    image_length,
)
from collab_hf.measure.bench_counts import count_flops, peak_memory, saved_flops
from collab_hf.modeling.errors import ConfigError


def test_a_slower_call_is_measured() -> None:
    timing = compare_calls(lambda: time.sleep(0.002), lambda: time.sleep(0.006), seconds=0.2)
    assert timing.latency.measured
    assert 2 < timing.latency.median < 4
    assert timing.throughput.median == pytest.approx(1 / timing.latency.median, rel=0.05)
    assert timing.latency.pairs >= MIN_PAIRS
    assert timing.seconds_before < timing.seconds_after


def test_short_calls_are_repeated_within_a_turn() -> None:
    calls = []
    timing = compare_calls(lambda: calls.append(None), lambda: None, seconds=0.01)
    assert len(calls) > 10 * timing.latency.pairs
    calls.clear()
    timing = compare_calls(lambda: (calls.append(None), time.sleep(0.03)), lambda: None, seconds=0.01)
    assert len(calls) == timing.latency.pairs + 2  # and the warm-up


def test_a_call_against_itself_is_no_difference() -> None:
    """Negative control: calls of 1 to 4 ms by chance, and no ratio is claimed."""
    numbers = itertools.cycle(torch.rand(101).tolist())

    def call() -> None:
        time.sleep(0.001 + 0.003 * next(numbers))

    ratio = compare_calls(call, call, seconds=0.05).latency
    assert not ratio.measured
    assert str(ratio).startswith("no difference measured (")


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (Ratio(0.8, 0.75, 0.85, 9), "0.80 (0.75 to 0.85)"),
        (Ratio(0.98, 0.95, 1.05, 9), "no difference measured (0.95 to 1.05)"),
        (Ratio(1.3, 1.25, 1.5, 9), "1.30 (1.25 to 1.50)"),
    ],
)
def test_spread_against_effect(ratio: Ratio, text: str) -> None:
    assert str(ratio) == text


def test_operations_and_memory(tiny_bert: Callable[..., Any]) -> None:
    """What runs less is what the plan says, where no kernel pads: scores of head_dim, folded bias."""
    dense, model = tiny_bert(BertModel), make_collab_(tiny_bert(BertModel), PLANS["tucker"])
    case = Case(2, 16)
    with torch.no_grad():
        before, after = (count_flops(forward_call(one, case)) for one in (dense, model))
        memory = peak_memory(forward_call(dense, case))
    assert before - after == saved_flops(model, 2, 16) > 0
    # At least one layer's intermediate activations: batch x length x 48 floats.
    assert memory > 2 * 16 * 48 * 4
    assert peak_memory(lambda: torch.empty(1000).sum()) == pytest.approx(4000, abs=200)


def test_the_profiler_says_nothing() -> None:
    """In a process of its own: the profiler looks once at how much it is to say."""
    code = (
        "import torch; from collab_hf.measure.bench_counts import peak_memory; "
        "print(peak_memory(lambda: torch.ones(9)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 36
    assert done.stderr == ""


def test_a_case_is_restored(tiny_bert: Callable[..., Any]) -> None:
    dense, model = tiny_bert(BertModel), make_collab_(tiny_bert(BertModel), PLANS["tucker-narrow"])
    threads = torch.get_num_threads()
    seen: list[Case] = []
    cases = [Case(1, 8, "bfloat16", threads + 1), Case(1, 8)]
    found = bench_models(dense, model, cases, seconds=0.05, progress=seen.append)
    assert seen == cases == [one.case for one in found]
    assert torch.get_num_threads() == threads
    assert dense.dtype == model.dtype == torch.float32
    values = json.loads(json.dumps(found[0].to_dict()))
    ratio = values["timing"]["latency"]
    assert (ratio["median"] is None) == (not ratio["measured"])


def test_images_have_their_own_length(tiny_bert: Callable[..., Any], tiny_vit: Callable[..., Any]) -> None:
    assert image_length(tiny_vit(ViTModel)) == 17
    assert image_length(tiny_bert(BertModel)) is None


def test_cases_that_cannot_run(tiny_bert: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="length must be at most 40 for this model, got 41"):
        check_case(tiny_bert(BertModel), Case(1, 41))
    with pytest.raises(ConfigError, match="dtype must be float32, bfloat16 or float16, got 'int8'"):
        check_case(tiny_bert(BertModel), Case(1, 4, "int8"))


@pytest.fixture
def checkpoints(tiny_bert: Any, tmp_path: Path) -> tuple[Path, Path]:
    """A dense checkpoint and a compressed one."""
    original = save_with_tokenizer(tiny_bert(BertForMaskedLM, vocab_size=len(VOCABULARY)), tmp_path / "model")
    model = make_collab_(tiny_bert(BertForMaskedLM, vocab_size=len(VOCABULARY)), PLANS["tucker"])
    return original, save_with_tokenizer(model, tmp_path / "small")


def test_command(collab_hf: CommandLine, checkpoints: tuple[Path, Path], tmp_path: Path) -> None:
    original, small = checkpoints
    picture = tmp_path / "speed.png"
    arguments = ["bench", small, "--against", original, "--lengths", "8,16", "--batch-sizes", 2]
    arguments += ["--seconds", 0.05, "--threads", 1]
    result = collab_hf(*arguments, "--plot", picture, "--json")
    assert [m["case"]["length"] for m in result.values["measurements"]] == [8, 16]
    assert result.values["measurements"][0]["flops_after"] < result.values["measurements"][0]["flops_before"]
    assert picture.read_bytes()[:4] == b"\x89PNG"
    text = collab_hf(*arguments).out
    assert "throughput ratio" in text
    assert text.count("\n") == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lengths", "8,x"], "--lengths must be whole numbers above 0"),
        (["--lengths", "99"], "length must be at most 40 for this model, got 99"),
        (["--dtype", "int8"], "dtype must be float32, bfloat16 or float16, got 'int8'"),
        (["--plot", "speed.svg"], "a plot is a .png file"),
    ],
)
def test_refusals(
    arguments: list[str], message: str, collab_hf: CommandLine, checkpoints: tuple[Path, Path]
) -> None:
    original, small = checkpoints
    assert message in collab_hf("bench", small, "--against", original, *arguments).complaint


def test_a_plot_without_matplotlib(
    collab_hf: CommandLine, checkpoints: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    original, small = checkpoints
    complaint = collab_hf("bench", small, "--against", original, "--plot", "speed.png").complaint
    assert complaint == "a plot needs matplotlib; install it with `pip install matplotlib`"


@pytest.mark.parametrize(("options", "warned"), [([], True), (["--dims-per-head", 8], False)])
def test_compress_warns_of_wide_scores(
    options: list[Any], warned: bool, collab_hf: CommandLine, checkpoints: tuple[Path, Path], tmp_path: Path
) -> None:
    arguments = [
        "compress",
        checkpoints[0],
        "--method",
        "cp",
        "--rank",
        12,
        "--calibration",
        "none",
        *options,
    ]
    text = collab_hf(*arguments, "-o", tmp_path / "one").out
    # Dense: 2 * 24 * 24 a token. Here: 2 * 24 * 12, 3 * 12 for the mixing, 3 * 24 for the content bias, and
    # 3 * (12 - 8) more for each score: (1152 - 684) / 12.
    assert ("warning: slower than the original from 39 tokens on or earlier" in text) == warned
    values = collab_hf(*arguments, "-o", tmp_path / "two", "--json").values
    assert values["layers"][0]["break_even_length"] == (39 if warned else None)
