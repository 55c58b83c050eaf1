"""Items of other sequences, fetched when they are asked for: only then are images decoded or made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .sources import sample


class Picked(Sequence[Any]):
    """A choice of the items of one or several sequences.

    Args:
        places: sequence and index of each item.
    """

    def __init__(self, places: Iterable[tuple[Sequence[Any], int]]) -> None:
        self._places = list(places)

    @classmethod
    def some(cls, items: Sequence[Any], most: int, seed: int) -> Picked:
        """A sample of a sequence, in its order; all where it has no more than `most`."""
        return cls((items, index) for index in sample(len(items), most, seed))

    def __len__(self) -> int:
        """Number of items."""
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        """One item, or a list of several."""
        if isinstance(index, slice):
            return [items[place] for items, place in self._places[index]]
        items, place = self._places[index]
        return items[place]
