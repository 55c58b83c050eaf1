"""What stands after a command was killed: nothing, the old output or the new one, never a part of one.

Kills every command that writes at random moments and at every rename, by SIGKILL, which nobody can answer;
`push`, whose output is a repository on a stand-in for the Hub, at every request too. Afterwards the output
must be absent, the complete old one, or the complete new one; the input must have its bytes; and the next run
into the same place must end well and leave nothing beside it. Commands run in forks of this process, since
imports would take longer than they do.

Example:
    python scripts/faults.py --moments 50 --seed 0
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from faults_models import COMMANDS, Command, make_models
from faults_place import HubPlace, Place, Tally, killed_at


def steps_of(place: Place) -> tuple[int, float]:
    """How many steps a command takes, and how long it takes without a kill."""
    with tempfile.NamedTemporaryFile() as counts:

        def count() -> None:
            for owner, name in place.steps:
                done = getattr(owner, name)

                def counted(*args: Any, done: Any = done, **settings: Any) -> Any:
                    with Path(counts.name).open("a") as file:
                        file.write("x")
                    return done(*args, **settings)

                setattr(owner, name, counted)

        started = time.perf_counter()
        code = place.run(count, old=bool(place.content()))
        seconds = time.perf_counter() - started
        if code != 0:
            raise RuntimeError(f"a command that nobody killed ended with {code}")
        return Path(counts.name).stat().st_size, seconds


def kills(place: Place, moments: int, chance: random.Random) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every kill of a command into one place: its name for people, and how `Place.run` does it."""
    steps, seconds = steps_of(place)
    for number in range(steps):
        for after in (False, True):

            def prepare(number: int = number, after: bool = after) -> None:
                killed_at(place.steps, number, after=after)

            yield f"{'after' if after else 'before'} step {number + 1}", {"prepare": prepare}
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
        kind = HubPlace if command.on_hub else Place
        place = kind(inputs, command, folder / ("over" if over_old else "fresh"))
        place.make_old(old=over_old)  # what the steps are counted over
        for moment, how in kills(place, share, chance):
            place.make_old(old=over_old)
            old = place.content() if over_old else None
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
