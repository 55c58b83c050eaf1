"""Which of the processes that a launcher started this one is, read without importing torch."""

from __future__ import annotations

import os

# What torchrun and accelerate set, and what MPI's launchers do.
_COUNTS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


def launched_count() -> int:
    """Processes that share this run; 1 without a launcher."""
    return _first(_COUNTS, 1)


def is_main_process() -> bool:
    """Whether this process is the one that speaks and writes."""
    return launched_count() == 1 or _first(_RANKS, 0) == 0


def _first(names: tuple[str, ...], default: int) -> int:
    """The first of some environment variables that is a number."""
    return next((int(value) for name in names if (value := os.environ.get(name, "")).isdigit()), default)
