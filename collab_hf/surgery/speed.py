"""Plans that are as fast as asked for, by timing models of the planned sizes."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from ..config import CollabConfig
from ..errors import ConfigError, ExportError
from ..host.inputs import evaluating
from ..host.sites import all_attention_sites
from ..measure.bench import MIN_PAIRS, Case, check_case, compare_calls, forward_call
from ..modeling.modeling_collab import changed_modules
from ..modeling.plans import Plans, apply_plans_
from ..parts.query_key.methods import METHODS
from ..planning.attention_options import AttentionForm
from ..planning.measured import Measured
from ..planning.whole import choose_whole, dense_sizes
from ..planning.whole_plan import WholePlan

Plan = TypeVar("Plan")

# Looks for the share of the operations that gives a speed: by the secant rule, until within this of it.
_SPEED_STEPS = 7
_SPEED_SLACK = 0.03
# Seconds that each pair of models is timed.
_TIMED_SECONDS = 2.0
# Where nobody asked for speed: so few pairs after two warm-ups of both models, and none if that takes longer.
_FEW_PAIRS = 3
_FEW_CALLS = 2 * (2 + _FEW_PAIRS)
_MOST_SECONDS = 8.0
# Hosts refuse random inputs in their own ways: no images beside the text, too many tokens, no end token.
_REFUSALS = (IndexError, KeyError, RuntimeError, TypeError, ValueError)


@torch.no_grad()
def sized(model: PreTrainedModel, plans: Plans) -> PreTrainedModel:
    """A model of the planned sizes with numbers of no meaning, to be timed.

    Args:
        model: the dense model; left as it is.
        plans: forms by section and site.

    Returns:
        A copy.
    """
    made = copy.deepcopy(model)
    apply_plans_(made, with_copies(plans, made))
    for _, module in changed_modules(made):
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.02)
    return made


def with_copies(plans: Plans, model: nn.Module) -> Plans:
    """Plans with the form `copy` for queries and keys where values alone are narrower.

    Hosts have values as wide as a head; our attention takes any.

    Args:
        plans: forms by section and site.
        model: the dense model.

    Returns:
        The plans.
    """
    found = {**plans, "layers": dict(plans.get("layers", {}))}
    sites = all_attention_sites(model)
    for name in plans.get("value_output", {}):
        if name not in found["layers"]:
            heads = plans.get("heads", {}).get(name)
            shape = AttentionForm(heads=heads).shape(sites[name].shape)
            found["layers"][name] = METHODS["copy"].given(CollabConfig(method="copy"), shape)
    return found


def speedup(
    original: PreTrainedModel,
    compressed: PreTrainedModel,
    config: CollabConfig,
    min_pairs: int = MIN_PAIRS,
) -> float:
    """How many times as fast a model is, timed in turns with the original.

    Args:
        original: the dense model.
        compressed: the smaller one.
        config: settings with length and batch size.
        min_pairs: timed however long that takes, at least 2.

    Returns:
        Median ratio of throughputs.
    """
    calls = [forward_call(model, _case(config)) for model in (original, compressed)]
    with evaluating(original), evaluating(compressed), torch.inference_mode():
        return compare_calls(*calls, seconds=_TIMED_SECONDS, min_pairs=min_pairs).throughput.median


def reported_speedup(
    original: PreTrainedModel, compressed: PreTrainedModel, config: CollabConfig
) -> float | None:
    """The speedup that a report tells, found within seconds where the target is not a speed.

    Args:
        original: the dense model.
        compressed: the smaller one.
        config: settings with length and batch size.

    Returns:
        None where random inputs of that length do not run, and where a pass takes too long to time several.
    """
    if config.speedup is not None:
        return speedup(original, compressed, config)
    try:
        check_case(original, _case(config))
        call = forward_call(original, _case(config))
        with evaluating(original), torch.inference_mode():
            start = time.perf_counter()
            call()
    except (ConfigError, ExportError, *_REFUSALS):
        return None
    if _FEW_CALLS * (time.perf_counter() - start) > _MOST_SECONDS:
        return None
    return speedup(original, compressed, config, _FEW_PAIRS)


def _case(config: CollabConfig) -> Case:
    return Case(config.batch_size, config.length, threads=torch.get_num_threads())


def at_speed(model: PreTrainedModel, measured: Measured, config: CollabConfig, length: int) -> Chosen | None:
    """The plan of least loss that is as fast as asked for, by timing models of the planned sizes.

    Args:
        model: the dense model; left as it is.
        measured: what planning found out about it.
        config: settings with a speedup.
        length: tokens of the sequence that operations are counted for.

    Returns:
        The plan with the most operations among those timed that are fast enough; None where none is.
    """
    dense, _ = dense_sizes(measured, length)
    try:
        plan, fast = look_for_speed(
            lambda share: choose_whole(measured, length, operations=share * dense),
            lambda chosen: speedup(model, sized(model, chosen.plans()), config),
            float(config.speedup or 1.0),
        )
    except ConfigError:
        return None
    return Chosen(plan, fast)


def look_for_speed(
    choose: Callable[[float], Plan], timed: Callable[[Plan], float], speed: float
) -> tuple[Plan, float]:
    """The plan with the most operations that is fast enough, by timing plans.

    Args:
        choose: gives the plan of least loss within a share of the operations, or raises ConfigError.
        timed: how many times as fast as the original a plan's model is.
        speed: how many times as fast it is to be.

    Returns:
        The plan, and how many times as fast its model is.

    Raises:
        ConfigError: no plan that was timed is fast enough.
    """
    wanted = 1 / speed
    slow: tuple[float, float] = (1.0, 1.0)  # share of the operations, and time over the original's
    fast: tuple[float, float] | None = None
    best: tuple[Plan, float] | None = None
    share = wanted
    for _ in range(_SPEED_STEPS):
        try:
            plan = choose(share)
        except ConfigError:
            break
        time = 1 / timed(plan)
        if time <= wanted:
            fast, best = (share, time), (plan, 1 / time)
            if time >= wanted * (1 - _SPEED_SLACK):
                break
        else:
            slow = (share, time)
        share = _next_share(slow, fast, wanted)
    if best is None:
        raise ConfigError(f"no choice of forms is {speed:g} times as fast on this machine")
    return best


def _next_share(slow: tuple[float, float], fast: tuple[float, float] | None, wanted: float) -> float:
    """Where the time is expected to be what is wanted, between a slow share and a fast one."""
    if fast is None:
        return slow[0] * wanted / slow[1] * (1 - _SPEED_SLACK)
    aim = wanted * (1 - _SPEED_SLACK / 2)
    part = (aim - fast[1]) / max(slow[1] - fast[1], 1e-9)
    return fast[0] + min(0.9, max(0.1, part)) * (slow[0] - fast[0])


def subsets(parts: Sequence[str]) -> list[tuple[str, ...]]:
    """Sets of parts that plans are made for: all, and those that the hosts' own kernels serve."""
    stock = tuple(part for part in parts if part in _STOCK)
    return [tuple(parts)] if stock in ((), tuple(parts)) else [tuple(parts), stock]


# Parts that the hosts' own kernels serve: on short inputs their forms can be faster at more operations.
_STOCK = ("heads", "feed_forward", "embeddings")


@dataclass(frozen=True)
class Chosen:
    """A plan, and how fast its model is.

    Attributes:
        plan: what every site gets.
        speedup: times as fast as the original; None where speed was not asked for.
    """

    plan: WholePlan
    speedup: float | None = None
