"""What stands after a command was killed: nothing, the old output or the new one, never a part of one.

Kills every command that writes at random moments and at every rename, by SIGKILL, which nobody can answer.
Afterwards the output must be absent, the complete old one, or the complete new one; the input must have its
bytes; and the next run into the same place must end well and leave nothing beside it. Commands run in forks
of this process, since imports would take longer than they do.

Example:
    python scripts/faults.py --moments 50 --seed 0
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from faults_models import COMMANDS, Command, is_complete, make_models, tree

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


def killed_at(number: int, *, after: bool) -> None:
    """Make this process end itself at its n-th rename.

    Args:
        number: of the rename, from 0.
        after: whether the rename is still done.
    """
    count = 0

    def wrapped(rename: Callable[..., Any]) -> Callable[..., Any]:
        def renamed(*args: Any, **settings: Any) -> Any:
            nonlocal count
            count += 1
            if count - 1 == number and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = rename(*args, **settings)
            if count - 1 == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return renamed

    os.rename, os.replace = wrapped(os.rename), wrapped(os.replace)


class Place:
    """A directory with the inputs of all commands, where one command writes.

    Args:
        inputs: the models and the text.
        command: what runs.
        folder: an empty directory to write in.
    """

    def __init__(self, inputs: Path, command: Command, folder: Path) -> None:
        self._inputs, self._command, self._folder = inputs, command, folder
        self._log = folder.parent / "log.txt"
        self.output = folder / command.output
        self._before = tree(inputs)

    def run(
        self, prepare: Callable[[], None] = lambda: None, *, old: bool = False, after: float | None = None
    ) -> int | None:
        """Run the command, perhaps over an old output; the exit code, or None where it was killed."""

        def work() -> int:
            from collab_hf import cli

            prepare()
            return cli.run(
                [*self._command.words(self._inputs, self.output), *(["--overwrite"] if old else [])]
            )

        return forked(work, self._log, after)

    def state(self, old: dict[str, bytes] | None) -> str:
        """What stands there: `absent`, `old`, `new`, or what is wrong with it."""
        if not os.path.lexists(self.output):
            return "absent"
        if old is not None and tree(self.output) == old:
            return "old"
        return "new" if is_complete(self._command, self.output) else "a part"

    def others(self) -> list[str]:
        """What lies beside the output."""
        return sorted(p.name for p in self._folder.iterdir() if p != self.output)

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


def renames_of(place: Place) -> tuple[int, float]:
    """How often a command renames something, and how long it takes without a kill."""
    with tempfile.NamedTemporaryFile() as counts:

        def count() -> None:
            for name in ("rename", "replace"):
                done = getattr(os, name)

                def counted(*args: Any, done: Any = done, **settings: Any) -> Any:
                    with Path(counts.name).open("a") as file:
                        file.write("x")
                    return done(*args, **settings)

                setattr(os, name, counted)

        started = time.perf_counter()
        code = place.run(count, old=os.path.lexists(place.output))
        seconds = time.perf_counter() - started
        if code != 0:
            raise RuntimeError(f"a command that nobody killed ended with {code}")
        return Path(counts.name).stat().st_size, seconds


def kills(place: Place, moments: int, chance: random.Random) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every kill of a command into one place: its name for people, and how `Place.run` does it."""
    renames, seconds = renames_of(place)
    for number in range(renames):
        for after in (False, True):

            def prepare(number: int = number, after: bool = after) -> None:
                killed_at(number, after=after)

            yield f"{'after' if after else 'before'} rename {number + 1}", {"prepare": prepare}
    for _ in range(moments):
        moment = chance.uniform(0, seconds)
        yield f"at {moment:.2f} of {seconds:.2f} s", {"after": moment}


def measure(inputs: Path, command: Command, folder: Path, moments: int, seed: int) -> Tally:
    """Kill one command again and again, half of the random moments over an old output.

    Args:
        inputs: the models and the text.
        command: what runs.
        folder: an empty directory.
        moments: random ones.
        seed: of the moments.

    Returns:
        What was seen.
    """
    tally, chance = Tally(), random.Random(seed)
    for over_old, share in ((False, moments - moments // 2), (True, moments // 2)):
        place = Place(inputs, command, folder / ("over" if over_old else "fresh"))
        place.output.parent.mkdir(parents=True)
        for moment, how in kills(place, share, chance):
            # An output that is there is not the run's to come: an older one, made by other words.
            command.make_old(inputs, place.output, old=over_old)
            old = tree(place.output) if over_old else None
            if place.run(old=over_old, **how) is None:
                place.judge(tally, old, f"{moment}{' over an old output' if over_old else ''}")
            else:
                tally.seen["ended before the kill"] += 1
    return tally


def main(
    moments: Annotated[int, typer.Option(min=0, help="Random moments for each command.")] = 50,
    seed: Annotated[int, typer.Option(help="Seed of the moments.")] = 0,
    only: Annotated[list[str] | None, typer.Option(help="Names of the commands; all without.")] = None,
) -> None:
    """Kill commands and print a table of what stood afterwards; exit code 1 where a fault was found.

    Args:
        moments: random moments for each command.
        seed: of the moments.
        only: names of the commands.

    Raises:
        Exit: with code 1, where a fault was found.
    """
    started = time.perf_counter()
    states = ("absent", "old", "new")
    print("| command | kills | " + " | ".join(states) + " | leftovers swept | faults |")
    print("|---|---|---|---|---|---|---|")
    faults = []
    with tempfile.TemporaryDirectory() as scratch:
        inputs = make_models(Path(scratch) / "inputs")
        for name, command in COMMANDS.items():
            if only and name not in only:
                continue
            tally = measure(inputs, command, Path(scratch) / name.replace(" ", "-"), moments, seed)
            counts = " | ".join(str(tally.seen[state]) for state in states)
            print(f"| {name} | {tally.kills} | {counts} | {tally.swept} | {len(tally.faults)} |", flush=True)
            faults += [f"{name}: {fault}" for fault in tally.faults]
    print(f"\nseed {seed}, {moments} random moments a command, {time.perf_counter() - started:.0f} s")
    print("\n".join(faults))
    if faults:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
