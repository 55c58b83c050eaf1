"""A picture of a benchmark: throughput ratio over length, one line per batch size, dtype and thread count."""

from __future__ import annotations

import importlib.util
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ..modeling.errors import ConfigError
from .bench import Measurement


def check_plotting(file: Path | None) -> None:
    """Refuse a plot that can't be made, before anything is measured.

    Args:
        file: where it is to go; None where it is not written.

    Raises:
        ConfigError: matplotlib is not installed, or the name does not end in .png.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("a plot needs matplotlib; install it with `pip install matplotlib`")
    if file is not None and file.suffix.lower() != ".png":
        raise ConfigError(f"a plot is a .png file, got {file.name!r}")


def plot(measurements: Sequence[Measurement], file: Path) -> None:
    """Draw throughput ratios with their quartiles; ratios that were not measured are hollow.

    Args:
        measurements: at least one.
        file: PNG to write.

    Raises:
        ConfigError: matplotlib is not installed, or the name does not end in .png.
    """
    check_plotting(file)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines: dict[str, list[Measurement]] = defaultdict(list)
    for one in measurements:
        case = one.case
        lines[f"batch {case.batch_size}, {case.dtype}, {case.threads} threads"].append(one)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, line in lines.items():
        line.sort(key=lambda one: one.case.length)
        ratios = [one.timing.throughput for one in line]
        lengths = [one.case.length for one in line]
        middles = [ratio.median for ratio in ratios]
        spread = [[r.median - r.low for r in ratios], [r.high - r.median for r in ratios]]
        bars = axes.errorbar(lengths, middles, spread, label=name, capsize=3, linewidth=1)
        color = bars.lines[0].get_color()
        faces = [color if ratio.measured else "white" for ratio in ratios]
        axes.scatter(lengths, middles, c=faces, edgecolors=color, zorder=3)
    axes.axhline(1.0, color="gray", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("tokens an example")
    axes.set_ylabel("throughput, compressed over original")
    axes.set_title("median and quartiles; hollow: no difference measured", fontsize="small")
    axes.legend(fontsize="small")
    figure.savefig(file, dpi=150)
