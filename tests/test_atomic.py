"""Directories appear whole or not at all, whatever ends the run that writes them."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from collab_hf.checkpoint import atomic
from collab_hf.checkpoint.atomic import check_output, new_directory
from collab_hf.modeling.errors import CheckpointError


def write(target: Path, text: str, *, overwrite: bool = False) -> None:
    with new_directory(target, overwrite=overwrite) as beside:
        (beside / "config.json").write_text(text)


@pytest.fixture(scope="session")
def dead() -> int:
    """The number of a process that has ended."""
    process = multiprocessing.get_context("spawn").Process()
    process.start()
    process.join()
    assert process.pid is not None
    return process.pid


def leftover(target: Path, process: int) -> Path:
    """What a run into target leaves beside it when it is killed."""
    scratch = target.parent / f"{atomic._prefix(target)}{process}-abcdefgh"
    (scratch / "new").mkdir(parents=True)
    (scratch / "new" / "model.safetensors").write_text("half")
    return scratch


def test_a_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "model"

    def interrupted() -> None:
        with new_directory(target) as beside:
            (beside / "half").touch()
            assert not target.exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    write(target, "first")
    with pytest.raises(CheckpointError, match="exists; choose another directory or pass --overwrite"):
        write(target, "never")
    with new_directory(target, overwrite=True) as beside:
        (beside / "config.json").write_text("second")
        assert (target / "config.json").read_text() == "first"
    assert (target / "config.json").read_text() == "second"
    assert list(tmp_path.iterdir()) == [target]


def test_of_two_runs_into_one_place_the_later_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "model"

    def late() -> None:
        with new_directory(target) as beside:
            (beside / "config.json").write_text("late")
            write(target, "early")

    with pytest.raises(CheckpointError, match="appeared during this run, so"):
        late()
    assert (target / "config.json").read_text() == "early"
    assert list(tmp_path.iterdir()) == [target]


def test_of_two_overwriting_runs_the_later_stays(tmp_path: Path) -> None:
    target = tmp_path / "model"
    write(target, "old")
    with new_directory(target, overwrite=True) as beside:
        (beside / "config.json").write_text("late")
        write(target, "early", overwrite=True)
    assert (target / "config.json").read_text() == "late"
    assert list(tmp_path.iterdir()) == [target]


def test_an_interruption_between_the_two_renames_keeps_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "model"
    write(target, "old")
    rename = Path.rename

    def interrupt(path: Path, place: Path) -> Any:
        if path.name == "new":
            raise KeyboardInterrupt
        return rename(path, place)

    monkeypatch.setattr(Path, "rename", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(target, "new", overwrite=True)
    assert (target / "config.json").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_what_killed_runs_left_is_swept(tmp_path: Path, dead: int) -> None:
    target = tmp_path / "model"
    left, other, living = leftover(target, dead), leftover(tmp_path / "model2", dead), leftover(target, 1)
    own = leftover(target, os.getpid())
    check_output(target)
    assert not left.exists()
    assert other.exists()  # beside another output
    assert living.exists()
    assert own.exists()


def test_an_output_that_a_killed_run_had_moved_away_comes_back(tmp_path: Path, dead: int) -> None:
    target = tmp_path / "model"
    write(target, "old")
    left = leftover(target, dead)
    target.rename(left / "old")
    with (
        pytest.warns(UserWarning, match="model was restored: a run was killed"),
        pytest.raises(CheckpointError, match="exists; choose another directory"),
    ):
        check_output(target)
    assert (target / "config.json").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_process_that_is_killed_leaves_what_the_next_run_sweeps(tmp_path: Path) -> None:
    """With SIGKILL, which nobody can answer."""
    script = (
        "import sys, time, pathlib\nfrom collab_hf.checkpoint.atomic import new_directory\n"
        "with new_directory(pathlib.Path(sys.argv[1])) as new:\n"
        "    (new / 'half').write_text('x'); print('at work', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "model")], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        check_output(tmp_path / "model")
        assert len(list(tmp_path.iterdir())) == 1  # it lives
        process.kill()
    assert len(list(tmp_path.iterdir())) == 1
    write(tmp_path / "model", "whole")
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_end_a_command_as_an_interruption(model: Path, tmp_path: Path, number: int) -> None:
    place = tmp_path / "place"
    place.mkdir()
    # A runner in the background ignores SIGINT and SIGHUP, and its children inherit that.
    script = (
        "import signal, sys, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        "from collab_hf import cli\nimport collab_hf.checkpoint.save as save\n"
        "write = save.save_checkpoint\n"
        "def slowly(*args, **kwargs):\n    write(*args, **kwargs)\n"
        "    print('at work', flush=True, file=sys.stderr)\n    time.sleep(60)\n"
        "save.save_checkpoint = slowly\ncli.main()"
    )
    command = ["compress", str(model), "-o", str(place / "out"), "--method", "copy"]
    with subprocess.Popen(
        [sys.executable, "-c", script, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        while "at work" not in process.stderr.readline():
            assert process.poll() is None
        time.sleep(0.1)
        process.send_signal(number)
        out, errors = process.communicate(timeout=30)
    assert (process.returncode, out) == (1, "")
    assert errors.strip().splitlines()[-1] == "error: interrupted"
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda path: path.mkdir() or (path / "diary.txt").touch(),
            r"is no checkpoint .it has no config.json",
        ),
        (lambda path: path.touch(), "is a file, not a directory"),
        (lambda path: path.symlink_to(path.parent / "nowhere"), "it is a link to nothing"),
    ],
    ids=["another directory", "a file", "a dangling link"],
)
def test_only_a_checkpoint_is_overwritten(tmp_path: Path, make: Any, message: str) -> None:
    make(tmp_path / "place")
    with pytest.raises(CheckpointError, match=message):
        check_output(tmp_path / "place", overwrite=True)
    with pytest.raises(CheckpointError, match=message):
        write(tmp_path / "place", "no", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("file/inside/out", "file is a file"),
        ("link", "it is a link to nothing"),
        ("link/out", "link is a link to nothing"),
        ("n" * 300, "File name too long"),
    ],
)
def test_a_place_that_can_not_be_is_refused_before_any_work(tmp_path: Path, place: str, message: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=message):
        check_output(tmp_path / place)


def test_a_link_to_a_checkpoint_stays_a_link(tmp_path: Path) -> None:
    write(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(tmp_path / "link", "new", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "config.json").read_text() == "new"


def test_the_longest_names_work(tmp_path: Path) -> None:
    write(tmp_path / ("n" * 255), "long")
    write(tmp_path / "with [brackets]*", "odd")
    assert len(list(tmp_path.iterdir())) == 2


def test_the_original_is_not_overwritten(tmp_path: Path) -> None:
    original = tmp_path / "models" / "bert"
    original.mkdir(parents=True)
    (tmp_path / "models" / "config.json").touch()
    (original / "config.json").touch()
    for output in (original, original.parent):
        with pytest.raises(CheckpointError, match="holds the model to read from"):
            check_output(output, original=original, overwrite=True)
    check_output(original / "inside", original=original)
