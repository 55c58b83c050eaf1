"""A picture of a report: parameters of every module before and after."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..measure.bench_plot import check_plotting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .report import CompressionReport

# Inches of a bar, and of what is above and below all of them.
_BAR, _MARGIN = 0.25, 1.2


def plot(report: CompressionReport, file: Path | None = None) -> Figure:
    """Draw bars, one a module.

    Args:
        report: what compression did.
        file: PNG to write; None for none.

    Returns:
        The figure.

    Raises:
        ConfigError: matplotlib is not installed, or the name does not end in .png.
    """
    check_plotting(file)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [site.name for site in report.sites]
    figure = Figure(figsize=(8, _MARGIN + _BAR * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.barh(names, [site.parameters[0] for site in report.sites], color="0.8", label="before")
    axes.barh(names, [site.parameters[1] for site in report.sites], height=0.5, label="after")
    axes.invert_yaxis()
    axes.set_xlabel("parameters")
    axes.set_title(
        f"{report.parameters_before:,} to {report.parameters_after:,} parameters", fontsize="small"
    )
    axes.legend(fontsize="small")
    if file is not None:
        figure.savefig(file, dpi=150)
    return figure
