"""Which heads go, and what each is worth."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..calibration.held_out import Batch, split_batches
from ..config import CollabConfig
from ..errors import ConfigError
from ..modeling.shrinking import HeadsPlan
from ..parts.heads.gates import gated, without
from ..parts.heads.importance import score_heads
from ..parts.heads.orders import LossPath, first_to_go, heads_left, merge_paths, order_by, random_order
from ..parts.heads.sites import Head, head_counts, head_sites
from ..parts.registry import HEADS
from ..planning.measured import measure_parts

# By which heads go, the first ones first.
ORDERS = ("compensated", "importance", "random", "reverse")

# Resamples of a paired bootstrap: p-values down to one in a thousand.
_RESAMPLES = 1000


def pruning_plan(
    model: PreTrainedModel,
    batches: Iterable[Batch] | None,
    share: float,
    *,
    by: str = "compensated",
    at_least: int = 1,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, HeadsPlan]:
    """Choose the heads that stay when a share of all goes.

    Args:
        model: a dense transformers model; left as it was found.
        batches: model inputs; `random` alone does without.
        share: of all heads that go, in (0, 1).
        by: `compensated` (the optimal brain surgeon's order in each layer, layers compared by the measured
            divergence of the model's output with the output projection refitted), `importance` (least first),
            `reverse` (most important first) or `random`.
        at_least: heads that stay in every layer.
        seed: of `random` and of sampled outputs.
        progress: whether to draw progress bars on stderr.

    Returns:
        The heads that stay, by layer; layers that keep all are left out.

    Raises:
        ConfigError: a share out of its range, an unknown order, or no data where an order needs some.
        RankError: more heads asked for than may go.
    """
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        raise ConfigError(f"share must be between 0 and 1, the share of all heads that go, got {share}")
    if by not in ORDERS:
        raise ConfigError(f"by must be one of {', '.join(ORDERS)}, got {by!r}")
    counts = head_counts(head_sites(model))
    number = round(share * sum(counts.values()))
    if by != "random" and batches is None:
        raise ConfigError(f"heads are ordered by {by} on data; give --calibration, or order them by random")
    order = _order(model, list(batches or ()), counts, by, seed, progress)
    gone = first_to_go(order, number, counts, at_least=at_least)
    return {name: HeadsPlan(kept) for name, kept in heads_left(counts, gone).items()}


def _order(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    counts: Mapping[str, int],
    by: str,
    seed: int,
    progress: bool,
) -> list[Head]:
    if by == "random":
        return random_order(counts, seed)
    if by != "compensated":
        scores = score_heads(model, batches, seed=seed, progress=progress)
        return order_by(scores.importance, reverse=by == "reverse")
    seen, held = split_batches(batches)
    config = CollabConfig(seed=seed)
    measured = measure_parts(model, [HEADS.name], config, seen, held, progress=progress)
    paths = {}
    for name, curve in measured.curves[HEADS.name].items():
        trial = HEADS.trial(measured.attention[name], config, measured.outputs[name])
        losses = curve.losses_alone()[::-1]  # options rise in heads; a path begins with all of them
        paths[name] = LossPath([int(head) for head in trial.path.order], [float(loss) for loss in losses])
    return merge_paths(paths)


@dataclass(frozen=True)
class HeadEffect:
    """What happens without a head, or with one head of its layer alone.

    Attributes:
        layer: the layer's name relative to the base model.
        head: its number.
        metric: of the model then.
        effect: metric minus the whole model's.
        p_value: share of paired resamples whose difference has the other sign, twice, at most 1.
    """

    layer: str
    head: int
    metric: float
    effect: float
    p_value: float


def ablate_heads(
    model: PreTrainedModel,
    answers: Callable[[PreTrainedModel], NDArray[Any]],
    metric: Callable[[NDArray[Any], NDArray[np.intp]], float],
    *,
    all_but_one: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> tuple[float, list[HeadEffect]]:
    """Measure a model without each of its heads, one at a time.

    Args:
        model: a transformers model, dense or compressed; left as it was found.
        answers: gives the model's answers, one row an example.
        metric: of the answers of some examples, by their numbers.
        all_but_one: switch off the other heads of the layer instead.
        seed: of the resampling.
        progress: whether to draw a progress bar on stderr.

    Returns:
        The whole model's metric, and one effect a head.

    Source:
        Michel, Levy, Neubig 2019, arXiv:1905.10650, section 3; Efron & Tibshirani 1993, chapter 16, for the
        paired bootstrap.
    """
    counts = head_counts(head_sites(model))
    whole = answers(model)
    everyone = np.arange(len(whole))
    base = metric(whole, everyone)
    draws = np.random.default_rng(seed).integers(0, len(whole), (_RESAMPLES, len(whole)))
    bases = np.array([metric(whole, draw) for draw in draws])
    heads = [(name, head) for name, count in counts.items() for head in range(count)]
    found = []
    for name, head in tqdm(heads, desc="Ablating", unit="head", disable=not progress):
        off = _others(counts, name, head) if all_but_one else [(name, head)]
        with gated(model, without(model, off)):
            changed = answers(model)
        value = metric(changed, everyone)
        differences = np.array([metric(changed, draw) for draw in draws]) - bases
        tail = min((differences <= 0).mean(), (differences >= 0).mean())
        found.append(HeadEffect(name, head, value, value - base, min(1.0, 2 * float(tail))))
    return base, found


def _others(counts: Mapping[str, int], name: str, head: int) -> list[Head]:
    return [(name, other) for other in range(counts[name]) if other != head]


def by_layer(effects: Iterable[HeadEffect]) -> Iterator[tuple[str, list[HeadEffect]]]:
    """Effects of the heads of each layer."""
    found: dict[str, list[HeadEffect]] = {}
    for effect in effects:
        found.setdefault(effect.layer, []).append(effect)
    yield from found.items()
