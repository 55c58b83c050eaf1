"""The processes that share a run: one, or those that `accelerate launch` started."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_choice_from_env, reduce
from torch import Tensor

from ..errors import RecoveryError
from ..modeling.errors import ConfigError


class Processes:
    """Each process holds its share of the rows of every batch; sums go over all of them.

    Args:
        device: where the model is.
    """

    def __init__(self, device: torch.device) -> None:
        self._state = PartialState(cpu=device.type == "cpu")
        self.count: int = self._state.num_processes
        self.is_main: bool = self._state.is_main_process
        # One model a GPU: what the launcher assigned, wherever the model was loaded.
        self.device = self._state.device if self.count > 1 else device

    def rows(self, batch: Mapping[str, Any]) -> tuple[dict[str, Any], int, int]:
        """This process's rows of a batch.

        Args:
            batch: model inputs; tensors of the batch's length are cut, all else is passed on.

        Returns:
            The rows, where they start, and how many the whole batch has.

        Raises:
            RecoveryError: fewer rows than processes.
        """
        length = batch_length(batch)
        if length < self.count:
            raise RecoveryError(f"a batch of {length} examples can't be shared by {self.count} processes")
        rank = self._state.process_index
        first, last = length * rank // self.count, length * (rank + 1) // self.count
        cut = {
            name: value[first:last]
            if isinstance(value, Tensor) and value.dim() and len(value) == length
            else value
            for name, value in batch.items()
        }
        return cut, first, length

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.count == 1:
            return values
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
        self._state.wait_for_everyone()


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


def launched_precision() -> str:
    """The mixed precision that `accelerate launch` asks for.

    Returns:
        `no` or `bf16`.

    Raises:
        ConfigError: it asks for another one.
    """
    asked = parse_choice_from_env("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("no", "bf16"):
        raise ConfigError(
            f"recovery runs in mixed precision no or bf16, accelerate was launched with {asked}"
        )
    return str(asked)


def check_alone() -> None:
    """Refuse to be one of several processes, which would all write the same directory.

    Raises:
        ConfigError: there are several.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # what torchrun and accelerate launch set
        raise ConfigError(
            "compression runs in one process, got several; start it without accelerate launch, and recover "
            "in several with `collab-hf heal`"
        )
