"""Long work says what it does: a line for each stage, bars on a terminal, or nothing."""

import logging
import sys
import threading
from pathlib import Path

import pytest
from cli_support import CommandLine

from collab_hf.progress import Steps, heard_by, stage
from collab_hf.recovery.log import RunLog

RANK = ["--method", "cp", "--rank", 6, "--reconstruct-steps", 2]


def test_every_stage_is_a_line(collab_hf: CommandLine, model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    recovery = ["--heal-steps", 3]
    own = ["--calibration", text, "--shipped-share", 0]
    result = collab_hf("compress", model, "-o", out, *RANK, *own, *recovery)
    assert result.err.splitlines() == [
        f"Loading {model}",
        f"Reading examples: {text}",
        "Running the model on calibration examples: 1 batch",
        "Decomposing: 2 layers",
        "Fitting layers to their outputs: 2 layers",
        "Recovery: 3 updates",
        f"Writing {out}",
    ]


def test_the_whole_model_says_what_it_measures(
    collab_hf: CommandLine, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLLAB_HF_CACHE", str(tmp_path / "cache"))  # what is kept is not measured
    target = ["--params", 0.8, "--calibration", text, "--heal-steps", 1]
    result = collab_hf("compress", model, "-o", tmp_path / "out", *target)
    stages = [line.partition(":")[0] for line in result.err.splitlines()]
    measured = ("feed forward", "embeddings", "heads", "value output", "queries and keys")
    assert [line for line in stages if line.startswith("Measuring")] == [f"Measuring {m}" for m in measured]
    assert stages[-4:-1] == ["Choosing forms", "Fitting blocks to their outputs", "Recovery"]


def test_quiet_and_verbose(collab_hf: CommandLine, model: Path, text: Path, tmp_path: Path) -> None:
    words = ["compress", model, *RANK, "--calibration", text]
    quiet = collab_hf(*words, "-o", tmp_path / "quiet", "--quiet")
    assert (quiet.code, quiet.err) == (0, "")
    verbose = collab_hf(*words, "-o", tmp_path / "verbose", "-v")
    assert "Decomposing: 1 of 2\nDecomposing: 2 of 2\n" in verbose.err
    usual = collab_hf(*words, "-o", tmp_path / "usual")
    assert "1 of 2" not in usual.err
    assert set(usual.err.replace("usual", "verbose").splitlines()) < set(verbose.err.splitlines())
    assert not logging.getLogger("collab_hf").handlers
    both = collab_hf(*words, "-o", tmp_path / "both", "-q", "-v")
    assert both.complaint == "give --quiet or --verbose, not both"


def test_a_terminal_gets_bars(
    collab_hf: CommandLine, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    words = ["compress", model, *RANK, "--calibration", text]
    result = collab_hf(*words, "-o", tmp_path / "out")
    assert "Decomposing: 100%" in result.err
    assert "Decomposing: 2 layers" not in result.err
    assert f"Loading {model}\n" in result.err
    assert collab_hf(*words, "-o", tmp_path / "quiet", "--quiet").err == ""


def test_a_program_hears_nothing_it_did_not_ask_for(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def work(progress: bool) -> str:
        stage("Begins")
        assert list(Steps("ab", title="Works", unit="batch", progress=progress)) == ["a", "b"]
        with Steps(total=1, title="Counts", unit="layer", progress=progress) as steps:
            steps.update()
        return capsys.readouterr().err

    assert work(progress=False) == ""
    assert "Works: 100%" in work(progress=True)
    assert caplog.messages == []
    with caplog.at_level(logging.INFO, "collab_hf"):
        assert work(progress=False) == ""
        assert caplog.messages == ["Begins"]
        assert work(progress=True) == ""
    assert caplog.messages[1:] == ["Begins", "Works: 2 batches", "Counts: 1 layer"]


def test_a_listener_hears_every_step_and_nothing_is_drawn(
    capsys: pytest.CaptureFixture[str],
) -> None:
    heard: list[tuple[str, float, float | None]] = []

    def work(progress: bool) -> None:
        stage("Begins")
        list(Steps("ab", title="Works", unit="batch", progress=progress))
        log = RunLog(None, progress=progress, total=1)
        log.step(1, 0.5, 0.1, 0.2, {})

    with heard_by(lambda *step: heard.append(step)):
        work(progress=True)
    assert heard == [
        ("Begins", 0, None),
        *(("Works", done, 2) for done in range(3)),
        ("Recovery: 1 update", 0, None),
        ("Recovery", 1, 1),
    ]
    assert capsys.readouterr().err == ""
    del heard[:]
    with heard_by(lambda *step: heard.append(step)):
        work(progress=False)
        other = threading.Thread(target=work, args=(False,))
        other.start()
        other.join()
    assert heard == [("Begins", 0, None)]
    work(progress=True)  # negative control: outside, nobody listens and bars are drawn
    assert heard == [("Begins", 0, None)]
    assert "Works: 100%" in capsys.readouterr().err
