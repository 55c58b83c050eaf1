"""Try collab_hf with other versions of the libraries that it needs, and print a table.

    python scripts/compatibility.py --markdown docs/benchmarks/compatibility.md

Each version is laid over the environment that runs this: it goes into a directory of its own, with what it
needs and the environment lacks, and that directory comes first on PYTHONPATH. So nothing is installed into
the environment, and a version costs a minute. Another torch is gigabytes and is not tried.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer
from packaging.requirements import Requirement
from packaging.version import Version

from compatibility_steps import NOT_TRIED, STEPS

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("transformers", "torch", "huggingface_hub", "tensorly", "typer")
SECONDS = 600

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def bounds() -> dict[str, Version]:
    """The lowest version of each library that pyproject.toml admits."""
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    found = {}
    for requirement in map(Requirement, settings["project"]["dependencies"]):
        if requirement.name in PACKAGES:
            found[requirement.name] = Version(next(iter(requirement.specifier)).version)
    return found


def released(package: str) -> list[Version]:
    """Releases of a library, the oldest first.

    Args:
        package: its name.

    Returns:
        Versions without pre-releases.
    """
    command = [sys.executable, "-m", "pip", "index", "versions", package]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    line = next(line for line in answer.splitlines() if line.startswith("Available versions:"))
    return sorted(Version(word.strip()) for word in line.partition(":")[2].split(","))


def chosen(package: str, below: int) -> list[Version]:
    """Which versions to try: the lowest and the newest, for torch the one that is here too.

    Args:
        package: a name in `PACKAGES`.
        below: for transformers, how many of the minor versions below the bound.

    Returns:
        Versions, the oldest first.
    """
    lowest = bounds()[package]
    versions = released(package)
    allowed = [version for version in versions if version >= lowest]
    older: dict[tuple[int, int], Version] = {}
    if package == "transformers":
        older = {(v.major, v.minor): v for v in versions if v < lowest}
    tried = {*list(older.values())[len(older) - below :], allowed[0], allowed[-1]}
    if package == "torch":
        tried.add(Version(Version(metadata.version(package)).public))
    return sorted(tried)


def lay_over(place: Path, package: str, version: Version) -> None:
    """Put a version of a library, and what it needs that is not here, into a directory.

    Args:
        place: the directory.
        package: the library's name.
        version: the version.
    """
    if not place.exists():
        _install(place, ["--no-deps", f"{package}=={version}"])
    unmet = list(_unmet(place))
    if unmet:
        names = {requirement.name.replace("-", "_").lower() for requirement in unmet}
        kept = place.with_suffix(".txt")
        present = {d.name: d.version for d in metadata.distributions() if "+" not in d.version}
        kept.write_text(
            "".join(f"{n}=={v}\n" for n, v in present.items() if n.replace("-", "_").lower() not in names),
            encoding="utf-8",
        )
        _install(place, ["--upgrade", "--constraint", str(kept), *map(str, unmet)])


def _install(place: Path, arguments: list[str]) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(place), *arguments]
    subprocess.run(command, check=True, stdout=sys.stderr)


def _unmet(place: Path) -> Iterable[Requirement]:
    here = {d.name: d.version for d in metadata.distributions(path=[str(place)])}
    for distribution in metadata.distributions(path=[str(place)]):
        for requirement in map(Requirement, distribution.requires or ()):
            if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
                continue
            found = here.get(requirement.name) or _version(requirement.name)
            if found is None or not requirement.specifier.contains(found):
                yield requirement


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def try_steps(place: Path | None) -> dict[str, str | None]:
    """Run every step in a process that finds the directory's libraries first.

    Args:
        place: the directory; None for the environment as it is.

    Returns:
        What went wrong by step; None where nothing did.
    """
    places = [str(p) for p in (place, REPOSITORY) if p is not None]
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts" / "compatibility_steps.py")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places), "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, check=False, timeout=SECONDS,
    )  # fmt: skip
    found: dict[str, str | None] = dict(
        json.loads(line) for line in done.stdout.splitlines() if line[:1] == "["
    )
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return {step: found.get(step, last) for step in STEPS}


def row(package: str, version: Version, scratch: Path) -> tuple[list[str], list[str]]:
    """One line of the table.

    Args:
        package: the library.
        version: the version.
        scratch: where overlays are kept.

    Returns:
        Its cells, and what went wrong in sentences.
    """
    installed = Version(metadata.version(package)).public == version.public
    if package == "torch" and not installed:
        return [package, str(version), *[NOT_TRIED] * len(STEPS)], []
    place = scratch / f"{package}-{version}"
    if not installed:
        lay_over(place, package, version)
    results = try_steps(None if installed else place)
    cells, notes = [], []
    for step, problem in results.items():
        tried = problem != NOT_TRIED
        cells.append(("yes" if problem is None else "no") if tried else NOT_TRIED)
        if problem is not None and tried:
            notes.append(f"- {package} {version}, {step}: `{problem}`")
    return [package, str(version), *cells], notes


@app.command()
def main(
    only: Annotated[str, typer.Option(help="Libraries to vary, separated by commas.")] = ",".join(PACKAGES),
    below: Annotated[int, typer.Option(help="Minor versions below transformers' bound to try too.")] = 1,
    overlays: Annotated[
        Path | None, typer.Option(help="Where to keep the directories for another run.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Page to write the table to.")] = None,
) -> None:
    """Print the table, line by line."""
    header = ["library", "version", *STEPS]
    lines, notes = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)], []
    with tempfile.TemporaryDirectory() as scratch:
        for package in only.split(","):
            for version in chosen(package, below):
                cells, problems = row(package, version, (overlays or Path(scratch)).absolute())
                lines.append("| " + " | ".join(cells) + " |")
                notes += problems
                typer.echo(lines[-1])
    for note in notes:
        typer.echo(note)
    if markdown is not None:
        markdown.write_text(page(lines, notes), encoding="utf-8")


def page(lines: list[str], notes: list[str]) -> str:
    """The page of the documentation.

    Args:
        lines: of the table.
        notes: what went wrong.

    Returns:
        Markdown.
    """
    here = ", ".join(f"{package} {metadata.version(package)}" for package in PACKAGES)
    lowest = ", ".join(f"{package} {version}" for package, version in bounds().items())
    failed = "\n## What went wrong\n\n" + "\n".join(notes) + "\n" if notes else ""
    return f"""# Compatibility

collab_hf needs at least {lowest}. It says so in one sentence when it is imported with an older transformers.

The table was made on {datetime.now(UTC):%Y-%m-%d} by `scripts/compatibility.py`, with Python
{platform.python_version()} and {here}, of which one library at a time was exchanged for the version in
the line.

{chr(10).join(lines)}

The columns, each on small random BERT, ALBERT, ViT, DeiT and DINOv2 models: the import; compression in
place; hidden states and attention weights of what was compressed; saving and reloading by AutoModel to the
same bits; `collab-hf verify`, which loads in fresh processes with collab_hf and without it; the command's
help and errors. What comes after a step that failed is not tried.
{failed}"""


if __name__ == "__main__":
    app()
