"""Work that several processes share: the same model as of one, one answer, and one error."""

import json
from pathlib import Path

import pytest
import torch
from cli_support import CommandLine
from launched import launch
from safetensors.torch import load_file

from collab_hf import cli
from collab_hf.errors import ConfigError
from collab_hf.processes import ALONE, Processes

SCRIPT = """
import json
import torch
from collab_hf.errors import ConfigError
from collab_hf.processes import Processes
from collab_hf.tensors.moments import Moments, MomentsAccumulator

p = Processes.launched(torch.device("cpu"))
rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1e4
mine = MomentsAccumulator()
mine.update(rows[:40] if p.rank == 0 else rows[40:])
unseen = MomentsAccumulator()
if p.rank == 1:
    unseen.update(rows)
for accumulator in (mine, unseen):
    accumulator.total_(p.total, 4, p.device)
whole = Moments.from_samples(rows)
close = [
    torch.allclose(a.moments().mean, whole.mean, rtol=1e-13)
    and torch.allclose(a.moments().covariance, whole.covariance, rtol=1e-9, atol=1e-9)
    for a in (mine, unseen)
]


def work():
    if p.rank == 1:
        raise ConfigError("only here")


seen = {
    "count": p.count,
    "ranks": p.gather(lambda: p.rank),
    "each": [(item, result) for item, result in p.each(["a", "b", "c"], lambda item: [item * 2, p.rank])],
    "main": p.from_main(lambda: p.rank),
    "rows": [a.count for a in (mine, unseen)],
    "close": close,
}
for name, shared in (("gather", lambda: p.gather(work)), ("main", lambda: p.from_main(work))):
    try:
        seen[f"{name} fails"] = shared()
    except ConfigError as error:
        seen[f"{name} fails"] = str(error)
try:
    with p.together():
        work()
except ConfigError as error:
    seen["together fails"] = str(error)
every = p.gather(lambda: seen)
if p.is_main:
    print(json.dumps(every))
"""


@pytest.mark.slow
def test_all_processes_know_what_each_did(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    done = launch(script)
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)
    assert first == second
    assert first["count"] == 2
    assert first["ranks"] == [0, 1]
    assert first["each"] == [["a", ["aa", 0]], ["b", ["bb", 1]], ["c", ["cc", 0]]]
    assert first["main"] == 0
    assert first["rows"] == [50, 50]
    assert first["close"] == [True, True]
    assert first["gather fails"] == first["together fails"] == "only here"
    assert first["main fails"] is None  # the main process does not fail, and the other does not work


def test_one_process_works_alone() -> None:
    assert ALONE.gather(lambda: 3) == [3]
    assert list(ALONE.each("ab", str.upper)) == [("a", "A"), ("b", "B")]
    with pytest.raises(ConfigError, match="no"), ALONE.together():
        raise ConfigError("no")


def test_a_short_batch_is_repeated_until_each_process_has_a_row() -> None:
    batch = {"input_ids": torch.arange(6).view(3, 2), "labels": torch.arange(3), "return_dict": True}
    shares = [Processes(count=2, rank=rank).rows(batch) for rank in range(2)]
    assert [share["labels"].tolist() for share, _, _ in shares] == [[0], [1, 2]]
    assert [(first, length) for _, first, length in shares] == [(0, 3), (1, 3)]
    few = [Processes(count=4, rank=rank).rows(batch) for rank in range(4)]
    assert [share["labels"].tolist() for share, _, _ in few] == [[0], [1, 2], [0], [1, 2]]
    assert [(first, length) for _, first, length in few] == [(0, 6), (1, 6), (3, 6), (4, 6)]
    assert all(share["return_dict"] is True for share, _, _ in few)


@pytest.mark.slow
@pytest.mark.parametrize("asked", [["--budget", "0.5"], ["--method", "tucker", "--rank", "6"]])
def test_two_processes_make_the_model_of_one(
    collab_hf: CommandLine,
    model: Path,
    text: Path,
    tmp_path: Path,
    asked: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = ["--calibration", text, "--calibration-examples", "64", "--json"]
    monkeypatch.setenv("COLLAB_HF_CACHE", str(tmp_path / "one-cache"))
    one = collab_hf("compress", model, "-o", tmp_path / "one", *asked, *read)
    assert one.code == 0, one.err
    monkeypatch.setenv("COLLAB_HF_CACHE", str(tmp_path / "two-cache"))
    done = launch("-m", "collab_hf", "compress", model, "-o", tmp_path / "two", *asked, *read)
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)  # one object: the other process prints nothing
    assert done.stderr.count("Running the model on calibration examples") == 1
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith((".two", "two"))) == (
        ["two", "two-cache"] if "--budget" in asked else ["two"]
    )
    assert [layer["plan"] for layer in values["layers"]] == [layer["plan"] for layer in one.values["layers"]]
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        # The moments are sums in another order: 1e-16 in float64, which whitening, sweeps and the steps of
        # reconstruction in float32 enlarge. A share of the batches left out changes them by 1e-2 and more.
        scale = float(tensor.double().norm())
        error = float((tensor.double() - second[name].double()).norm())
        assert error <= 1e-5 * max(scale, 1e-3), name


@pytest.mark.slow
def test_two_processes_recover_what_the_main_one_planned(model: Path, text: Path, tmp_path: Path) -> None:
    words = [
        "compress",
        model,
        "-o",
        tmp_path / "out",
        "--params",
        "0.8",
        "--parts",
        "query_key,feed_forward",
    ]
    read = ["--calibration", text, "--calibration-examples", "64", "--heal-steps", "4", "--json"]
    done = launch("-m", "collab_hf", *words, *read)
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert values["recovery"]["steps"] == 4
    assert values["parameters_after"] <= 0.8 * values["parameters_before"]
    assert cli.run(["verify", str(tmp_path / "out"), "--quiet"]) == 0


@pytest.mark.slow
def test_an_error_is_said_once_and_ends_all(model: Path, tmp_path: Path) -> None:
    done = launch(
        "-m", "collab_hf", "compress", model, "-o", tmp_path / "out", "--method", "cp", "--rank", "999"
    )
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1, done.stderr
    assert "rank must be between 1 and" in said[0]
    assert done.stderr.count("exitcode  : 2 ") == 2  # the launcher's own account of both
    assert done.stdout == ""
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_only_the_main_process_speaks(
    collab_hf: CommandLine, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "_SILENCE", 0.0)
    assert collab_hf("families", "--json").out
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    quiet = collab_hf("families", "--json")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")
    wrong = ["compress", model, "-o", tmp_path / "out", "--rank", "0", "--method", "cp"]
    # Nobody ended it, so the main process has not failed: it is for this one to say.
    assert "rank must be" in collab_hf(*wrong).complaint

    def stopped(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.time, "sleep", stopped)
    ended = collab_hf(*wrong)
    assert (ended.code, ended.err) == (2, "")
