"""Exact multiple-choice knapsack: one option a layer, least total loss, one or two capacities.

Dynamic programming over layers on the states that no other state dominates, cut down by a Lagrangian lower
bound on what the layers to come must lose. The bound leaves a few thousand states of the millions that plain
dynamic programming would hold, and nothing that could still be the best, so the answer is exact.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ..modeling.errors import ConfigError

Array = NDArray[np.float64]

# Golden-section steps for each multiplier: 40 narrow twenty powers of ten down to a hundredth of one.
_STEPS = 40
_LOG_RANGE = (-12.0, 8.0)
_GOLDEN = (5**0.5 - 1) / 2

# Sums of losses in another order differ by rounding; a bound must not cut off its own optimum.
_SLACK = 1e-9


class BudgetError(ConfigError):
    """No choice fits the capacities.

    Args:
        message: one sentence for the user.
        least: smallest total size of each resource alone.
    """

    def __init__(self, message: str, least: tuple[float, ...]) -> None:
        super().__init__(message)
        self.least = least


def solve_knapsack(losses: Sequence[Array], sizes: Sequence[Array], capacities: Sequence[float]) -> list[int]:
    """Choose one option per layer so that the sum of losses is the least that fits.

    Args:
        losses: for each layer the losses of its options, shape (options,), >= 0.
        sizes: for each layer what its options take of each resource, shape (options, resources), >= 0.
        capacities: most that all layers together may take of each resource; one or two, inf for no limit.

    Returns:
        Index of the chosen option for each layer.

    Raises:
        BudgetError: nothing fits; it holds the least total of each resource.

    Source:
        Kellerer, Pferschy & Pisinger 2004, "Knapsack problems", chapter 11: dynamic programming with upper
        bounds for the multiple-choice knapsack problem.
    """
    limits = np.asarray(capacities, dtype=np.float64)
    least = np.sum([size.min(axis=0) for size in sizes], axis=0)
    if (least > limits * (1 + _SLACK)).any():
        raise BudgetError("no choice of forms fits the budget", tuple(map(float, least)))
    binding = np.isfinite(limits)
    # In units of the capacities, so that multipliers of all resources have one scale.
    scale = np.where(limits[binding] > 0, limits[binding], 1.0)
    scaled = [size[:, binding] / scale for size in sizes]
    problem = _Problem(list(losses), scaled, limits[binding] / scale)
    return problem.solve(tuple(map(float, least)))


class _Problem:
    """One instance; sizes are relative to the capacities."""

    def __init__(self, losses: list[Array], sizes: list[Array], limits: Array) -> None:
        self.losses, self.sizes, self.limits = losses, sizes, limits * (1 + _SLACK)
        self.best_loss = np.inf
        self.best: list[int] = []

    def solve(self, least: tuple[float, ...]) -> list[int]:
        multipliers = self._multipliers()
        priced = [loss + size @ multipliers for loss, size in zip(self.losses, self.sizes, strict=True)]
        cheapest = np.array([price.min() for price in priced])
        smallest = np.array([size.min(axis=0) for size in self.sizes])
        loss, used = np.zeros(1), np.zeros((1, len(self.limits)))
        history: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
        for layer, (options, sizes) in enumerate(zip(self.losses, self.sizes, strict=True)):
            new_loss = (loss[:, None] + options).ravel()
            new_used = (used[:, None] + sizes).reshape(len(new_loss), -1)
            room = self.limits - smallest[layer + 1 :].sum(axis=0)
            bound = new_loss + cheapest[layer + 1 :].sum() - (self.limits - new_used) @ multipliers
            slack = _SLACK * (1 + abs(self.best_loss)) if np.isfinite(self.best_loss) else 0.0
            alive = np.flatnonzero((new_used <= room).all(axis=1) & (bound <= self.best_loss + slack))
            if not len(alive):
                raise BudgetError("no choice of forms fits both budgets together", least)
            alive = alive[_undominated(new_loss[alive], new_used[alive])]
            loss, used = new_loss[alive], new_used[alive]
            history.append((alive // len(options), alive % len(options)))
        state = int(loss.argmin())
        chosen = []
        for parents, picks in reversed(history):
            chosen.append(int(picks[state]))
            state = int(parents[state])
        return chosen[::-1]

    def _multipliers(self) -> Array:
        """Prices of the resources that make the Lagrangian lower bound (nearly) the highest.

        Any prices >= 0 give a valid bound; each set that is tried also gives a choice, and the best of those
        that fit, improved by swaps, is kept as the incumbent.
        """
        count = len(self.limits)
        prices = np.zeros(count)
        if count == 0 or self._dual(prices)[1]:
            return prices  # the least losses of all fit: no price is needed

        def at(index: int, fixed: Array, log_price: float) -> float:
            """The highest bound with one price set, over the prices after it."""
            changed = _put(fixed, index, 10.0**log_price)
            if index + 1 == count:
                return self._dual(changed)[0]
            return _golden(partial(at, index + 1, changed))[1]

        for index in range(count):
            position = _golden(partial(at, index, prices))[0]
            prices = _put(prices, index, 10.0**position)
        # One resource alone may bind: then the other's price is zero, which no power of ten reaches.
        tries = [prices, *(_put(prices, i, 0.0) for i in range(count))]
        return max(tries, key=lambda p: self._dual(p)[0])

    def _dual(self, prices: Array) -> tuple[float, bool]:
        """Lower bound on the total loss at these prices, and whether the choice behind it fits."""
        picks = [
            int((loss + size @ prices).argmin()) for loss, size in zip(self.losses, self.sizes, strict=True)
        ]
        loss = sum(float(losses[i]) for losses, i in zip(self.losses, picks, strict=True))
        used = np.sum([sizes[i] for sizes, i in zip(self.sizes, picks, strict=True)], axis=0)
        fits = bool((used <= self.limits).all())
        if fits and loss < self.best_loss:
            self._improve(picks, loss, used)
        return float(loss + (used - self.limits) @ prices), fits

    def _improve(self, picks: list[int], loss: float, used: Array) -> None:
        """Take the single change that helps most while one fits, then keep the choice as the incumbent."""
        while True:
            gain, change = 0.0, None
            for layer, pick in enumerate(picks):
                room = self.limits - used + self.sizes[layer][pick]
                fitting = np.flatnonzero((self.sizes[layer] <= room).all(axis=1))
                option = int(fitting[self.losses[layer][fitting].argmin()])
                saved = float(self.losses[layer][pick] - self.losses[layer][option])
                if saved > gain:
                    gain, change = saved, (layer, option)
            if change is None:
                break
            layer, option = change
            used = used + self.sizes[layer][option] - self.sizes[layer][picks[layer]]
            picks[layer] = option
            loss -= gain
        if loss < self.best_loss:
            self.best_loss, self.best = loss, picks


def _put(prices: Array, index: int, value: float) -> Array:
    changed = prices.copy()
    changed[index] = value
    return changed


def _golden(function: Callable[[float], float], steps: int = _STEPS) -> tuple[float, float]:
    """Highest point of a concave function of log price: (where, value)."""
    low, high = _LOG_RANGE
    a, b = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_a, at_b = function(a), function(b)
    for _ in range(steps):
        if at_a < at_b:
            low, a, at_a = a, b, at_b
            b = low + _GOLDEN * (high - low)
            at_b = function(b)
        else:
            high, b, at_b = b, a, at_a
            a = high - _GOLDEN * (high - low)
            at_a = function(a)
    return (a, at_a) if at_a > at_b else (b, at_b)


def _undominated(loss: Array, used: Array) -> NDArray[np.intp]:
    """Indices of states that no other state equals or beats in loss and in every resource."""
    order = np.lexsort((loss, *used.T[::-1])) if used.shape[1] else loss.argsort(kind="stable")[:1]
    if used.shape[1] == 0:
        return order
    if used.shape[1] == 1:
        ordered = loss[order]
        before = np.concatenate([[np.inf], np.minimum.accumulate(ordered)[:-1]])
        return order[ordered < before]
    kept = []
    sizes: list[float] = []  # a staircase: sizes of the second resource rise, losses fall
    losses: list[float] = []
    for state in order:
        size, value = float(used[state, 1]), float(loss[state])
        place = bisect_right(sizes, size)
        if place and losses[place - 1] <= value:
            continue
        end = place
        while end < len(sizes) and losses[end] >= value:
            end += 1
        sizes[place:end], losses[place:end] = [size], [value]
        kept.append(state)
    return np.asarray(kept, dtype=np.intp)
