"""The batches of a run: which of them train and in what order, and the teacher's targets for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from ..errors import RecoveryError
from ..host.inputs import move
from ..processes import Processes, batch_length
from .losses import Targets, targets_of
from .outputs import Wanted


class BatchPool:
    """Batches in memory, with the teacher's targets kept from their first use on.

    Args:
        batches: model inputs; read once.
        held_out: share that is kept back, spread evenly over the batches (which are sorted by length, as a
            rule); at least one. A single batch serves for both.
        seed: of the order.
        judges: batches that judge instead of a share; None for the share.

    Raises:
        RecoveryError: no batch, or one that is not a mapping with a tensor.
    """

    def __init__(
        self,
        batches: Iterable[Mapping[str, Any]],
        held_out: float,
        seed: int,
        judges: Iterable[Mapping[str, Any]] | None = None,
    ) -> None:
        self.batches = _checked(batches)
        total = len(self.batches)
        if judges is None:
            count = max(1, round(held_out * total))
            self.held_out = [(2 * i + 1) * total // (2 * count) for i in range(count)]
        else:
            self.batches += _checked(judges)
            self.held_out = list(range(total, len(self.batches)))
        kept_back = set(self.held_out)
        self.training = [i for i in range(total) if i not in kept_back] or self.held_out
        self._seed = seed

    def examples(self, indices: Iterable[int]) -> int:
        """How many examples some of the batches hold.

        Args:
            indices: which batches.

        Returns:
            Their number.
        """
        return sum(batch_length(self.batches[index]) for index in indices)

    def draw(self, position: int) -> int:
        """The batch at a position of the endless order; every pass over the data has an order of its own."""
        turn, place = divmod(position, len(self.training))
        generator = torch.Generator().manual_seed(self._seed + turn)
        return self.training[int(torch.randperm(len(self.training), generator=generator)[place])]


def _checked(batches: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    found = [dict(batch) if isinstance(batch, Mapping) else batch for batch in batches]
    if not found:
        raise RecoveryError("recovery needs at least one batch, got none")
    for batch in found:
        batch_length(batch)
    return found


class TargetSource:
    """This process's rows of the batches with the teacher's targets.

    Args:
        pool: the batches.
        teacher: the original model, in eval mode.
        dtype: of the student, whose inputs come in it.
        wanted: which outputs.
        processes: that share the rows.
        cache_bytes: memory for targets; those beyond it are computed anew.
    """

    def __init__(
        self,
        pool: BatchPool,
        teacher: PreTrainedModel,
        dtype: torch.dtype,
        wanted: Wanted,
        processes: Processes,
        cache_bytes: float,
    ) -> None:
        self._pool = pool
        self._teacher = teacher
        self._dtype = dtype
        self._wanted = wanted
        self._processes = processes
        self._room = cache_bytes
        self._kept: dict[int, Targets] = {}

    def get(self, index: int) -> tuple[dict[str, Any], Targets, int]:
        """One batch.

        Args:
            index: which one.

        Returns:
            This process's rows, their targets, and the length of the whole batch.
        """
        rows, first, length = self._processes.rows(self._pool.batches[index])
        targets = self._kept.get(index)
        if targets is None:
            targets = targets_of(
                self._teacher,
                move(rows, self._processes.device, self._teacher.dtype),
                self._wanted,
                first,
                self._processes.total,
                lambda mine: self._processes.join(mine, first, length),
            )
            # Kept in the order of first use: what does not fit any more is never kept, so nothing thrashes.
            if targets.num_bytes <= self._room:
                self._room -= targets.num_bytes
                self._kept[index] = targets
        return move(rows, self._processes.device, self._dtype), targets, length
