"""The plot of the guides has the figures of the benchmarks."""

import re
from pathlib import Path

from conftest import REPOSITORY

from plot_quality import LINES, draw, read_points

PAGE = (REPOSITORY / "docs" / "benchmarks" / "decomposition.md").read_text(encoding="utf-8")


def test_points_are_the_tables() -> None:
    points = read_points(PAGE)
    assert set(LINES) <= set(points)
    assert all(len(points[key]) == 3 for key in LINES)
    kept, relative = points["tied tucker", "reconstructed"][1]
    row = next(line for line in PAGE.splitlines() if line.startswith("| tied tucker | reconstructed"))
    assert f"{kept:.4f}" in row.split("|")[3]
    assert f"{relative:.4f}" in row.split("|")[5]


def test_another_table_gives_other_points() -> None:
    """Negative control of the above."""
    assert read_points(PAGE.replace("0.9984", "0.5984")) != read_points(PAGE)


def test_the_same_points_give_the_same_file(tmp_path: Path) -> None:
    first, second = tmp_path / "first.svg", tmp_path / "second.svg"
    draw(read_points(PAGE), first)
    draw(read_points(PAGE), second)
    assert first.read_bytes() == second.read_bytes()
    assert "query/key parameters kept" in first.read_text()


def test_the_guides_have_the_present_plot(tmp_path: Path) -> None:
    draw(read_points(PAGE), tmp_path / "now.svg")
    kept = REPOSITORY / "docs" / "guides" / "quality.svg"
    assert points_of(kept) == points_of(tmp_path / "now.svg") != []


def points_of(file: Path) -> list[str]:
    """Where the markers are; other versions of matplotlib write other files."""
    return re.findall(r"<use [^>]*x=\"[0-9.]+\" y=\"[0-9.]+\"", file.read_text())
