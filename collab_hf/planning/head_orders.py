"""In which order the heads of a model go: by importance, by what was measured, or compensated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..calibration.held_out import Batch, split_batches
from ..calibration.linear_inputs import linear_moments
from ..errors import CalibrationError, ConfigError
from ..host.sites import AttentionSites
from ..modeling.shrinking import HeadsPlan
from ..parts.heads.gates import gated, without
from ..parts.heads.importance import score_heads
from ..parts.heads.orders import (
    LossPath,
    first_to_go,
    heads_left,
    merge_paths,
    order_by,
    random_order,
)
from ..parts.heads.sites import KINDS, Head, Kind, head_counts, head_sites
from ..parts.registry import HEADS
from ..parts.shrunk import Shrunk
from ..tensors.moments import Moments
from .divergence import Divergence

Order = Literal["importance", "compensated", "random", "reverse", "oracle"]
ORDERS: tuple[Order, ...] = get_args(Order)

# Of a layer's heads that are gone where its divergence is measured. Measured at a quarter, a half and three
# quarters instead, the orders of MiniLM and DINOv2 came out within a hundredth of the same divergence.
_MEASURED_SHARE = 0.5


def choose_heads(
    model: PreTrainedModel,
    share: float,
    batches: Sequence[Batch] = (),
    *,
    by: Order = "compensated",
    kinds: tuple[Kind, ...] = KINDS,
    at_least: int = 1,
    steps: int = 1,
    scores: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> list[Head]:
    """Choose the heads that go, over all layers together.

    Args:
        model: a dense transformers model; left as it was found.
        share: of all heads of these kinds, in [0, 1).
        batches: model inputs, of which every fourth example, 64 at most, is for measuring and the others for
            statistics and gradients; `random` needs none. With labels, importance goes by the loss on them.
        by: `importance`, lowest first; `reverse`, highest first; `random`; `oracle`, by the divergence that
            each head makes when it alone is off; or `compensated`, by what it loses once the output
            projection is refitted to the other heads.
        kinds: of attention whose heads may go.
        at_least: heads that stay in every layer.
        steps: choose in so many steps, each from what is left of the model after the one before.
        scores: importances by layer, to spare their computation; for the first step of `importance` and
            `reverse`.
        seed: of the random order, and of outputs sampled for importance.
        progress: whether to draw progress bars on stderr.

    Returns:
        Heads in the order they go.

    Raises:
        FamilyError: no attention layer that collab_hf knows, or none of these kinds.
        ConfigError: an unknown order, or a share or number of steps out of range.
        RankError: more heads than may go.
        CalibrationError: no batches where they are needed, or batches that do not run.
    """
    if by not in ORDERS:
        raise ConfigError(f"by must be one of {', '.join(ORDERS)}, got {by!r}")
    if not 0 <= share < 1:
        raise ConfigError(f"share must be at least 0 and below 1, got {share}")
    if steps < 1:
        raise ConfigError(f"steps must be at least 1, got {steps}")
    counts = head_counts(head_sites(model), kinds)
    number = round(share * sum(counts.values()))
    gone: list[Head] = []
    first_to_go(random_order(counts), number, counts, at_least=at_least)  # a number that can't be, right away
    rank = _ranking(model, by, list(batches), counts, scores, seed, progress)
    for step in range(1, steps + 1):
        order = [head for head in rank(gone) if head not in set(gone)]
        gone = first_to_go([*gone, *order], number * step // steps, counts, at_least=at_least)
    return gone


Ranking = Callable[[Sequence[Head]], list[Head]]


def _ranking(
    model: PreTrainedModel,
    by: Order,
    batches: list[Batch],
    counts: Mapping[str, int],
    scores: Mapping[str, Tensor] | None,
    seed: int,
    progress: bool,
) -> Ranking:
    """A function that ranks what is left once some heads are gone."""
    if by == "random":
        return lambda gone: random_order(counts, seed)
    if not batches and scores is None:
        raise CalibrationError(f"the order {by} needs batches of model inputs, got none")
    seen, held = split_batches(batches)
    if by == "oracle":
        divergence = Divergence(model, held)
        return lambda gone: order_by(_effects(model, divergence, counts, gone, progress))
    if by == "compensated":
        return lambda gone: merge_paths(compensated_paths(model, seen, held, counts, gone, progress=progress))

    def by_importance(gone: Sequence[Head]) -> list[Head]:
        found = scores
        if found is None or gone:
            gates = without(model, gone)
            settings: dict[str, Any] = {"normalize": False, "seed": seed, "progress": progress}
            found = score_heads(model, seen, gates=gates, **settings).importance
        return order_by({name: found[name] for name in counts}, reverse=by == "reverse")

    return by_importance


def _effects(
    model: PreTrainedModel,
    divergence: Divergence,
    counts: Mapping[str, int],
    gone: Sequence[Head],
    progress: bool,
) -> dict[str, list[float]]:
    """Divergence by layer and head, with that head off beside those that are gone."""
    found: dict[str, list[float]] = {name: [] for name in counts}
    heads = [(name, head) for name, count in counts.items() for head in range(count)]
    for name, head in tqdm(heads, desc="Ablating", unit="head", disable=not progress):
        with gated(model, without(model, [*gone, (name, head)])):
            found[name].append(divergence.measure())
    return found


def output_moments(
    model: nn.Module, sites: AttentionSites, batches: Sequence[Batch], *, progress: bool = False
) -> dict[str, Moments]:
    """Moments of what output projections read, all heads side by side.

    Args:
        model: a transformers model.
        sites: its attention layers.
        batches: model inputs.
        progress: whether to draw a progress bar on stderr.

    Returns:
        Moments by layer.

    Raises:
        CalibrationError: calibration data that is empty or does not run.
    """
    layers = {name: HEADS.output(site) for name, site in sites.items()}
    return linear_moments(model, layers, batches, progress=progress)


def compensated_paths(
    model: PreTrainedModel,
    seen: Sequence[Batch],
    held_out: Sequence[Batch],
    counts: Mapping[str, int],
    gone: Sequence[Head] = (),
    *,
    progress: bool = False,
) -> dict[str, LossPath]:
    """The optimal brain surgeon's order of each layer's heads, with losses that compare across layers.

    The surgeon's errors are relative to the variance of each layer's own output, which says nothing of how
    much the model hangs on it. So half of a layer's heads are taken out, the output projection is refitted,
    and the divergence of the model's output over the layer's error is what one unit of its error costs.

    Args:
        model: a dense transformers model; left as it was found.
        seen: model inputs for the moments.
        held_out: model inputs to measure the divergence on.
        counts: heads of the layers that may lose some.
        gone: heads that are out already, with the output projections refitted.
        progress: whether to draw progress bars on stderr.

    Returns:
        Paths by layer, of the heads that are left; one head of each is not in it.

    Raises:
        FamilyError: a model that is compressed already.
        CalibrationError: batches that do not run.
        DecompositionError: weights or moments that are not finite.
    """
    sites = {name: site for name, site in HEADS.sites(model).items() if name in counts}
    left = {name: tuple(range(count)) for name, count in counts.items()}
    divergence = Divergence(model, held_out)
    state: AbstractContextManager[None] = nullcontext()
    if gone:
        left |= heads_left(counts, gone)
        state = HEADS.replaced(sites, kept_solutions(model, sites, gone, counts, seen))
    with state:
        sites = {name: replace(site, shape=site.family.shape(site.module)) for name, site in sites.items()}
        moments = output_moments(model, sites, seen, progress=progress)
        base = divergence.measure() if gone else 0.0
        paths = {}
        for name, site in tqdm(sites.items(), desc="Measuring", unit="layer", disable=not progress):
            trial = HEADS.trial(site, moments[name])
            order, errors = trial.path.order.tolist(), trial.path.errors.tolist()
            if not order:
                continue
            number = max(1, round(_MEASURED_SHARE * len(left[name])))
            kept = next(
                iter(heads_left({name: len(left[name])}, [(name, h) for h in order[:number]]).values())
            )
            with HEADS.replaced(sites, {name: trial.solve(HeadsPlan(kept))}):
                loss = divergence.measure() - base
            unit = max(loss, 0.0) / errors[number] if errors[number] > 0 else 0.0
            paths[name] = LossPath([left[name][head] for head in order], [unit * error for error in errors])
    return paths


def kept_solutions(
    model: nn.Module,
    sites: AttentionSites,
    gone: Sequence[Head],
    counts: Mapping[str, int],
    batches: Sequence[Batch] | None,
    *,
    progress: bool = False,
) -> dict[str, Shrunk]:
    """What the layers become without some heads.

    Args:
        model: a dense transformers model.
        sites: its attention layers.
        gone: the heads that go.
        counts: numbers of heads by layer.
        batches: model inputs to refit the output projections on; None to leave their columns as they are.
        progress: whether to draw a progress bar on stderr.

    Returns:
        Solutions by layer, of those that lose heads.

    Raises:
        CalibrationError: batches that do not run.
        RankError: a head that the model doesn't have.
    """
    kept = heads_left(counts, gone)
    chosen = {name: sites[name] for name in kept}
    moments: Mapping[str, Moments] = {}
    if batches is not None and chosen:
        moments = output_moments(model, chosen, batches, progress=progress)
    return {
        name: HEADS.solution(site, HeadsPlan(kept[name]), moments.get(name)) for name, site in chosen.items()
    }


def pruning_curve(
    model: PreTrainedModel,
    order: Sequence[Head],
    shares: Sequence[float],
    measure: Callable[[PreTrainedModel], float],
    *,
    batches: Sequence[Batch] | None = None,
    at_least: int = 1,
    progress: bool = False,
) -> list[float]:
    """What a model is worth with more and more of its heads gone.

    Args:
        model: a dense transformers model; left as it was found.
        order: heads in the order they go, of all layers that may lose some.
        shares: of these heads, in [0, 1).
        measure: gives the worth of the model as it is when called.
        batches: model inputs to refit output projections on; None for heads taken out and nothing else.
        at_least: heads that stay in every layer.
        progress: whether to draw a progress bar on stderr.

    Returns:
        Worths, one a share.

    Raises:
        RankError: more heads than may go.
        CalibrationError: batches that do not run.
    """
    named = {name for name, _ in order}
    counts = {name: count for name, count in head_counts(head_sites(model)).items() if name in named}
    sites = {name: site for name, site in HEADS.sites(model).items() if name in counts}
    moments = None if batches is None else output_moments(model, sites, batches)
    found = []
    for share in tqdm(shares, desc="Pruning", unit="share", disable=not progress):
        gone = first_to_go(order, round(share * sum(counts.values())), counts, at_least=at_least)
        kept = heads_left(counts, gone)
        solutions = {
            name: HEADS.solution(sites[name], HeadsPlan(heads), moments[name] if moments else None)
            for name, heads in kept.items()
        }
        with torch.no_grad(), HEADS.replaced(sites, solutions):
            found.append(measure(model))
    return found
