"""What one run reads: examples to calibrate with, to recover with, and to judge by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedModel

from ..calibration.examples import Examples, batches_of
from ..calibration.given import Calibration, given_batches, needs_processor
from ..calibration.held_out import Batch, split_batches
from ..calibration.pools import MOST_EXAMPLES, Pools, read_pools
from ..errors import CalibrationError
from ..recovery.masking import mask_tokens

Batches = Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class Reading:
    """Batches by who reads them.

    Attributes:
        calibration: for compression; None for weights alone.
        training: for recovery; None without it.
        held_out: to judge recovery by, seen by nothing before; None where there is too little to set aside.
        counts: examples that calibrate, and how many of them ship with the package; None where the caller
            gave batches or nothing.
    """

    calibration: Batches | None
    training: Batches | None = None
    held_out: Batches | None = None
    counts: Mapping[str, int] | None = None


def read_run(
    calibration: Any,
    recovery: Any,
    model: PreTrainedModel,
    processor: Any,
    sampling: Mapping[str, Any],
    recovery_seed: int | None,
) -> Reading:
    """Read what compression and recovery need, and set the hold-out aside before either begins.

    Args:
        calibration: a source for `read_pools`, batches of model inputs, or None for weights alone.
        recovery: likewise, what recovery reads; the same object where it reads the same.
        model: the model that reads it.
        processor: gives its tokenizer or image processor, when called; batches need none.
        sampling: of `read_pools`.
        recovery_seed: of masked tokens; None where nothing is recovered.

    Returns:
        The batches.

    Raises:
        CalibrationError: data that can't be read.
    """
    heals = recovery_seed is not None
    pools, counts = None, None
    batches: Any = None
    if calibration is not None and not needs_processor(calibration):
        batches = given_batches(calibration, processor)
    elif calibration is not None:
        pools = read_pools(calibration, processor(), **sampling)
        batches = batches_of(pools.calibration, processor(), config=model.config)
        counts = pools.counts
    if not heals:
        return Reading(batches, counts=counts)
    if not needs_processor(recovery):
        training, held = _parted(batches if recovery is calibration else given_batches(recovery, processor))
        return Reading(training if recovery is calibration else batches, training, held, counts)
    if pools is None or recovery is not calibration:
        seen = set() if pools is None else set(pools.calibration.texts)
        pools = read_pools(recovery, processor(), **sampling)
        unseen = [text for text in pools.held_out.texts if text not in seen]
        pools = replace(pools, held_out=replace(pools.held_out, texts=unseen))
    pair = recovery_batches(pools, model, processor(), seed=recovery_seed or 0)
    return Reading(batches, *pair, counts)


def recovery_batches(
    pools: Pools,
    model: PreTrainedModel,
    processor: Any,
    *,
    batch_size: int = 32,
    max_length: int = 128,
    max_examples: int = MOST_EXAMPLES,
    seed: int = 0,
) -> tuple[Batches, Batches | None]:
    """What recovery trains on and what it is judged by; a masked language model gets masked tokens.

    Args:
        pools: of the data that it reads.
        model: the model that reads it.
        processor: its tokenizer or image processor.
        batch_size: examples per batch.
        max_length: tokens per text.
        max_examples: that it trains on at most.
        seed: of the masks.

    Returns:
        Batches of model inputs; None for the second where nothing is held out.
    """
    masked = type(model).__name__.endswith("ForMaskedLM")

    def made(examples: Examples) -> Batches:
        sizes = {"batch_size": batch_size, "max_length": max_length}
        batches = batches_of(examples, processor, config=model.config, **sizes)
        return mask_tokens(batches, processor, seed=seed) if masked else batches

    held = pools.held_out
    return made(pools.training.at_most(max_examples, seed)), made(held) if len(held) else None


def _parted(batches: Calibration) -> tuple[list[Batch], list[Batch] | None]:
    """Batches without the examples that judge, and those; all and None where they can't be taken apart."""
    if batches is None or isinstance(batches, Mapping):
        raise CalibrationError("recovery needs batches of model inputs, or examples; statistics don't do")
    kept, held = split_batches(batches)
    apart = any(mine is not given for mine, given in zip(held, batches, strict=False))
    return kept, held if apart else None
