"""The processes that share a run: one, or those that `accelerate launch` or `torchrun` started.

Errors are shared too: what fails in one process while all work on their own is raised in every one, so that
none waits for an answer that never comes.
"""

from __future__ import annotations

import errno
import io
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor, distributed

from .errors import RecoveryError
from .launched import launched_count

T = TypeVar("T")
Item = TypeVar("Item")
# How long one process waits for another: for hours, while the main one plans a whole model and the others
# have nothing to do. A process that died is noticed by its connection and by the launcher, not by this.
_PATIENCE = timedelta(days=7)

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class _Outcome(Generic[T]):
    """What work gave in one process: a value or an error."""

    value: T
    error: Exception | None = None

    @classmethod
    def of(cls, work: Callable[[], T]) -> _Outcome[Any]:
        try:
            return cls(work())
        except Exception as error:  # noqa: BLE001 - all of them are raised again, in every process
            return _Outcome(None, error)

    def get(self) -> T:
        if self.error is not None:
            raise self.error
        return self.value


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from one of them: sums, shares of the work, and what all of them know.

    Every process must call the methods in the same order.

    Attributes:
        count: of processes.
        rank: which of them this is, from 0.
        device: where this one computes.
    """

    count: int = 1
    rank: int = 0
    device: torch.device = _CPU

    @classmethod
    def launched(cls, device: torch.device) -> Processes:
        """The processes that a launcher started, or this one alone.

        Args:
            device: where the model is.

        Returns:
            The processes, each with the device that the launcher assigned.
        """
        if launched_count() == 1:
            return cls(device=device)
        state = PartialState(cpu=device.type == "cpu", timeout=_PATIENCE)
        # One model a GPU: what the launcher assigned, wherever the model was loaded. CPUs have no numbers.
        assigned = _CPU if state.device.type == "cpu" else state.device
        return cls(state.num_processes, state.process_index, assigned)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def gather(self, work: Callable[[], T]) -> list[T]:
        """What work gives in every process.

        Args:
            work: something this process does on its own; it must not call these methods.

        Returns:
            The results in the order of processes, on this process's device.
        """
        mine = _Outcome.of(work)
        if self.count == 1:
            return [mine.get()]
        packed: list[bytes] = [b""] * self.count
        with _others_alive():
            distributed.all_gather_object(packed, _packed(mine))
        found = [mine if rank == self.rank else self._unpacked(p) for rank, p in enumerate(packed)]
        return [outcome.get() for outcome in found]

    def from_main(self, work: Callable[[], T]) -> T:
        """What work gives in the main process, while the others wait.

        Args:
            work: as for `gather`.

        Returns:
            The result, on this process's device.
        """
        mine: _Outcome[Any] = _Outcome.of(work) if self.is_main else _Outcome(None)
        if self.count > 1:
            packed = [_packed(mine) if self.is_main else b""]
            with _others_alive():
                distributed.broadcast_object_list(packed)
            mine = mine if self.is_main else self._unpacked(packed[0])
        result: T = mine.get()
        return result

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raise in every process what one of them raises inside the with block, at its end."""
        error: Exception | None = None
        try:
            yield
        except Exception as raised:  # noqa: BLE001 - as above
            error = raised
        self.gather(_Outcome(None, error).get)

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items that this process is to work on."""
        return items[self.rank :: self.count]

    def each(self, items: Sequence[Item], work: Callable[[Item], T]) -> Iterator[tuple[Item, T]]:
        """Work on items, each in one process, and give the results of all to every process.

        Args:
            items: the same in every process.
            work: gets those of `share` in order.

        Yields:
            Every item and what work gave for it, in order.
        """
        for start in range(0, len(items), self.count):
            group = items[start : start + self.count]
            mine = group[self.rank :][:1]
            found = self.gather(lambda mine=mine: [work(item) for item in mine])  # type: ignore[misc]
            for item, (result,) in zip(group, found, strict=False):
                yield item, result

    def _unpacked(self, packed: bytes) -> _Outcome[Any]:
        outcome: _Outcome[Any] = torch.load(io.BytesIO(packed), map_location=self.device, weights_only=False)
        return outcome

    def rows(self, batch: Mapping[str, Any]) -> tuple[dict[str, Any], int, int]:
        """This process's rows of a batch.

        A batch with fewer rows than processes, such as the last of a file, is repeated until each has one:
        means over it stay as they are.

        Args:
            batch: model inputs; tensors of the batch's length are cut, all else is passed on.

        Returns:
            The rows, where they start, and how many the whole batch has.

        Raises:
            RecoveryError: a batch without examples.
        """
        length = batch_length(batch)
        if not length:
            raise RecoveryError("a batch for recovery must hold at least one example, got none")
        times = -(-self.count // length)
        first = length * times * self.rank // self.count
        last = length * times * (self.rank + 1) // self.count
        cut = {
            name: torch.cat([value] * times)[first:last]
            if isinstance(value, Tensor) and value.dim() and len(value) == length
            else value
            for name, value in batch.items()
        }
        return cut, first, length * times

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.count == 1:
            return values
        with _others_alive():
            summed: Tensor = reduce(values, "sum")
        return summed

    def join(self, rows: Tensor, first: int, length: int) -> Tensor:
        """All processes' rows in order.

        Args:
            rows: this process's.
            first: where they start.
            length: of the whole.

        Returns:
            The rows of all.
        """
        if self.count == 1:
            return rows
        whole = rows.new_zeros(length, *rows.shape[1:])
        whole[first : first + len(rows)] = rows
        return self.total(whole)

    def sum_gradients(self, parameters: list[Tensor]) -> None:
        """Give every process the sum of all processes' gradients."""
        if self.count == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        summed = self.total(torch.cat([gradient.flatten() for gradient in gradients]))
        for parameter, part in zip(parameters, summed.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter)

    def agree(self, seconds: float) -> float:
        """One reading of the clock for all processes: the mean of theirs."""
        if self.count == 1:
            return seconds
        clock = torch.tensor(seconds, dtype=torch.float64, device=self.device)
        return float(self.total(clock)) / self.count

    def wait(self) -> None:
        """Wait until every process is here."""
        self.gather(lambda: None)


# What works without a launcher, and what a launched process does on its own.
ALONE = Processes()


def _packed(outcome: _Outcome[Any]) -> bytes:
    """An outcome as bytes; an error that can't be pickled goes as its sentence."""
    if outcome.error is not None:
        try:
            pickle.loads(pickle.dumps(outcome.error))
        except Exception:  # noqa: BLE001 - whatever its class does wrong
            outcome = _Outcome(None, RuntimeError(f"{type(outcome.error).__name__}: {outcome.error}"))
    buffer = io.BytesIO()
    torch.save(outcome, buffer)
    return buffer.getvalue()


@contextmanager
def _others_alive() -> Iterator[None]:
    """Say in one sentence that a process which was to answer is gone."""
    try:
        yield
    except RuntimeError as error:  # what every backend raises, with its own words
        raise ConnectionAbortedError(
            errno.ECONNABORTED, "another process of this run ended before it was done"
        ) from error


def batch_length(batch: Mapping[str, Any]) -> int:
    """Examples in a batch.

    Args:
        batch: model inputs by name.

    Returns:
        The length of its first tensor.

    Raises:
        RecoveryError: it is no mapping with a tensor in it.
    """
    values = batch.values() if isinstance(batch, Mapping) else ()
    for value in values:
        if isinstance(value, Tensor) and value.dim():
            return len(value)
    raise RecoveryError(
        f"a batch must be a mapping of model inputs with at least one tensor, got {type(batch).__name__}"
    )
