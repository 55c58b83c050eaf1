"""Where `faults.py` has commands write, how it kills them, and what it sees afterwards."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import huggingface_hub

from faults_models import Command, is_complete, tree

# A run that hangs is a fault too; without a kill the slowest takes some seconds.
_LONGEST = 300.0


@dataclass
class Tally:
    """What was seen of one command.

    Attributes:
        kills: runs that were killed.
        seen: what stood afterwards, how often.
        swept: kills that left something beside the output, which the next run then removed.
        faults: sentences, none of which should be there.
    """

    kills: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    swept: int = 0
    faults: list[str] = field(default_factory=list)


def forked(work: Callable[[], int], log: Path, kill_after: float | None = None) -> int | None:
    """Run something in a fork of this process.

    Args:
        work: gives the exit code.
        log: where its stdout and stderr go.
        kill_after: seconds until SIGKILL; None to let it end.

    Returns:
        The exit code, or None where a signal ended it.

    Raises:
        RuntimeError: it did not end.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(sink, 1)
            os.dup2(sink, 2)
            code = work()
        finally:
            sys.stdout.flush()
            os._exit(code)
    started = time.perf_counter()
    limit = _LONGEST if kill_after is None else kill_after
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        if time.perf_counter() - started > limit:
            os.kill(child, signal.SIGKILL)
            if kill_after is None:
                raise RuntimeError(f"a command did not end in {_LONGEST:g} s; {log} has what it said")
        time.sleep(0.001)


def killed_at(steps: list[tuple[Any, str]], number: int, *, after: bool) -> None:
    """Make this process end itself at its n-th step.

    Args:
        steps: functions by their owner and name; each call of one is a step.
        number: of the step, from 0.
        after: whether the step is still done.
    """
    count = 0

    def wrapped(step: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*args: Any, **settings: Any) -> Any:
            nonlocal count
            count += 1
            if count - 1 == number and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = step(*args, **settings)
            if count - 1 == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return stepped

    for owner, name in steps:
        setattr(owner, name, wrapped(getattr(owner, name)))


class Place:
    """A directory with the inputs of all commands, where one command writes.

    Args:
        inputs: the models and the text.
        command: what runs.
        folder: to write in; it is made.
    """

    def __init__(self, inputs: Path, command: Command, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._inputs, self._command, self._folder = inputs, command, folder
        self._log = folder.parent / "log.txt"
        self._output = folder / command.output
        self._before = tree(inputs)

    @property
    def steps(self) -> list[tuple[Any, str]]:
        """The functions, by owner and name, that a kill can come before or after."""
        return [(os, "rename"), (os, "replace")]

    def run(
        self, prepare: Callable[[], None] = lambda: None, *, old: bool = False, after: float | None = None
    ) -> int | None:
        """Run the command, perhaps over an old output; the exit code, or None where it was killed."""

        def work() -> int:
            from collab_hf import cli

            prepare()
            return cli.run(self._words(old))

        return forked(work, self._log, after)

    def _words(self, old: bool) -> list[str]:
        return [*self._command.words(self._inputs, self._output), *(["--overwrite"] if old else [])]

    def make_old(self, *, old: bool) -> None:
        """Leave an older output there, made by other words, or nothing."""
        self._command.make_old(self._inputs, self._output, old=old)

    def content(self) -> dict[str, bytes]:
        """The output's files; none where it is absent."""
        return tree(self._output) if os.path.lexists(self._output) else {}

    def state(self, old: dict[str, bytes] | None) -> str:
        """What stands there: `absent`, `old`, `new`, or what is wrong with it."""
        if not os.path.lexists(self._output):
            return "absent"
        if old is not None and self.content() == old:
            return "old"
        return "new" if is_complete(self._command, self._output) else "a part"

    def others(self) -> list[str]:
        """What lies beside the output."""
        return sorted(p.name for p in self._folder.iterdir() if p != self._output)

    def judge(self, tally: Tally, old: dict[str, bytes] | None, moment: str) -> None:
        """Look at what a kill left, run again, and look at that."""
        tally.kills += 1
        state = self.state(old)
        tally.seen[state] += 1
        left = self.others()
        if state == "a part":
            tally.faults.append(f"{moment}: the output is incomplete")
        code = self.run(old=True)
        if code != 0:
            said = self._log.read_text(errors="replace").strip().splitlines()[-1:]
            tally.faults.append(f"{moment}: the next run ended with {code}: {' '.join(said)}")
        elif (again := self.state(None)) != "new":
            tally.faults.append(f"{moment}: the next run's output is {again}")
        if self.others():
            tally.faults.append(f"{moment}: the next run left {', '.join(self.others())}")
        tally.swept += bool(left) and not self.others()
        if tree(self._inputs) != self._before:
            tally.faults.append(f"{moment}: the input was changed")


class HubPlace(Place):
    """A repository on a stand-in for the Hub, where `push` writes; a kill can come at each request too."""

    @property
    def steps(self) -> list[tuple[Any, str]]:
        """Renames and requests; which HTTP client sends these is huggingface_hub's to choose."""
        return [*super().steps, (type(huggingface_hub.get_session()), "send")]

    def _words(self, old: bool) -> list[str]:
        # In the fork, whose requests alone may leave it.
        huggingface_hub.constants.HF_HUB_OFFLINE = False
        os.environ["HF_TOKEN"] = _hub_module().TOKEN
        return self._command.words(self._inputs, self._output)

    def make_old(self, *, old: bool) -> None:
        """Leave a repository with an older model on the Hub, or none."""
        _hub().reset()
        if old:
            files = {**tree(self._inputs / "older"), "model-00001-of-00002.safetensors": b"older weights"}
            _hub().repositories["me/model"] = _hub_module().Repository(branches={"main": files})

    def content(self) -> dict[str, bytes]:
        """The repository's files; none where it has had no commit."""
        repository = _hub().repositories.get("me/model")
        return {} if repository is None else dict(repository.branches["main"])

    def state(self, old: dict[str, bytes] | None) -> str:
        """What the repository has: `absent`, `old`, `new`, or `a part`."""
        files = self.content()
        if not files or files == old:
            return "old" if files else "absent"
        if {name for name in files if name.endswith(".safetensors")} != {"model.safetensors"}:
            return "a part"  # or more than one model
        with tempfile.TemporaryDirectory() as place:
            for name, data in files.items():
                (Path(place) / name).write_bytes(data)
            return "new" if is_complete(self._command, Path(place)) else "a part"


@cache
def _hub_module() -> Any:
    sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
    return importlib.import_module("hub_server")


@cache
def _hub() -> Any:
    """The stand-in of the tests, which answers from a thread of this process."""
    return _hub_module().HubServer().__enter__()
