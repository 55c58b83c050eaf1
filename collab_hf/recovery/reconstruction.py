"""Layer-wise reconstruction: fit what each layer got to what the layer puts out, on cached inputs.

A decomposition minimises the error of all scores alike; attention reads some of them only. A few gradient
steps on the layer's own output close most of that gap, one layer at a time, without labels and without
running the rest of the model.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..host.watch import LayerCall, watch_layers
from ..parts.part import LayerwisePart
from ..processes import ALONE, Processes
from ..progress import Steps

# Tokens of one step, and of all examples: 1,000 short sentences or 64 images of 224 pixels fill the latter.
_STEP_TOKENS = 2048
_MOST_TOKENS = 16384

# Bytes of inputs and outputs that are kept at a time.
_CACHE_BYTES = 1 << 30

# Every eighth piece judges, the others train.
_HELD_OUT = 8

# Peak size of a step by stage, relative to the root mean square of the tensor: layers differ by a factor of
# ten in the size that they gain most from, and a stage that gains nothing is undone.
_RATES = (0.02, 0.005, 0.00125)

# Spreads a few indices evenly over many, however many are taken (the golden ratio).
_SPREAD = 0.6180339887

# What only the model's own run may touch.
_CACHES = ("past_key_values", "layer_past", "use_cache", "cache_position")


@dataclass(frozen=True)
class Reconstruction:
    """One layer after its reconstruction.

    Attributes:
        solution: the better of what came in and what came out.
        error_before: relative error of the attention output on held-out calibration tokens, before.
        error_after: the same afterwards; at most error_before.
    """

    solution: Any
    error_before: float
    error_after: float


@dataclass(frozen=True, eq=False)
class Piece:
    """A few examples of one call: arguments, output (N, T, V) and the mask of real tokens (N, T, 1)."""

    arguments: Mapping[str, Any]
    output: Tensor
    real: Tensor | None


def reconstruct(
    model: nn.Module,
    part: LayerwisePart,
    sites: Mapping[str, Any],
    solutions: Mapping[str, Any],
    batches: Sequence[Mapping[str, Any]],
    *,
    steps: int,
    seed: int = 0,
    processes: Processes = ALONE,
    progress: bool = False,
) -> dict[str, Reconstruction]:
    """Train what a part put into each layer, alone, on the dense layer's inputs and outputs.

    Args:
        model: the dense transformers model; left as it was found.
        part: what the solutions are of.
        sites: its dense sites by name.
        solutions: solutions for some or all of them.
        batches: model inputs by name, as for `collect_statistics`, at least one; a spread of them is used.
        steps: gradient steps for each layer.
        seed: of the order of the examples.
        processes: that share the layers.
        progress: show a progress bar on stderr.

    Returns:
        New solutions by name, float32. A layer that did not gain on held-out tokens keeps what it had.

    Raises:
        CalibrationError: a batch that the model refuses.

    Source:
        Nagel et al. 2020, arXiv:2004.10568, for fitting layer outputs one by one; Adam (arXiv:1412.6980) with
        steps relative to each tensor's scale (Shazeer & Stern 2018, arXiv:1804.04235, section 8).
    """
    names = [name for name in sites if name in solutions]
    chosen = {name: sites[name].module for name in processes.share(names)}
    with closing(recorded(model, chosen, batches)) as pieces:

        def work(name: str) -> Reconstruction:
            mine = next(pieces)[1]
            return reconstruct_layer(part, sites[name], solutions[name], mine, steps=steps, seed=seed)

        found = processes.each(names, work)
        title = "Fitting layers to their outputs"
        return dict(Steps(found, title=title, unit="layer", progress=progress, total=len(names)))


def recorded(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Sequence[Mapping[str, Any]],
    *,
    step_tokens: int = _STEP_TOKENS,
) -> Generator[tuple[str, list[Piece]]]:
    """Run the model and keep inputs and outputs of its layers, of as many at a time as memory is given to.

    Args:
        model: a dense transformers model; left as it was found.
        layers: dense attention modules of it by name.
        batches: model inputs by name, at least one; a spread of them is used.
        step_tokens: tokens of one piece at most, but for one example that has more.

    Yields:
        The name of each layer and what was kept of it, in order.

    Raises:
        CalibrationError: a batch that the model refuses.
    """
    names = list(layers)
    while names:
        group, names = _next_group(names, layers)
        pieces = _watch(model, {name: layers[name] for name in group}, batches, step_tokens)
        for name in group:
            yield name, pieces.pop(name)


def _next_group(names: list[str], layers: Mapping[str, nn.Module]) -> tuple[list[str], list[str]]:
    """As many of the first layers as the cache holds, and the others."""
    largest = max(max(p.shape) for p in layers[names[0]].parameters() if p.dim() == 2)
    width = 2 * largest  # inputs and outputs
    count = max(1, _CACHE_BYTES // (4 * width * _MOST_TOKENS))
    return names[:count], names[count:]


def _watch(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Sequence[Mapping[str, Any]],
    step_tokens: int,
) -> dict[str, list[Piece]]:
    """Inputs and outputs of the layers, from examples of all parts of the batches."""
    pieces: dict[str, list[Piece]] = {name: [] for name in layers}
    tokens = dict.fromkeys(layers, 0)

    def see(call: LayerCall) -> None:
        left = _MOST_TOKENS - tokens[call.name]
        if left > 0:
            pieces[call.name] += _split(call, left, step_tokens)
            tokens[call.name] += call.query_input.shape[:-1].numel()

    spread = sorted(range(len(batches)), key=lambda index: index * _SPREAD % 1)
    with closing(watch_layers(model, layers, (batches[index] for index in spread), see)) as running:
        for _ in running:
            if min(tokens.values()) >= _MOST_TOKENS:
                break
    return pieces


def _split(call: LayerCall, most: int, step_tokens: int) -> Iterator[Piece]:
    """The first tokens of a call, `most` or so, in parts of few; examples are whole."""
    source = call.query_input
    output = call.output[0] if isinstance(call.output, tuple) else call.output
    mask = call.masks.get("attention_mask")
    real = mask if isinstance(mask, Tensor) and mask.shape == source.shape[:-1] else None
    size, length = source.shape[:2]
    kept, count = min(size, max(1, most // length)), max(1, step_tokens // length)
    for start in range(0, kept, count):
        chosen = slice(start, min(start + count, kept))

        def part(value: Any, chosen: slice = chosen) -> Any:
            if not isinstance(value, Tensor) or value.dim() == 0 or len(value) != size:
                return value
            # A view would keep the rest of a large batch in memory.
            few = value[chosen] if kept == size else value[chosen].clone()
            return few.float() if few.is_floating_point() else few

        arguments = {name: part(value) for name, value in call.arguments.items() if name not in _CACHES}
        weight = None if real is None else (part(real) != 0).unsqueeze(-1).to(output.device, torch.float32)
        yield Piece(arguments, part(output), weight)


def reconstruct_layer(
    part: LayerwisePart, site: Any, solution: Any, pieces: Sequence[Piece], *, steps: int, seed: int = 0
) -> Reconstruction:
    """Train what a part puts into one layer on the layer's recorded inputs and outputs.

    Args:
        part: what the solution is of.
        site: the dense module; left as it was found.
        solution: what it gets.
        pieces: what `recorded` gave for it.
        steps: gradient steps.
        seed: of the order of the pieces.

    Returns:
        The better of what came in and what came out.
    """
    student: Any = copy.deepcopy(site.module).float().eval().requires_grad_(False)
    part.install_(replace(site, module=student), solution)
    trained = list(part.trained(student))
    held = pieces[::_HELD_OUT]
    seen = [piece for index, piece in enumerate(pieces) if index % _HELD_OUT] or pieces
    best = before = _error(student, held)
    order = torch.Generator().manual_seed(seed)
    for stage, rate in enumerate(_RATES):
        share = steps * (stage + 1) // len(_RATES) - steps * stage // len(_RATES)
        kept = [parameter.detach().clone() for parameter in trained]
        _train(student, trained, seen, share, rate, order)
        error = _error(student, held)
        if error < best:
            best = error
        else:
            torch._foreach_copy_([parameter.detach() for parameter in trained], kept)
    if best == before:
        return Reconstruction(solution, before, before)
    return Reconstruction(part.read(student, solution), before, best)


def _train(
    student: nn.Module,
    trained: Sequence[nn.Parameter],
    pieces: Sequence[Piece],
    steps: int,
    rate: float,
    order: torch.Generator,
) -> None:
    """Adam over one learning rate cycle."""
    if not steps:
        return
    rates = [rate * float(parameter.detach().square().mean().sqrt()) for parameter in trained]
    optimizer = torch.optim.Adam([{"params": [parameter.requires_grad_(True)]} for parameter in trained])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, steps, cycle_momentum=False)
    queue: list[int] = []
    with torch.enable_grad():
        for _ in range(steps):
            queue = queue or torch.randperm(len(pieces), generator=order).tolist()
            error, norm = _squares(student, pieces[queue.pop()])
            optimizer.zero_grad()
            (error / norm.clamp_min(torch.finfo(norm.dtype).tiny)).backward()
            optimizer.step()
            schedule.step()


def _squares(student: nn.Module, piece: Piece) -> tuple[Tensor, Tensor]:
    """Squared error and squared norm of the attention output at real tokens."""
    found = student(**piece.arguments)
    difference = (found[0] if isinstance(found, tuple) else found) - piece.output
    target = piece.output
    if piece.real is not None:
        difference, target = difference * piece.real, target * piece.real
    return difference.square().sum(), target.square().sum()


@torch.no_grad()
def _error(student: nn.Module, pieces: Sequence[Piece]) -> float:
    squares = [torch.stack(_squares(student, piece)) for piece in pieces]
    error, norm = torch.stack(squares).double().sum(0)
    return float((error / norm.clamp_min(torch.finfo(norm.dtype).tiny)).sqrt())
