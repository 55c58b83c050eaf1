"""Weights that lie on the disk instead of in memory.

A checkpoint that is loaded without another dtype or device is mapped from its safetensors files: pages are
read when they are used, and dropped when memory is short. `Spill` does the same for new weights until they
are written, so that surgery holds one layer at a time.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..modeling.errors import CheckpointError


class Spill:
    """Files without a name for new weights: whatever ends the run, nothing of them stays.

    Args:
        beside: the checkpoint to come; its disk needs room for the new weights once more.
    """

    def __init__(self, beside: Path) -> None:
        self._directory = next(parent for parent in beside.absolute().parents if parent.is_dir())

    def take_(self, parameters: Iterable[nn.Parameter]) -> None:
        """Move parameters from memory to the disk, in place; those of other devices stay where they are.

        Args:
            parameters: to move; what is written into them later stays in memory.

        Raises:
            CheckpointError: the disk is full or not writable.
        """
        for parameter in parameters:
            if parameter.device.type == "cpu" and parameter.numel():
                parameter.data = self._mapped(parameter.detach())

    def _mapped(self, values: Tensor) -> Tensor:
        """The same numbers in a file."""
        content = values.contiguous().flatten().view(torch.uint8).numpy().data
        try:
            with tempfile.TemporaryFile(dir=self._directory) as file:
                file.write(content)  # not through the mapping, where a full disk ends the process
                file.flush()
                pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except OSError as error:
            raise CheckpointError(f"cannot write to {self._directory}: {error.strerror or error}") from error
        return torch.frombuffer(pages, dtype=values.dtype).view(values.shape)
