"""A picture of a report: parameters of every module before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..layout import Change
from ..measure.bench_plot import check_plotting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Inches of a bar, and of what is above and below all of them.
_BAR, _MARGIN = 0.25, 1.2


def plot(modules: Sequence[tuple[str, Change]], whole: Change, file: Path | None = None) -> Figure:
    """Draw bars, one a module.

    Args:
        modules: names, and parameters before and after.
        whole: parameters of the model before and after.
        file: PNG to write; None for none.

    Returns:
        The figure.

    Raises:
        ConfigError: matplotlib is not installed, or the name does not end in .png.
    """
    check_plotting(file)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [name for name, _ in modules]
    figure = Figure(figsize=(8, _MARGIN + _BAR * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.barh(names, [before for _, (before, _) in modules], color="0.8", label="before")
    axes.barh(names, [after for _, (_, after) in modules], height=0.5, label="after")
    axes.invert_yaxis()
    axes.set_xlabel("parameters")
    axes.set_title(f"{whole[0]:,} to {whole[1]:,} parameters", fontsize="small")
    axes.legend(fontsize="small")
    if file is not None:
        figure.savefig(file, dpi=150)
    return figure
