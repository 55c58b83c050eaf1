"""Block-wise reconstruction: each block learns what the original's block puts out, from its own inputs.

Blocks run one after another: what a reconstructed block gives is what the next one reads, so that each
learns to make up for those before it. The original runs once; then the blocks alone run, and the activations
of two of them are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..calibration.held_out import Batch
from ..host.watch import LayerCall, watch_layers
from ..progress import Steps

# Tokens of all examples that blocks learn from: 1,000 short sentences.
_MOST_TOKENS = 24576

# Every eighth batch judges, the others train.
_HELD_OUT = 8

# Peak size of a step relative to the root mean square of the tensor. Twice as much raised the loss of blocks
# of which most is left.
_RATE = 0.01

# Gradient steps for each block.
BLOCK_STEPS = 60

# Shares of the steps until the rate's peak.
_WARMUP = 0.15

# Spreads a few batches evenly over many, however many are taken (the golden ratio).
_SPREAD = 0.6180339887


@dataclass(frozen=True)
class BlockReport:
    """One block after its reconstruction.

    Attributes:
        name: relative to the base model.
        error_before: relative error of its output on held-out batches, from its own inputs, before.
        error_after: the same afterwards; at most error_before.
    """

    name: str
    error_before: float
    error_after: float


@dataclass(eq=False)
class _Call:
    """One call of a block: its first argument, the others, and the mask of real tokens.

    The first argument is None where it is what the block before puts out.
    """

    hidden: Tensor | None
    arguments: dict[str, Any]
    real: Tensor | None


def reconstruct_blocks_(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    blocks: Mapping[str, nn.Module],
    originals: Mapping[str, Sequence[nn.Module]],
    batches: Sequence[Batch],
    *,
    steps: int,
    seed: int = 0,
    progress: bool = False,
) -> list[BlockReport]:
    """Train the blocks of a model, one after another, towards the original's block outputs; no labels.

    Args:
        student: the smaller model; its blocks are trained in place.
        teacher: the original; left as it was found.
        blocks: the student's blocks by name, in the order they run.
        originals: by the same names the teacher's blocks that each stands for, one after another.
        batches: model inputs by name, at least one; a spread of them is used.
        steps: gradient steps for each block, >= 1.
        seed: of the order of the batches.
        progress: whether to draw a progress bar on stderr.

    Returns:
        Errors by block.

    Raises:
        CalibrationError: a batch that the model refuses.

    Source:
        Nagel et al. 2020, arXiv:2004.10568, and Li et al. 2021, arXiv:2102.05426, for block after block.
    """
    for block in blocks.values():
        _renew_parameters_(block)
    few = list(_spread(batches))
    reports = []
    theirs = _calls(teacher, originals, few)
    mine: list[Tensor] = []
    outputs: list[Tensor] = []
    for name in Steps(blocks, title="Fitting blocks to their outputs", unit="block", progress=progress):
        calls = theirs.pop(name)
        if any(call.hidden is not None for call in calls):
            # The first block, or one that doesn't read the block before it: of another tower, say.
            own = _calls(student, {name: [blocks[name]]}, few)[name]
            mine = [cast(Tensor, call.hidden) for call in own]
        read = [last if c.hidden is None else c.hidden for c, last in zip_longest(calls, outputs)]
        outputs = [_through(originals[name], c, h) for c, h in zip(calls, read, strict=True)]
        reports.append(_reconstruct_block_(name, blocks[name], calls, mine, outputs, steps, seed))
        mine = [_output(blocks[name], call, hidden) for call, hidden in zip(calls, mine, strict=True)]
    return reports


def _renew_parameters_(block: nn.Module) -> None:
    """Let a block have parameters of its own, so that those it came with stay as they are for others."""
    for module in block.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                renewed = nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
                module._parameters[name] = renewed


def _spread(batches: Sequence[Batch]) -> Iterator[Batch]:
    """Batches from all parts of the data, until they hold enough tokens."""
    tokens = 0
    for index in sorted(range(len(batches)), key=lambda i: i * _SPREAD % 1):
        if tokens >= _MOST_TOKENS:
            return
        yield batches[index]
        first = next(v for v in batches[index].values() if isinstance(v, Tensor))
        # An image of three dimensions and a batch counts as 256 tokens, a text as its own.
        tokens += first.numel() if first.dim() == 2 else 256 * len(first)


def _calls(
    model: nn.Module, runs: Mapping[str, Sequence[nn.Module]], batches: Sequence[Batch]
) -> dict[str, list[_Call]]:
    """What the first block of each run of blocks is called with, batch by batch; of several calls, the first.

    The model runs once for all of them.
    """
    found: dict[str, list[_Call]] = {name: [] for name in runs}
    names = list(runs)
    before = dict(zip(names[1:], names, strict=False))
    firsts = {name: run[0] for name, run in runs.items()}
    lasts = {f"{name}, last": run[-1] for name, run in runs.items() if len(run) > 1}
    put_out: dict[str, Tensor] = {}  # by runs, in the batch that is under way
    done = 0

    def see(call: LayerCall) -> None:
        name = call.name.removesuffix(", last")
        if call.name in runs and len(found[name]) <= done:
            found[name].append(_as_read(call, put_out.get(before.get(name, ""))))
        if call.name in lasts or f"{name}, last" not in lasts:
            put_out.setdefault(name, _first(call.output))

    for done in watch_layers(model, {**firsts, **lasts}, batches, see):  # noqa: B007
        put_out.clear()
    return found


def _as_read(call: LayerCall, last: Tensor | None) -> _Call:
    hidden = call.query_input
    mask = call.masks.get("attention_mask")
    real = mask if isinstance(mask, Tensor) and mask.shape == hidden.shape[:-1] else None
    rest = dict(call.arguments)
    rest.pop("hidden_states" if "hidden_states" in rest else next(iter(rest)))
    for cache in ("past_key_values", "past_key_value"):
        rest.pop(cache, None)
    same = last is not None and last.shape == hidden.shape and torch.equal(last, hidden)
    return _Call(None if same else hidden, rest, None if real is None else real != 0)


@torch.no_grad()
def _output(block: nn.Module, call: _Call, hidden: Tensor) -> Tensor:
    return _first(block(hidden, **call.arguments))


def _through(run: Sequence[nn.Module], call: _Call, hidden: Tensor) -> Tensor:
    for block in run:
        hidden = _output(block, call, hidden)
    return hidden


def _first(output: Any) -> Tensor:
    first: Tensor = output[0] if isinstance(output, tuple) else output
    return first


def _reconstruct_block_(
    name: str,
    block: nn.Module,
    calls: Sequence[_Call],
    inputs: Sequence[Tensor],
    targets: Sequence[Tensor],
    steps: int,
    seed: int,
) -> BlockReport:
    held = range(0, len(calls), _HELD_OUT)
    training = [i for i in range(len(calls)) if i % _HELD_OUT] or list(held)
    parameters = [p for p in block.parameters() if p.is_floating_point()]
    required = [p.requires_grad for p in parameters]
    kept = [p.detach().clone() for p in parameters]

    def loss(index: int) -> Tensor:
        difference = _first(block(inputs[index], **calls[index].arguments)) - targets[index]
        target, real = targets[index], calls[index].real
        if real is not None:
            difference, target = difference[real], target[real]
        return difference.square().sum() / target.square().sum().clamp_min(torch.finfo(target.dtype).tiny)

    before = _mean(loss, held)
    _train(parameters, loss, training, steps, seed)
    after = _mean(loss, held)
    if not after < before:
        torch._foreach_copy_([p.detach() for p in parameters], kept)
        after = before
    for parameter, need in zip(parameters, required, strict=True):
        parameter.requires_grad_(need)
        parameter.grad = None
    return BlockReport(name, before**0.5, after**0.5)


@torch.no_grad()
def _mean(loss: Callable[[int], Tensor], indices: Sequence[int]) -> float:
    return float(torch.stack([loss(index).double() for index in indices]).mean())


def _train(
    parameters: Sequence[nn.Parameter],
    loss: Callable[[int], Tensor],
    training: Sequence[int],
    steps: int,
    seed: int,
) -> None:
    """Adam over one learning rate cycle, with steps relative to each tensor's size."""
    rates = [_RATE * max(1e-3, float(p.detach().square().mean().sqrt())) for p in parameters]
    optimizer = torch.optim.Adam([{"params": [p.requires_grad_(True)]} for p in parameters])
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rates, steps, pct_start=_WARMUP, cycle_momentum=False
    )
    order = torch.Generator().manual_seed(seed)
    queue: list[int] = []
    with torch.enable_grad():
        for _ in range(steps):
            queue = queue or torch.randperm(len(training), generator=order).tolist()
            optimizer.zero_grad()
            loss(training[queue.pop()]).backward()
            optimizer.step()
            schedule.step()
