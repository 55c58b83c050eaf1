"""What each head is worth: a model's metric without it, and whether the difference is more than chance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from ..errors import DataError
from ..parts.heads.gates import gated, without
from ..parts.heads.sites import Head, head_counts, head_sites
from ..progress import Steps
from .answers import Answers, Metric
from .bench_plot import check_plotting

# Resamples of the paired bootstrap: p-values down to about one in a thousand.
_RESAMPLES = 1000


@dataclass(frozen=True)
class HeadEffect:
    """What happens without a head, or with one head of its layer alone.

    Attributes:
        layer: the layer's name relative to the base model.
        head: its number.
        metric: of the model then.
        effect: metric minus the whole model's.
        p_value: of the paired bootstrap; with no tolerance of the effect being zero, else of the loss being
            no more than the tolerance.
    """

    layer: str
    head: int
    metric: float
    effect: float
    p_value: float


def ablate_heads(
    model: PreTrainedModel,
    answers: Answers,
    metric: Metric,
    *,
    all_but_one: bool = False,
    tolerance: float = 0.0,
    attention: tuple[str, ...] = (),
    seed: int = 0,
    progress: bool = False,
) -> tuple[float, list[HeadEffect]]:
    """Measure a model without each of its heads, one at a time.

    Whole and changed model are compared on the same examples, resampled with replacement.

    Args:
        model: a transformers model, dense or compressed; left as it was found.
        answers: gives the model's answers, one row an example.
        metric: of the answers of some examples, more being better.
        all_but_one: switch off the other heads of the layer instead.
        tolerance: a loss that counts for nothing, >= 0, in the metric's unit. Agreement with the model itself
            falls with every head, so that without a tolerance every head is significant.
        attention: kinds of the layers, as for `CollabConfig`; without any, all.
        seed: of the resampling.
        progress: whether to draw a progress bar on stderr.

    Returns:
        The whole model's metric, and one effect a head.

    Raises:
        FamilyError: no attention layer that collab_hf knows.
        DataError: fewer than two examples.

    Source:
        Michel, Levy, Neubig 2019, arXiv:1905.10650, section 3; Efron & Tibshirani 1993, chapter 16, for the
        paired bootstrap.
    """
    counts = head_counts(head_sites(model), attention)
    whole = answers(model)
    if len(whole) < 2:
        raise DataError(f"ablation needs at least two examples to compare on, got {len(whole)}")
    everyone = np.arange(len(whole))
    base = float(metric(whole, everyone))
    draws = np.random.default_rng(seed).integers(0, len(whole), (_RESAMPLES, len(whole)))
    bases = metric(whole, draws)
    heads = [(name, head) for name, count in counts.items() for head in range(count)]
    found = []
    for name, head in Steps(heads, title="Switching heads off", unit="head", progress=progress):
        with gated(model, without(model, _switched_off(counts, name, head, all_but_one))):
            changed = answers(model)
        value = float(metric(changed, everyone))
        p_value = _p_value(metric(changed, draws) - bases, tolerance)
        found.append(HeadEffect(name, head, value, value - base, p_value))
    return base, found


def _switched_off(counts: Mapping[str, int], name: str, head: int, all_but_one: bool) -> list[Head]:
    if not all_but_one:
        return [(name, head)]
    return [(name, other) for other in range(counts[name]) if other != head]


def _p_value(differences: NDArray[Any], tolerance: float) -> float:
    """Of the resampled differences; the observed one counts as a resample, so that no p-value is zero."""
    count = len(differences) + 1
    if tolerance > 0:
        return (1 + int((differences >= -tolerance).sum())) / count
    tail = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return min(1.0, 2 * (1 + tail) / count)


def reducible_layers(effects: Sequence[HeadEffect], level: float = 0.01) -> dict[str, HeadEffect]:
    """The layers that one head alone serves without a significant loss.

    Args:
        effects: of `ablate_heads` with all_but_one.
        level: p-values below it are significant.

    Returns:
        By layer, the best of its heads alone; layers where even that loses significantly are left out.
    """
    best: dict[str, HeadEffect] = {}
    for effect in effects:
        if effect.layer not in best or effect.metric > best[effect.layer].metric:
            best[effect.layer] = effect
    return {name: e for name, e in best.items() if e.effect >= 0 or e.p_value >= level}


def heat_map(values: Mapping[str, Sequence[float]], file: Path, *, label: str = "effect") -> None:
    """Draw one number a head, layers below each other.

    Args:
        values: by layer, one number a head; layers may have different numbers of heads.
        file: PNG to write.
        label: of the numbers.

    Raises:
        ConfigError: matplotlib is not installed, or the name does not end in .png.
    """
    check_plotting(file)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width = max(len(row) for row in values.values())
    grid = np.full((len(values), width), np.nan)
    for line, row in zip(grid, values.values(), strict=True):
        line[: len(row)] = row
    most = float(np.nanmax(np.abs(grid))) or 1.0
    signed = bool(np.nanmin(grid) < 0)
    figure = Figure(figsize=(2.5 + 0.4 * width, 1.2 + 0.35 * len(values)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colors: dict[str, Any] = {"cmap": "RdBu" if signed else "viridis", "vmin": -most if signed else 0.0}
    image = axes.imshow(grid, vmax=most, aspect="auto", **colors)
    axes.set_yticks(range(len(values)), list(values))
    axes.set_xticks(range(width))
    axes.set_xlabel("head")
    figure.colorbar(image, label=label)
    figure.savefig(file, dpi=120)


def effects_by_layer(
    effects: Sequence[HeadEffect], value: Callable[[HeadEffect], float] = lambda effect: effect.effect
) -> dict[str, list[float]]:
    """Effects as `heat_map` takes them.

    Args:
        effects: of all heads, in order.
        value: what to take of each.

    Returns:
        By layer, one number a head.
    """
    found: dict[str, list[float]] = {}
    for effect in effects:
        found.setdefault(effect.layer, []).append(value(effect))
    return found
