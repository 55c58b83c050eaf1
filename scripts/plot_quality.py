"""Draw quality over size from the table of docs/benchmarks/decomposition.md, for the guides.

Example:
    python scripts/plot_quality.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DOCS = Path(__file__).resolve().parent.parent / "docs"

# Lines of the plot: the table's form and source, and how the legend calls them.
LINES = {
    ("tied tucker", "reconstructed"): "tied tucker, fitted to the attention output",
    ("cp", "reconstructed"): "cp, fitted to the attention output",
    ("tied tucker", "data"): "tied tucker, from calibration data",
    ("svd", "data"): "svd of each head, from calibration data",
    ("parafac", "weights"): "parafac of the weights (the paper)",
}


def read_points(page: str) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """The kept share and the relative Spearman correlation of MiniLM, by form and source.

    Args:
        page: the text of the page.

    Returns:
        Points of (share of the query/key parameters, share of the original's correlation).
    """
    table = page.partition("**all-MiniLM-L6-v2**")[2].partition("**DINOv2")[0]
    found = {}
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 6 and "/" in cells[2] and cells[2][0].isdigit():
            kept, relative = (list(map(float, cells[column].split("/"))) for column in (2, 4))
            found[cells[0], cells[1]] = list(zip(kept, relative, strict=True))
    return found


def draw(points: dict[tuple[str, str], list[tuple[float, float]]], file: Path) -> None:
    """Draw the plot; the same points give the same file.

    Args:
        points: of `read_points`.
        file: an SVG file.
    """
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for key, label in LINES.items():
        kept, relative = zip(*points[key], strict=True)
        axes.plot([100 * x for x in kept], [100 * y for y in relative], marker="o", label=label)
    axes.set_xlabel("query/key parameters kept (%)")
    axes.set_ylabel("STS-B Spearman (% of the original)")
    axes.set_title("all-MiniLM-L6-v2, the same budget in every layer")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    # Text stays text, and names of elements do not change from run to run.
    with matplotlib.rc_context({"svg.hashsalt": "collab_hf", "svg.fonttype": "none"}):
        figure.savefig(file, metadata={"Date": None})


def main(
    out: Annotated[Path, typer.Option(help="SVG file to write.")] = DOCS / "guides" / "quality.svg",
) -> None:
    """Draw quality over size from the table of the benchmarks."""
    page = (DOCS / "benchmarks" / "decomposition.md").read_text(encoding="utf-8")
    draw(read_points(page), out)


if __name__ == "__main__":
    typer.run(main)
