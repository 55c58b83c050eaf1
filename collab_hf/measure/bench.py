"""How fast a compressed model is against its original: interleaved, repeated, and honest about noise."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import Any

import torch
from transformers import PreTrainedModel

from ..host.inputs import example_inputs, move
from ..modeling.errors import ConfigError
from .bench_counts import count_flops, peak_memory, saved_flops

# Quartiles of fewer pairs say nothing; more than this many change no second decimal.
MIN_PAIRS, MAX_PAIRS = 9, 400
# A turn repeats a short call for about so long, and once before that. Else most of what a call of a
# millisecond shows is whether the turn before has left its weights in the cache: at 16 tokens, quartiles of
# ratios lay up to 0.4 apart.
_TURN_SECONDS = 0.02

Call = Callable[[], Any]


@dataclass(frozen=True)
class Ratio:
    """Median of paired ratios, after over before, with its spread.

    Attributes:
        median: dimensionless; below 1 means less than before.
        low: first quartile of the pairs.
        high: third quartile of the pairs.
        pairs: how many there were.
    """

    median: float
    low: float
    high: float
    pairs: int

    @property
    def measured(self) -> bool:
        """Whether the quartiles are closer together than the median is to 1."""
        return self.high - self.low < abs(self.median - 1)

    def __str__(self) -> str:
        """The ratio, or `no difference measured`."""
        if not self.measured:
            return f"no difference measured ({self.low:.2f} to {self.high:.2f})"
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class Timing:
    """Two calls timed in turns.

    Attributes:
        seconds_before: median time of the first call.
        seconds_after: median time of the second call.
        latency: ratio of times, second over first.
        throughput: ratio of calls per second, second over first.
    """

    seconds_before: float
    seconds_after: float
    latency: Ratio
    throughput: Ratio


@dataclass(frozen=True)
class Case:
    """One set-up that is timed.

    Attributes:
        batch_size: examples in a call.
        length: tokens an example; images have their own.
        dtype: `float32`, `bfloat16` or `float16`.
        threads: threads that torch may use.
    """

    batch_size: int
    length: int
    dtype: str = "float32"
    threads: int = 1


@dataclass(frozen=True)
class Measurement:
    """What was found in one case.

    Attributes:
        case: the set-up.
        timing: times and their ratios.
        memory_before: peak of the activations in one call of the original, bytes.
        memory_after: the same of the compressed model.
        flops_before: floating-point operations of one call of the original, counted as they ran.
        flops_after: the same of the compressed model.
        flops_saved_by_plan: what the plans of the layers say is saved; more operations run than they count
            where kernels pad narrow scores.
    """

    case: Case
    timing: Timing
    memory_before: int
    memory_after: int
    flops_before: int
    flops_after: int
    flops_saved_by_plan: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; a ratio that was not measured is null."""
        values = asdict(self)
        for name in ("latency", "throughput"):
            ratio: Ratio = getattr(self.timing, name)
            values["timing"][name]["measured"] = ratio.measured
            if not ratio.measured:
                values["timing"][name]["median"] = None
        return values


def compare_calls(before: Call, after: Call, *, seconds: float = 2.0, min_pairs: int = MIN_PAIRS) -> Timing:
    """Time two calls in turns, so that whatever else the machine does falls on both alike.

    Args:
        before: the first call.
        after: the second call.
        seconds: about how long to measure, > 0.
        min_pairs: timed however long that takes, at least 2.

    Returns:
        Medians of both, and the ratios of the pairs.
    """
    return compare_all(before, {"after": after}, seconds=seconds, min_pairs=min_pairs)["after"]


def compare_all(
    before: Call, others: Mapping[str, Call], *, seconds: float = 2.0, min_pairs: int = MIN_PAIRS
) -> dict[str, Timing]:
    """Time several calls against one, in turns; short calls are repeated within a turn.

    Args:
        before: the call that the others are compared with.
        others: calls by name, at least one.
        seconds: about how long to measure each of the others, > 0.
        min_pairs: timed however long that takes, at least 2.

    Returns:
        Timing against `before`, by name.
    """
    calls = [("", before), *others.items()]
    once = [min(_time(call) for _ in range(2)) for _, call in calls]  # also the warm-up
    repeats = math.ceil(_TURN_SECONDS / max(once))
    rounds = max(min_pairs, min(MAX_PAIRS, int(seconds * len(others) / (repeats * sum(once)))))
    times: dict[str, list[float]] = {name: [] for name, _ in calls}
    for _ in range(rounds):
        # In the same order every time. Turned round every other time, the outermost calls would follow
        # themselves and find their weights in the cache.
        for name, call in calls:
            times[name].append(_time(call, repeats))
    return {name: _compare(times[""], times[name]) for name in others}


def bench_models(
    original: PreTrainedModel,
    compressed: PreTrainedModel,
    cases: Iterable[Case],
    *,
    seconds: float = 4.0,
    progress: Callable[[Case], None] = lambda case: None,
) -> list[Measurement]:
    """Time forward passes of two models against each other.

    Args:
        original: the dense model; its dtype is changed in place.
        compressed: the compressed one; its dtype is changed in place.
        cases: the set-ups, one measurement each.
        seconds: about how long each case is timed.
        progress: called before each case.

    Returns:
        One measurement a case, in their order.

    Raises:
        ConfigError: a case that the models can't run.
    """
    return [_measure(original, compressed, case, seconds, progress) for case in cases]


def _measure(
    original: PreTrainedModel,
    compressed: PreTrainedModel,
    case: Case,
    seconds: float,
    progress: Callable[[Case], None],
) -> Measurement:
    progress(case)
    check_case(original, case)
    dtype = getattr(torch, case.dtype)
    calls = [forward_call(model.to(dtype).eval(), case) for model in (original, compressed)]
    with _threads(case.threads), torch.inference_mode():
        timing = compare_calls(*calls, seconds=seconds)
        memory = [peak_memory(call, original.device) for call in calls]
        flops = [count_flops(call) for call in calls]
    return Measurement(
        case,
        timing,
        memory[0],
        memory[1],
        flops[0],
        flops[1],
        saved_flops(compressed, case.batch_size, case.length),
    )


def check_case(model: PreTrainedModel, case: Case) -> None:
    """Refuse a case that a model can't run.

    Args:
        model: a text or image model.
        case: the set-up.

    Raises:
        ConfigError: an unknown dtype, or more tokens than the model has positions.
    """
    if case.dtype not in ("float32", "bfloat16", "float16"):
        raise ConfigError(f"dtype must be float32, bfloat16 or float16, got {case.dtype!r}")
    most = getattr(model.config, "max_position_embeddings", math.inf)
    if case.length > most:
        raise ConfigError(f"length must be at most {most} for this model, got {case.length}")


def image_length(model: PreTrainedModel) -> int | None:
    """Tokens that an image of the model's own size becomes, its class token included.

    Args:
        model: of any kind.

    Returns:
        Their number; None where inputs are no images, or a composite's config does not say their size.
    """
    config: Any = getattr(model.config, "encoder", model.config)  # a composite's has the sizes
    if model.main_input_name != "pixel_values" or not hasattr(config, "image_size"):
        return None
    sizes = [s if isinstance(s, list | tuple) else (s, s) for s in (config.image_size, config.patch_size)]
    return int(math.prod(size // patch for size, patch in zip(*sizes, strict=True))) + 1


def forward_call(model: PreTrainedModel, case: Case) -> Call:
    """A forward pass over random inputs without padding.

    Args:
        model: a text or image model.
        case: batch size and length.

    Returns:
        A function without arguments that runs it.
    """
    inputs = example_inputs(model, batch=case.batch_size, length=case.length)
    inputs.pop("attention_mask", None)
    if getattr(model.config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = inputs["input_ids"]
    ready = move(inputs, model.device, model.dtype)
    return lambda: model(**ready)


def _time(call: Call, repeats: int = 1) -> float:
    """Seconds of one call, the mean of several in a row, which follow one that is not timed."""
    if repeats > 1:
        call()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def _compare(before: list[float], after: list[float]) -> Timing:
    latency = [second / first for first, second in zip(before, after, strict=True)]
    return Timing(median(before), median(after), _ratio(latency), _ratio([1 / ratio for ratio in latency]))


def _ratio(ratios: list[float]) -> Ratio:
    low, middle, high = quantiles(ratios, n=4)
    return Ratio(middle, low, high, len(ratios))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
