"""The inspection as one HTML file: plots as inline SVG, no script, nothing fetched."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..modeling.errors import ConfigError
from ..modeling.plan import LayerPlan
from ..modeling.shapes import AttentionShape
from ..parts.query_key.costs import break_even_length
from .inspection import Inspection, LayerInspection, Spectra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TEMPLATE = Path(__file__).parent / "templates" / "inspection.html"

# Inches at 72 per inch: a panel is as wide as a phone's screen less its margins, and shrinks below that.
_PANEL = (5.0, 3.4)


def require_plots() -> None:
    """Refuse to start without the packages that draw and fill in the template.

    Raises:
        ConfigError: matplotlib or jinja2 is not installed.
    """
    missing = [name for name in ("matplotlib", "jinja2") if find_spec(name) is None]
    if missing:
        raise ConfigError(f"--html needs {' and '.join(missing)}; run: pip install {' '.join(missing)}")


def render(inspection: Inspection, parts: Mapping[str, Sequence[float | None]] | None = None) -> str:
    """Draw every layer and fill in the template.

    Args:
        inspection: the layers.
        parts: by part, the divergence of the output with half of it in one layer, layer by layer; None for
            no such plot.

    Returns:
        The HTML document.

    Raises:
        ConfigError: matplotlib or jinja2 is not installed.
    """
    require_plots()
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["percent"] = lambda value: f"{value:.0%}"
    environment.globals["break_even"] = _break_even
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    layers = [{"layer": layer, "panels": _panels(layer)} for layer in inspection.layers]
    overview = [_overview(inspection)] if parts is None else [_overview(inspection), _by_part(parts)]
    return template.render(inspection=inspection, overview=overview, layers=layers)


def _break_even(plan: LayerPlan, shape: AttentionShape) -> str:
    tokens = break_even_length(plan, shape)
    return "never" if math.isinf(tokens) else f"{tokens:.0f} tokens"


def _panels(layer: LayerInspection) -> list[dict[str, str]]:
    spectra = [("the weights", layer.weights)]
    name = layer.name
    if layer.data is not None:
        spectra.append(("calibration data", layer.data))
    panels = [
        _panel(name, f"Energy in {where}", lambda axes, s=s: _draw_energy(axes, s)) for where, s in spectra
    ]
    metric, last = spectra[-1]
    panels.append(_panel(name, "Error over size", lambda axes: _draw_errors(axes, layer)))
    panels.append(
        _panel(
            name,
            f"Cosine between heads' scores, {metric}",
            lambda a: _draw_matrix(a, last.similarity, "RdBu_r", -1),
        )
    )
    panels.append(
        _panel(
            name,
            f"Key space shared by heads, {metric}",
            lambda a: _draw_matrix(a, last.key_overlap, "Greys", 0),
        )
    )
    return panels


def _panel(where: str, title: str, draw: Any) -> dict[str, str]:
    """One plot as SVG text; `where` and title together are unique in the document."""
    import matplotlib
    from matplotlib.figure import Figure

    # The same bytes for the same numbers, ids that no other plot has, and text that stays text.
    with matplotlib.rc_context({"svg.hashsalt": f"{where} {title}", "svg.fonttype": "none", "font.size": 11}):
        figure = Figure(figsize=_PANEL, layout="constrained")
        axes = figure.subplots()
        draw(axes)
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None}, transparent=True)
    svg = written.getvalue()
    return {"title": title, "svg": _without_unused_ids(svg[svg.index("<svg") :])}


def _without_unused_ids(svg: str) -> str:
    """Drop the ids that nothing in the drawing refers to: `figure_1` would stand in every one of them."""
    used = set(re.findall(r"#([\w.-]+)", svg))
    return re.sub(r' id="([^"]+)"', lambda m: m.group(0) if m.group(1) in used else "", svg)


def _draw_energy(axes: Axes, spectra: Spectra) -> None:
    for number, head in enumerate(spectra.heads):
        label = "each head alone" if number == 0 else None
        axes.plot(range(1, len(head) + 1), head, color="0.7", linewidth=0.8, label=label)
    for values, label, colour in (
        (spectra.product, "all heads, sum of their scores", "tab:blue"),
        (spectra.shared_key, "all heads, one shared key basis", "tab:orange"),
    ):
        axes.plot(range(1, len(values) + 1), values, color=colour, label=label)
    axes.set(xlabel="directions (log scale)", ylabel="energy captured", xscale="log", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=9)


def _draw_errors(axes: Axes, layer: LayerInspection) -> None:
    for kind, points in layer.curves.items():
        shares, errors = zip(*points, strict=True)
        axes.plot(shares, errors, marker=".", markersize=4, linewidth=1.2, label=kind)
    axes.set(xlabel="share of query/key parameters", ylabel="relative error", xlim=(0, 1), ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)


def _draw_matrix(axes: Axes, values: list[list[float]], colours: str, least: float) -> None:
    image = axes.imshow(values, cmap=colours, vmin=least, vmax=1)
    axes.set(xlabel="head", ylabel="head")
    axes.figure.colorbar(image, ax=axes)


def _overview(inspection: Inspection) -> dict[str, str]:
    def draw(axes: Axes) -> None:
        for share in sorted({share for layer in inspection.layers for share in layer.offers}):
            points = [
                (number, layer.offers[share].error)
                for number, layer in enumerate(inspection.layers)
                if share in layer.offers
            ]
            axes.plot(*zip(*points, strict=True), marker="o", label=f"{share:.3g} of the parameters")
        axes.set(xlabel="layer", ylabel="least relative error", ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=9)

    return _panel("overview", "Least error by layer", draw)


def _by_part(parts: Mapping[str, Sequence[float | None]]) -> dict[str, str]:
    def draw(axes: Axes) -> None:
        for part, losses in parts.items():
            points = [(number, loss) for number, loss in enumerate(losses) if loss]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", label=part)
        axes.set(xlabel="layer", ylabel="divergence of the output", yscale="log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=9)

    return _panel("parts", "Half of one part in one layer", draw)
