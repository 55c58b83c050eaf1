"""What the user wants of a plan, as a knapsack."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..config import CollabConfig
from ..modeling.errors import ConfigError
from ..parts.part import Part
from ..ranges import read_flops_target
from .curves import Curve
from .knapsack import Array, BudgetError, solve_knapsack

# Where the knee of the curve is looked for when nothing is asked for: above a half little is saved, and below
# an eighth the models measured lose more than users expect of a default.
_KNEE_SHARES = tuple(np.geomspace(1 / 8, 1 / 2, 13))


def choose_options(part: Part, curves: Sequence[Curve], config: CollabConfig) -> list[int]:
    """Choose one option a site: the least loss within the targets, or the least size within a loss.

    Args:
        part: what is planned.
        curves: options and losses of the planned sites.
        config: budget, target_params, target_flops or max_loss; with none of them, the knee of the curve.

    Returns:
        Index of the option of every site.

    Raises:
        ConfigError: nothing meets the targets; the message says the smallest possible.
    """
    losses = [curve.losses() for curve in curves]
    parameters = [np.array([option.parameters for option in curve.options], dtype=float) for curve in curves]
    dense = sum(curve.dense_parameters for curve in curves)
    flops, most_flops = _operations(part, curves, config)
    if config.max_loss is not None:
        sizes = [np.stack(pair, axis=1) for pair in zip(losses, flops, strict=True)]
        return _solve(parameters, sizes, (config.max_loss, most_flops), config, dense)
    sizes = [np.stack(pair, axis=1) for pair in zip(parameters, flops, strict=True)]
    most = float(config.target_params or np.inf)
    if config.budget is not None:
        most = config.budget * dense
    elif config.target_params is None and config.target_flops is None:
        most = _knee(losses, sizes, most_flops) * dense
    return _solve(losses, sizes, (most, most_flops), config, dense)


def _operations(part: Part, curves: Sequence[Curve], config: CollabConfig) -> tuple[list[Array], float]:
    """Operations of every form at the target's length, and the most that all layers may take."""
    if config.target_flops is None:
        return [np.zeros(len(curve.options)) for curve in curves], np.inf
    length, share = read_flops_target(config.target_flops)
    counts = [
        np.array([part.operations(o.plan, curve.shape, length) for o in curve.options], dtype=float)
        for curve in curves
    ]
    return counts, share * sum(part.operations(None, curve.shape, length) for curve in curves)


def _solve(
    objective: list[Array],
    sizes: list[Array],
    capacities: tuple[float, float],
    config: CollabConfig,
    dense: int,
) -> list[int]:
    try:
        return solve_knapsack(objective, sizes, capacities)
    except BudgetError as error:
        least = error.least
        if config.max_loss is not None:
            raise ConfigError(f"no choice of forms meets target_flops {config.target_flops}") from None
        if least[0] > capacities[0] and config.target_params is not None:
            message = f"target_params must be at least {least[0]:.0f}, got {config.target_params}"
        elif least[0] > capacities[0]:
            smallest = np.ceil(1e4 * least[0] / dense) / 1e4
            message = f"budget must be at least {smallest:.4f}, got {config.budget}"
        elif least[1] > capacities[1]:
            length, share = read_flops_target(str(config.target_flops))
            smallest = np.ceil(1e4 * least[1] / capacities[1] * share) / 1e4
            message = f"target_flops must be at least {length}:{smallest:.4f}, got {config.target_flops}"
        else:
            message = f"no choice of forms meets both the parameters and target_flops {config.target_flops}"
        raise ConfigError(f"{message}, for this model") from None


def _knee(losses: list[Array], sizes: list[Array], most_flops: float) -> float:
    """Share of the parameters where the curve of loss over share bends most: farthest from its chord."""
    dense = sum(size[:, 0].max() for size in sizes)
    totals = []
    for share in _KNEE_SHARES:
        try:
            picks = solve_knapsack(losses, sizes, (share * dense, most_flops))
        except BudgetError:
            totals.append(np.inf)
            continue
        totals.append(sum(float(loss[i]) for loss, i in zip(losses, picks, strict=True)))
    points = [(s, t) for s, t in zip(_KNEE_SHARES, totals, strict=True) if np.isfinite(t)]
    if len(points) < 3 or points[0][1] <= points[-1][1]:
        return points[0][0] if points else 1.0
    shares, values = np.array(points).T
    x = (shares - shares[0]) / (shares[-1] - shares[0])
    y = (values - values[-1]) / (values[0] - values[-1])
    return float(shares[int((1 - x - y).argmax())])
