"""The options of one layer's query and key: every form on a grid of sizes, with its error by truncation."""

from __future__ import annotations

from collections.abc import Sequence

from ...config import CollabConfig
from ...modeling.shapes import AttentionShape, ContentBias
from ...tensors import ScoreTensor
from ..part import Option
from .methods import METHODS

# A form above this share of the dense parameters is not worth its error.
_MOST_SHARE = 0.9


def layer_options(scores: ScoreTensor, config: CollabConfig, shape: AttentionShape) -> list[Option]:
    """Every form worth a thought for one layer, dense included, none dominated by another of its kind.

    Args:
        scores: the layer's scores as the softmax sees them (`seen_scores`).
        config: the layer's settings.
        shape: sizes of the dense layer.

    Returns:
        Options by kind, and within a kind by rising size.
    """
    most = _MOST_SHARE * shape.dense_parameters
    by_kind: dict[str, list[Option]] = {}
    for option in all_options(scores, config, shape):
        if option.plan is None or option.parameters <= most:
            by_kind.setdefault(kind(option), []).append(option)
    # Sweeps lower the errors of some kinds further than those of others.
    return [option for options in by_kind.values() for option in worthwhile(options)]


def all_options(scores: ScoreTensor, config: CollabConfig, shape: AttentionShape) -> list[Option]:
    """Every form of one layer on the grid of ranks, dense first; scores are never wider than head_dim.

    Args:
        scores: the layer's scores as the softmax sees them (`seen_scores`).
        config: the layer's settings.
        shape: sizes of the dense layer.

    Returns:
        Options in no particular order.
    """
    bias: ContentBias = "exact" if config.content_bias == "exact" else "folded"
    if bias == "exact":
        scores = scores.without_bias()
    norm = float(scores.squared_norm)
    found = [Option(None, shape.dense_parameters, 0.0)]
    if norm > 0:
        for method in METHODS.values():
            for plan, squared in method.spectrum(scores, bias, cross=shape.cross):
                found.append(Option(plan, plan.num_parameters(shape), max(squared / norm, 0.0) ** 0.5))
    return found


def kind(option: Option) -> str:
    """What a form is, ranks aside."""
    return "dense" if option.plan is None else str(option.plan.form.kind(option.plan))


def worthwhile(options: Sequence[Option]) -> list[Option]:
    """Options that no other one equals or beats in size, score width and error.

    Args:
        options: forms of one layer.

    Returns:
        Some of them, by rising size.
    """
    kept: list[Option] = []
    least: dict[float, float] = {}  # error by score width, of those that are no larger

    def width(option: Option) -> float:
        return 0 if option.plan is None else option.plan.score_width

    for option in sorted(options, key=lambda o: (o.parameters, o.error, width(o))):
        widest = float("inf") if option.plan is None else option.plan.score_width
        if all(error > option.error for other, error in least.items() if other <= widest):
            kept.append(option)
            least[widest] = option.error
    return kept
