"""In which order heads go, over all layers of a model."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import RankError
from .sites import Head


@dataclass(frozen=True)
class LossPath:
    """The order in which the heads of one layer go, and what that loses.

    Attributes:
        order: heads in the order they go; those that never go are not in it.
        losses: after 0, 1, ... of them are gone, in a unit that is the same for all layers.
    """

    order: Sequence[int]
    losses: Sequence[float]


def order_by(scores: Mapping[str, Sequence[float] | Any], *, reverse: bool = False) -> list[Head]:
    """All heads by their scores, lowest first; equal ones in the model's order.

    Args:
        scores: by layer, one number a head.
        reverse: highest first.

    Returns:
        Every head once.
    """
    heads = [(float(score), name, head) for name, row in scores.items() for head, score in enumerate(row)]
    ordered = sorted(heads, key=lambda entry: entry[0], reverse=reverse)
    return [(name, head) for _, name, head in ordered]


def random_order(counts: Mapping[str, int], seed: int = 0) -> list[Head]:
    """All heads shuffled.

    Args:
        counts: numbers of heads by layer.
        seed: of the shuffling.

    Returns:
        Every head once.
    """
    heads = [(name, head) for name, count in counts.items() for head in range(count)]
    random.Random(seed).shuffle(heads)
    return heads


def merge_paths(paths: Mapping[str, LossPath]) -> list[Head]:
    """Heads of all layers, each time the one whose going adds the least loss; layers keep their own order.

    Args:
        paths: by layer.

    Returns:
        Every head of the paths once.
    """
    gone, order = dict.fromkeys(paths, 0), []
    for _ in range(sum(len(path.order) for path in paths.values())):
        costs = {
            name: path.losses[gone[name] + 1] - path.losses[gone[name]]
            for name, path in paths.items()
            if gone[name] < len(path.order)
        }
        name = min(costs, key=lambda layer: costs[layer])
        order.append((name, paths[name].order[gone[name]]))
        gone[name] += 1
    return order


def first_to_go(
    order: Iterable[Head], number: int, counts: Mapping[str, int], *, at_least: int = 1
) -> list[Head]:
    """The first heads of an order, without those that a layer can't spare.

    Args:
        order: heads in the order they go.
        number: how many.
        counts: heads of each layer that may lose some.
        at_least: heads that stay in every layer.

    Returns:
        So many heads, in the order they go.

    Raises:
        RankError: at_least below 1, or more heads asked for than may go.
    """
    if at_least < 1:
        raise RankError(f"every layer keeps at least 1 head, got {at_least}")
    spare = {name: max(0, count - at_least) for name, count in counts.items()}
    if not 0 <= number <= sum(spare.values()):
        raise RankError(
            f"{number} of {sum(counts.values())} heads can't go: with at least {at_least} left in every "
            f"layer, {sum(spare.values())} can"
        )
    chosen: list[Head] = []
    for name, head in order:
        if len(chosen) == number:
            break
        if spare.get(name, 0) > 0:
            spare[name] -= 1
            chosen.append((name, head))
    if len(chosen) < number:
        raise RankError(f"the order names {len(chosen)} heads that can go, {number} were asked for")
    return chosen


def heads_left(counts: Mapping[str, int], gone: Iterable[Head]) -> dict[str, tuple[int, ...]]:
    """The heads that stay, of the layers that lose some.

    Args:
        counts: numbers of heads by layer.
        gone: heads that go.

    Returns:
        Rising numbers by layer, in the order of counts.

    Raises:
        RankError: a head that its layer does not have.
    """
    lost: dict[str, set[int]] = {}
    for name, head in gone:
        if not 0 <= head < counts.get(name, 0):
            raise RankError(f"the model has no head {head} in {name}")
        lost.setdefault(name, set()).add(head)
    return {
        name: tuple(head for head in range(count) if head not in lost[name])
        for name, count in counts.items()
        if name in lost
    }
