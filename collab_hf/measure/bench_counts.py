"""What a call takes: floating-point operations as they run and as plans count them, and memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from ..modeling.attention import CollabAttention
from ..parts.query_key.costs import attention_operations

Call = Callable[[], Any]


def saved_flops(model: nn.Module, batch_size: int, length: int) -> int:
    """Operations that the layers' plans save in one call: queries, keys and scores.

    Args:
        model: a compressed model.
        batch_size: examples in the call.
        length: tokens an example.

    Returns:
        Two operations for each multiply-add; negative where the compressed form takes more.
    """
    saved = 0
    for module in model.modules():
        if isinstance(module, CollabAttention):
            shape = module.collab_family.shape(module)
            dense = attention_operations(None, shape, length)
            saved += batch_size * (dense - attention_operations(module.collab_plan, shape, length))
    return saved


def count_flops(call: Call) -> int:
    """Floating-point operations that a call runs in matrix products and attention kernels.

    Args:
        call: what to run, once.

    Returns:
        Two operations for each multiply-add.
    """
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={flash: _attention_kernel_flops}) as counter:
        call()
    return int(counter.get_total_flops())


def peak_memory(call: Call, device: torch.device | None = None) -> int:
    """Most memory that a call holds at once beyond what was there before.

    Args:
        call: what to run, once.
        device: where it runs; by default the CPU.

    Returns:
        Bytes.
    """
    if device is not None and device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    # The profiler reads this when it first starts; else it notes on stderr that it starts and stops.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(profile_memory=True) as recorded:
        call()
    result: Any = recorded.kineto_results
    events = sorted((e.start_ns(), e.nbytes()) for e in result.events() if e.name() == "[memory]")
    held = peak = 0
    for _, change in events:
        held += change
        peak = max(peak, held)
    return peak


def _attention_kernel_flops(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any
) -> int:
    batch, heads, length, width = query
    return 2 * batch * heads * length * key[2] * (width + value[3])
