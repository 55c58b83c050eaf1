"""Calibration data in any shape that people have it, as batches of model inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import CalibrationError
from ..host.inputs import check_batch
from ..recipe import DEFAULT_EXAMPLES, NO_CALIBRATION, SHIPPED_SHARE
from ..tensors.moments import LayerStatistics
from .examples import batches_of
from .pools import read_pools
from .sources import is_dataset

Calibration = Sequence[Mapping[str, Any]] | Mapping[str, LayerStatistics] | None


def given_batches(
    data: Any, processor: Callable[[], Any], *, config: Any = None, seed: int = 0
) -> Calibration:
    """Batches of what was given.

    Args:
        data: None or `none` for no data; batches of model inputs, or one of them; statistics; or what
            `read_pools` reads: `default`, a file, a folder, a data set or its id, texts or images.
        processor: gives the tokenizer or image processor; only asked where the data need one.
        config: of the model that reads them.
        seed: of the sampling.

    Returns:
        Batches, or the statistics, or None.

    Raises:
        CalibrationError: data that is none of these, or can't be read.
    """
    if data is None or (isinstance(data, str) and data == NO_CALIBRATION):
        return None
    if isinstance(data, Mapping):
        if data and all(isinstance(value, LayerStatistics) for value in data.values()):
            return data
        data = [data]
    if not needs_processor(data):
        if not isinstance(data, Iterable):
            raise CalibrationError(
                "calibration is batches of model inputs, or texts, images, a file, a folder or a data set, "
                f"got {type(data).__name__}"
            )
        data = list(data)
    if needs_processor(data):
        pools = read_pools(
            data, processor(), examples=DEFAULT_EXAMPLES, seed=seed, shipped_share=SHIPPED_SHARE
        )
        return list(batches_of(pools.calibration, processor(), config=config))
    for number, batch in enumerate(data, start=1):
        check_batch(batch, number)
    return data  # type: ignore[no-any-return]


def needs_processor(data: Any) -> bool:
    """Whether data are texts, images or the name of some, rather than model inputs already."""
    if isinstance(data, str | Path) or is_dataset(data):
        return True
    if not isinstance(data, Sequence) or not data or isinstance(data[0], Tensor):
        return False
    return isinstance(data[0], str | Path) or hasattr(data[0], "convert")
