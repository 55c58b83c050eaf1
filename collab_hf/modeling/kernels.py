"""Attention in pieces that stay in a CPU's cache, scores of any width; masks that carry a content bias.

At inference on a CPU, plain products over a piece of the scores take less time than the stock kernel: they
need no padding of narrow queries and keys, and no copies of a key that all heads share. Graphs, GPUs,
training and a few tokens in half precision keep the stock kernel; for scores wider than a head, which it
serves badly, they get the formula itself.
Shapes as in attention.py, with G key heads (1 where all heads read the same key, else H).
This file ships with saved checkpoints: it imports torch alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

from .masks import blocked_rows, four_dimensional, lower_triangle, merge, part_of
from .plain_attention import plain_attention

# Scores of one piece in bytes, for each thread: twice a core's second-level cache (of 1 MiB where this was
# measured). Half as much costs a layer up to 10 % more time at 1,024 tokens, a quarter up to 20 %; twice as
# much saves up to 7 %, but counts on more of the third level than a core may have.
_PIECE_BYTES = 2 << 20
# The same where gradients are followed: from length 512 on, pieces of 2 MiB cost a training step about 10 %
# more, and so do those of 16 MiB.
_TRAINING_BYTES = 8 << 20
# Fewer tokens than these, in all samples, are attended in float32: a product in half precision costs some
# 20 microseconds before it begins.
_FEW_TOKENS = 64


def prefers_pieces(query: Tensor, key_length: int, score_width: int, head_width: int, dropout: float) -> bool:
    """Whether `attend_` may serve, and is faster than what else there is.

    Args:
        query: shared queries, (B, T, R).
        key_length: S.
        score_width: W.
        head_width: V.
        dropout: probability of dropping an attention weight.

    Returns:
        False off the CPU, in a graph, and with gradients, dropout or autocast.
    """
    if not query.is_cpu or dropout or torch.is_grad_enabled() or _is_traced():
        return False
    # Autocast leaves operations that write in place alone, so their operands could differ in dtype.
    if torch.is_autocast_enabled("cpu"):
        return False
    if query.element_size() == 2:
        # A few queries of many keys: neither dtype of pieces is as fast as the kernel.
        batch, length, _ = query.shape
        return batch * length >= _FEW_TOKENS or batch * key_length < _FEW_TOKENS
    # At equal widths nothing is padded, and the stock kernel is up to a tenth faster in float32.
    return score_width != head_width


def product_dtype(dtype: torch.dtype, tokens: int) -> torch.dtype:
    """The dtype in which `attend_` is fastest.

    Args:
        dtype: that of queries, keys and values.
        tokens: keys of all samples.

    Returns:
        float32 for a few tokens in half precision, or where the CPU does not have that; else the same.
    """
    few = dtype.itemsize == 2 and tokens < _FEW_TOKENS
    return torch.float32 if few or not is_native(dtype) else dtype


@cache
def is_native(dtype: torch.dtype) -> bool:
    """Whether the CPU multiplies a dtype itself.

    Args:
        dtype: a floating-point one.

    Returns:
        False for half precision that is computed in float32.
    """
    name = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype)
    return name is None or bool(getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported")())


def samples_at_once(sample_bytes: int) -> int:
    """How many samples' queries stay in the cache until they are used.

    Args:
        sample_bytes: size of one sample's queries.

    Returns:
        At least 1.
    """
    return max(1, _piece_bytes() // sample_bytes)


def even_slices(total: int, most: int) -> Iterator[slice]:
    """Slices of a whole, in order, equal but for the last.

    Args:
        total: size of the whole.
        most: greatest size of a slice; less than 1 counts as 1.

    Yields:
        As few slices as that allows.
    """
    parts = max(1, -(-total // max(1, most)))
    size = max(1, -(-total // parts))
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def attend_(
    output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    *,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    causal: bool = False,
) -> None:
    """Fill the output with softmax(query key^T * scaling + bias + mask) value, a piece of scores at a time.

    Args:
        output: (B, T, H, V), of any dtype; zeros where a query may attend nothing, as torch's own kernels
            give.
        query: (B, H, T, W), in the dtype of all products.
        key: (B, G, S, W), the same.
        value: (B, H, S, V), the same.
        scaling: factor of the scores.
        mask: None, boolean (True attends) or additive, broadcastable to (B, H, T, S).
        bias: content bias of (B, H, 1, S), already scaled.
        causal: without a mask, each query attends the keys up to its own position only.
    """
    batch, heads, length, _ = query.shape
    mask = four_dimensional(mask)
    causal = causal and mask is None and length > 1
    rows_at_once = _piece_bytes() // (key.shape[2] * query.element_size())
    if batch * heads * length <= rows_at_once:
        # Slices of all of it would take a third of a short input's time.
        _attend_piece_(output, query, key, value, scaling, mask, bias, 0 if causal else None)
    else:
        for piece in _pieces(batch, heads, length, rows_at_once):
            samples, some, rows = piece
            _attend_piece_(
                output[samples, rows, some],
                query[piece],
                key[samples, some if key.shape[1] > 1 else slice(None)],
                value[samples, some],
                scaling,
                part_of(mask, *piece),
                part_of(bias, samples, some),
                rows.start if causal else None,
            )
    blocked = blocked_rows(mask)
    if blocked is not None:
        output.masked_fill_(blocked.transpose(1, 2), 0.0)


def wide_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    *,
    bias: Tensor | None = None,
    dropout: float = 0.0,
    causal: bool = False,
) -> Tensor:
    """softmax(query key^T * scaling + bias + mask) value, for queries wider than the values.

    Args:
        query: (B, H, T, W).
        key: (B, 1, S, W) shared by all heads, or (B, H, S, W).
        value: (B, H, S, V).
        mask: None, boolean (True attends) or additive, broadcastable to (B, H, T, S).
        scaling: factor of the scores.
        bias: content bias of (B, H, 1, S), already scaled.
        dropout: probability of dropping an attention weight.
        causal: without a mask, each query attends the keys up to its own position only.

    Returns:
        (B, T, H, V); zeros where a query may attend nothing, as torch's own kernels give.
    """
    batch, heads, length, _ = query.shape
    if mask is None and causal and length > 1:
        mask = torch.ones(length, key.shape[2], dtype=torch.bool, device=query.device).tril()
    # Data-dependent loops would be unrolled into a graph, and a GPU gains nothing from small pieces.
    if query.device.type != "cpu" or _is_traced():
        return plain_attention(query, key, value, bias, mask, scaling, dropout).transpose(1, 2)
    mask = four_dimensional(mask)
    done = []
    row_bytes = key.shape[2] * query.element_size()
    for piece in _pieces(batch, heads, length, _TRAINING_BYTES // row_bytes):
        samples, some, _ = piece
        few_keys = key[samples, some] if key.shape[1] > 1 else key[samples]
        few_biases, allowed = part_of(bias, samples, some), part_of(mask, *piece)
        part = plain_attention(
            query[piece], few_keys, value[samples, some], few_biases, allowed, scaling, dropout
        )
        done.append(part.reshape(-1, value.shape[-1]))
    # Pieces follow each other in the order (B, H, T).
    return torch.cat(done).view(batch, heads, length, -1).transpose(1, 2)


def _is_traced() -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]


def _piece_bytes() -> int:
    return _PIECE_BYTES * torch.get_num_threads()


def _pieces(batch: int, heads: int, length: int, rows_at_once: int) -> Iterator[tuple[slice, slice, slice]]:
    """Samples, heads and queries of each piece: whole samples, else whole heads of one, else some queries."""
    # A product of fewer than 16 queries is slow however well it fits the cache.
    rows = max(16, rows_at_once)
    for samples in even_slices(batch, rows // (heads * length)):
        for some in even_slices(heads, rows // length):
            for chosen in even_slices(length, rows):
                yield samples, some, chosen


def _attend_piece_(
    output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    mask: Tensor | None,
    bias: Tensor | None,
    first: int | None,
) -> None:
    """`attend_` of all queries at once; of a causal mask, `first` is where the first query stands."""
    batch, heads, length, width = query.shape
    if first is not None:
        seen = first + length  # no query sees later keys
        key, value, bias = key[:, :, :seen], value[:, :, :seen], None if bias is None else bias[..., :seen]
        mask = lower_triangle(slice(first, seen), key.device)
    added = bias if mask is None else merge(bias, mask)
    shape = (batch, heads, length, key.shape[2])
    if key.shape[1] == 1:
        # One product for all heads: (B, H, T, W) -> (B, H*T, W)
        query = query.reshape(batch, 1, heads * length, width)
    query, key = query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2)
    # One block of memory for scores and weights, free again for the next piece: it stays in the cache.
    scores = query.new_empty(*query.shape[:2], shape[3])
    if added is None:
        torch.baddbmm(scores, query, key, beta=0, alpha=scaling, out=scores)
    else:
        # The sum is rounded to the dtype once: not the product first, and then the sum.
        scores.view(shape).copy_(added)
        torch.baddbmm(scores, query, key, alpha=scaling, out=scores)
    weights = torch.softmax(scores, -1, out=scores).view(batch * heads, length, -1)
    result = torch.bmm(weights, value.flatten(0, 1))
    output.copy_(result.view(batch, heads, length, -1).transpose(1, 2))
