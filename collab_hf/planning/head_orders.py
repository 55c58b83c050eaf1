"""In which order heads go, over all layers together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from torch import Tensor
from transformers import PreTrainedModel

from ..calibration.held_out import Batch, split_batches
from ..calibration.linear_inputs import linear_moments
from ..config import CollabConfig
from ..errors import ConfigError
from ..host.sites import AttentionSites
from ..modeling.kinds import checked_kinds
from ..modeling.shrinking import HeadsPlan
from ..parts.heads.gates import gated, without
from ..parts.heads.importance import score_heads
from ..parts.heads.orders import LossPath, heads_left, merge_paths, order_by, random_order
from ..parts.heads.sites import Head, removable_heads
from ..parts.registry import HEADS
from ..parts.shrunk import Shrunk
from ..progress import Steps
from ..tensors.moments import Moments
from .divergence import Divergence

ORDERS = ("compensated", "importance", "random", "reverse", "oracle")
"""Names of the orders in which heads may go."""

# Of a layer's heads that are gone where its divergence is measured. With a power law through four shares, the
# orders of MiniLM came out at the same divergence within its second digit.
_MEASURED_SHARE = 0.5


def pruning_order(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    *,
    by: str = "compensated",
    attention: tuple[str, ...] = (),
    gone: Sequence[Head] = (),
    scores: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> list[Head]:
    """Put the heads of all layers into the order in which they go.

    Args:
        model: a dense transformers model; left as it was found.
        batches: model inputs; every fourth example, 64 at most, is for measuring divergence. With labels,
            importance goes by the loss on them.
        by: `compensated` (the optimal brain surgeon's order in each layer, layers compared by the measured
            divergence of the model's output with the output projection refitted), `importance` (least first),
            `reverse` (most important first), `random`, or `oracle` (by the divergence that each head makes
            when it alone is off: as many runs as there are heads).
        attention: kinds of the layers that may lose heads; without any, all.
        gone: heads that are out already; what is left is measured without them.
        scores: importances by layer that were computed before. They are best left unnormalised: divided by
            the norms of their layers, heads of layers that matter went too early.
        seed: of `random` and of sampled outputs.
        progress: whether to draw progress bars on stderr.

    Returns:
        The heads that are left, in order; `compensated` leaves out the last of each layer.

    Raises:
        FamilyError: a model without heads that can go.
        ConfigError: an unknown order, or no data where an order needs some.
        CalibrationError: batches that do not run.
    """
    if by not in ORDERS:
        raise ConfigError(f"by must be one of {', '.join(ORDERS)}, got {by!r}")
    counts = removable_heads(model, checked_kinds(attention))
    if by == "random":
        order = random_order(counts, seed)
    elif not batches and scores is None:
        raise ConfigError(f"heads are ordered by {by} on data; give --calibration, or order them by random")
    elif by == "compensated":
        order = merge_paths(compensated_paths(model, batches, counts, gone, progress=progress))
    elif by == "oracle":
        order = order_by(_effects(model, batches, counts, gone, progress))
    else:
        gates = without(model, gone)
        if scores is None:
            found = score_heads(
                model, batches, gates=gates, normalize=False, seed=seed, progress=progress
            ).importance
        else:
            found = scores
        order = order_by({name: found[name] for name in counts}, reverse=by == "reverse")
    out = set(gone)
    return [head for head in order if head not in out]


def _effects(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    counts: Mapping[str, int],
    gone: Sequence[Head],
    progress: bool,
) -> dict[str, list[float]]:
    """Divergence by layer and head, with that head off beside those that are gone."""
    divergence = Divergence(model, split_batches(batches)[1])
    found: dict[str, list[float]] = {name: [] for name in counts}
    heads = [(name, head) for name, count in counts.items() for head in range(count)]
    for name, head in Steps(heads, title="Switching heads off", unit="head", progress=progress):
        with gated(model, without(model, [*gone, (name, head)])):
            found[name].append(divergence.measure())
    return found


def compensated_paths(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    counts: Mapping[str, int],
    gone: Sequence[Head] = (),
    *,
    progress: bool = False,
) -> dict[str, LossPath]:
    """The optimal brain surgeon's order of each layer's heads, with losses that compare across layers.

    The surgeon's errors are relative to the variance of each layer's own output, which says nothing of how
    much the model hangs on it. So half of a layer's heads are taken out with the output projection refitted,
    and the divergence of the model's output over the layer's error is what a unit of its error costs.

    Args:
        model: a dense transformers model; left as it was found.
        batches: model inputs, of which every fourth example, 64 at most, is for the divergence.
        counts: heads of the layers that may lose some.
        gone: heads that are out already, with the output projections refitted.
        progress: whether to draw progress bars on stderr.

    Returns:
        Paths by layer of the heads that are left, the last of each excepted.

    Raises:
        CalibrationError: batches that do not run.
        DecompositionError: weights or activations that are not finite.
    """
    seen, held = split_batches(batches)
    sites = {name: site for name, site in HEADS.sites(model).items() if name in counts}
    left = {name: tuple(range(count)) for name, count in counts.items()} | heads_left(counts, gone)
    divergence, config = Divergence(model, held), CollabConfig()
    state: AbstractContextManager[None] = nullcontext()
    if gone:
        moments = output_moments(sites, model, seen, progress=progress)
        state = HEADS.replaced(sites, kept_solutions(sites, heads_left(counts, gone), moments))
    paths = {}
    with state:
        # As they are now; what was solved so far is the dense form of what follows.
        sites = {name: replace(site, shape=site.family.shape(site.module)) for name, site in sites.items()}
        moments = output_moments(sites, model, seen, progress=progress)
        base = divergence.measure()
        for name, site in Steps(sites.items(), title="Measuring heads", unit="layer", progress=progress):
            trial = HEADS.trial(site, config, moments[name])
            order, errors = trial.path.order.tolist(), trial.path.errors.tolist()
            if not order:
                continue
            number = max(1, round(_MEASURED_SHARE * len(left[name])))
            plan = HeadsPlan(tuple(sorted({*range(len(left[name]))} - {*order[:number]})))
            with HEADS.replaced(sites, {name: trial.solve(plan)}):
                loss = max(0.0, divergence.measure() - base)
            unit = loss / errors[number] if errors[number] > 0 else 0.0
            paths[name] = LossPath([left[name][head] for head in order], [unit * e for e in errors])
    return paths


def output_moments(
    sites: AttentionSites, model: PreTrainedModel, batches: Iterable[Batch], *, progress: bool = False
) -> dict[str, Moments]:
    """Moments of what output projections read, all heads side by side.

    Args:
        sites: attention layers of the model.
        model: runs in eval mode.
        batches: model inputs.
        progress: whether to draw a progress bar on stderr.

    Returns:
        Moments by layer.

    Raises:
        CalibrationError: no batches, or batches that do not run.
    """
    layers = {name: HEADS.output(site) for name, site in sites.items()}
    return linear_moments(model, layers, batches, progress=progress)


def kept_solutions(
    sites: AttentionSites, kept: Mapping[str, Sequence[int]], moments: Mapping[str, Moments] | None
) -> dict[str, Shrunk]:
    """What layers become with some of their heads.

    Args:
        sites: dense attention layers.
        kept: by layer, the heads that stay.
        moments: of what output projections read, to refit them; None to leave their columns as they are.

    Returns:
        What `HEADS.install_` takes, by layer.
    """
    return {
        name: HEADS.solution(sites[name], HeadsPlan(tuple(heads)), None if moments is None else moments[name])
        for name, heads in kept.items()
    }
