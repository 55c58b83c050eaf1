"""A model without some of its heads: which go, and what is lost on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from ..calibration.held_out import Batch
from ..modeling.kinds import checked_kinds
from ..modeling.shrinking import HeadsPlan
from ..parts.heads.orders import first_to_go, heads_left, random_order
from ..parts.heads.sites import Head, removable_heads
from ..parts.registry import HEADS
from ..planning.head_orders import kept_solutions, output_moments, pruning_order
from ..progress import Steps
from ..ranges import check_seed, check_share, check_whole


def pruning_plan(
    model: PreTrainedModel,
    batches: Iterable[Batch] | None,
    share: float,
    *,
    by: str = "compensated",
    at_least: int = 1,
    attention: tuple[str, ...] = (),
    steps: int = 1,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, HeadsPlan]:
    """Choose the heads that stay when a share of all goes.

    Args:
        model: a dense transformers model; left as it was found.
        batches: model inputs; `random` alone does without.
        share: of all heads that go, in (0, 1); of those of some kinds of attention, where these are given.
        by: as for `pruning_order`.
        at_least: heads that stay in every layer.
        attention: kinds of the layers that may lose heads, as for `CollabConfig`; without any, all.
        steps: choose in so many steps, each from what is left of the model after the one before.
        seed: of `random` and of sampled outputs.
        progress: whether to draw progress bars on stderr.

    Returns:
        The heads that stay, by layer; layers that keep all are left out.

    Raises:
        FamilyError: a model without heads that can go.
        ConfigError: a share out of its range, an unknown order or kind, or no data where an order needs some.
        RankError: more heads asked for than may go.
    """
    check_share(share)
    check_whole("steps", steps)
    check_seed(seed)
    counts = removable_heads(model, checked_kinds(attention))
    number = round(share * sum(counts.values()))
    first_to_go(random_order(counts), number, counts, at_least=at_least)  # a share that can't go, at once
    data: list[Batch] = list(batches or ())
    gone: list[Head] = []
    for step in range(1, steps + 1):
        settings: dict[str, Any] = {"by": by, "attention": attention, "seed": seed, "progress": progress}
        order = pruning_order(model, data, gone=gone, **settings)
        gone = first_to_go([*gone, *order], number * step // steps, counts, at_least=at_least)
    return {name: HeadsPlan(kept) for name, kept in heads_left(counts, gone).items()}


def pruning_curve(
    model: PreTrainedModel,
    order: Sequence[Head],
    shares: Sequence[float],
    measure: Callable[[PreTrainedModel], float],
    *,
    batches: Iterable[Batch] | None = None,
    at_least: int = 1,
    progress: bool = False,
) -> list[float]:
    """What a model is worth with more and more of its heads gone.

    Args:
        model: a dense transformers model; left as it was found.
        order: heads in the order they go, as `pruning_order` gives them.
        shares: of the heads of all layers that the order names, in [0, 1).
        measure: gives the worth of the model as it is when called.
        batches: model inputs to refit output projections on; None to take heads out and nothing else.
        at_least: heads that stay in every layer.
        progress: whether to draw a progress bar on stderr.

    Returns:
        Worths, one a share.

    Raises:
        RankError: more heads than may go.
        CalibrationError: batches that do not run.
    """
    named = {name for name, _ in order}
    counts = {name: count for name, count in removable_heads(model).items() if name in named}
    sites = {name: site for name, site in HEADS.sites(model).items() if name in counts}
    moments = None if batches is None else output_moments(sites, model, batches)
    found = []
    for share in Steps(shares, title="Pruning", unit="share", progress=progress):
        gone = first_to_go(order, round(share * sum(counts.values())), counts, at_least=at_least)
        solutions = kept_solutions(sites, heads_left(counts, gone), moments)
        with torch.no_grad(), HEADS.replaced(sites, solutions):
            found.append(measure(model))
    return found
