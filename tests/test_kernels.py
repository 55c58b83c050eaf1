"""Attention in pieces, masks that carry a content bias; graphs above the size where pieces begin."""

import os
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from random_models import PLANS, make_collab_
from torch import Tensor, nn
from torch.export import Dim
from transformers import BertModel

from collab_hf.measure.bench_counts import count_flops, peak_memory
from collab_hf.modeling import attention, kernels
from collab_hf.modeling.kernels import attend_, prefers_pieces, wide_attention
from collab_hf.modeling.masks import add_to_mask

# float64: sums of a few hundred numbers of the order of one in another order.
EXACT = 1e-12
# Outputs are of the order of one. Queries, keys and weights are rounded once each, and scores once in the
# dtype of the products: some units in the last place.
TOLERANCE = {torch.float64: EXACT, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
B, H, T, W, V = 2, 3, 70, 12, 4
SCALING = 0.3


def tensors(keys: int = 1, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def random(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype)

    return random(B, H, T, W), random(B, keys, T, W), random(B, H, T, V), random(B, H, 1, T)


def reference(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    scores = query.double() @ key.double().transpose(2, 3) * SCALING
    if mask is not None:
        scores = scores + mask
    return (scores.softmax(-1).nan_to_num(0.0) @ value.double()).transpose(1, 2)


def in_pieces(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **arguments: Any) -> Tensor:
    batch, heads, length, _ = query.shape
    output = query.new_full((batch, length, heads, value.shape[-1]), float("nan"))
    attend_(output, query, key, value, SCALING, mask=mask, **arguments)
    return output


def whole(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **arguments: Any) -> Tensor:
    return wide_attention(query, key, value, mask, SCALING, **arguments)


both = pytest.mark.parametrize("attend", [in_pieces, whole])


def set_piece(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(kernels, "_PIECE_BYTES", size)
    monkeypatch.setattr(kernels, "_TRAINING_BYTES", size)


# Pieces of 16 queries; of one head (a row is 70 numbers of 8 bytes); of one sample; of all.
@pytest.mark.parametrize("size", [1, 70 * 70 * 8, 70 * 70 * 8 * H, 1 << 30])
@pytest.mark.parametrize("keys", [1, H])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@both
def test_the_formula(
    attend: Any, size: int, keys: int, causal: bool, biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_piece(monkeypatch, size)
    query, key, value, bias = tensors(keys)
    mask = torch.zeros(T, T, dtype=torch.float64)
    if causal:
        mask = mask.masked_fill(~torch.ones(T, T, dtype=torch.bool).tril(), float("-inf"))
    expected = reference(query, key, value, mask + bias if biased else mask)
    got = attend(query, key, value, None, bias=bias if biased else None, causal=causal)
    torch.testing.assert_close(got, expected, rtol=0, atol=EXACT)
    # Negative control: the tolerance tells one key that is not seen.
    mask[..., 0, 0] = float("-inf")
    assert (reference(query, key, value, mask + bias if biased else mask) - got).abs().max() > 1e-3


@pytest.mark.parametrize(
    "shape", [(B, 1, T, T), (1, 1, T, T), (B, 1, 1, T), (1, H, T, T), (B, H, T, T), (T, T), (1, T)]
)
@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("biased", [False, True])
@both
def test_masks_of_every_shape(
    attend: Any, shape: tuple[int, ...], kind: str, biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, key, value, bias = tensors()
    allowed = torch.rand(shape) < 0.5
    if shape != (1, T):
        allowed.view(-1, T)[0] = False  # nothing to attend
    additive = torch.zeros(shape, dtype=torch.float64).masked_fill(~allowed, float("-inf"))
    expected = reference(query, key, value, additive + bias if biased else additive)
    mask = allowed if kind == "bool" else additive
    before = mask.clone()
    for size in (1, 70 * 70 * 8, 1 << 30):
        set_piece(monkeypatch, size)
        got = attend(query, key, value, mask, bias=bias if biased else None)
        torch.testing.assert_close(got, expected, rtol=0, atol=EXACT)
    assert torch.equal(mask, before)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 2, 65, 17), (2, 4, 130, 130), (2, 3, 17, 300)], ids=str)
@pytest.mark.parametrize("masked", [None, "padding", "repeated", "float"])
def test_pieces_and_the_stock_kernel(
    dtype: torch.dtype, shape: tuple[int, ...], masked: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are as near to the formula, over shapes (B, H, T, S), masks and dtypes; also of sliced tensors."""
    batch, heads, length, keys = shape
    query = torch.randn(batch, length, heads, 8, dtype=dtype).transpose(1, 2)
    key = torch.randn(batch, keys, heads, 8, dtype=dtype).transpose(1, 2)
    value = torch.randn(batch, keys, heads, 16, dtype=dtype).transpose(1, 2)
    mask = None
    if masked:
        mask = torch.ones(batch, 1, 1, keys, dtype=torch.bool)
        mask[-1, ..., keys // 2 :] = False  # and nothing at all to attend where there is one key
        mask = mask if masked == "padding" else mask.expand(-1, -1, length, -1).contiguous()
    additive = None if mask is None else torch.zeros(mask.shape).double().masked_fill(~mask, float("-inf"))
    expected = reference(query, key, value, additive)
    if masked == "float":
        mask = None if additive is None else additive.to(dtype)
    padded = (nn.functional.pad(x, (0, 8)) for x in (query, key))
    stock = nn.functional.scaled_dot_product_attention(*padded, value, attn_mask=mask, scale=SCALING)
    torch.testing.assert_close(stock.transpose(1, 2).double(), expected, rtol=0, atol=TOLERANCE[dtype])
    for size in (1, 1 << 14, 1 << 20):
        monkeypatch.setattr(kernels, "_PIECE_BYTES", size)
        got = in_pieces(query, key, value, mask)
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=TOLERANCE[dtype])


def test_products_of_half_precision_in_float32() -> None:
    """Exact but for the rounding of the result."""
    query, key, value, _ = tensors(H, torch.bfloat16)
    output = value.new_empty(B, T, H, V)
    attend_(output, query.float(), key.float(), value.float(), SCALING)
    # Rounding to eight bits, twice the half unit for sums of float32 that fall on the other side.
    torch.testing.assert_close(output.double(), reference(query, key, value, None), rtol=2**-8, atol=1e-5)


def test_dtype_of_products(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in TOLERANCE:
        few, many = kernels.product_dtype(dtype, 63), kernels.product_dtype(dtype, 64)
        if dtype.itemsize > 2:
            assert few == many == dtype
        else:
            assert few == torch.float32
            assert many == (dtype if kernels.is_native(dtype) else torch.float32)
    asked_anew = kernels.is_native.__wrapped__
    for supported in (False, True):
        monkeypatch.setattr(
            torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda supported=supported: supported
        )
        assert asked_anew(torch.bfloat16) == supported
        assert asked_anew(torch.float32)


def test_pieces_hold_everything_once() -> None:
    for batch, heads, length, row_bytes in ((3, 5, 70, 280), (1, 1, 1, 4), (7, 2, 16, 64), (2, 3, 33, 10**9)):
        for size in (1, 1000, 40_000, 1 << 20):
            seen = torch.zeros(batch, heads, length, dtype=torch.int)
            places = torch.arange(seen.numel()).view(seen.shape)
            order = []
            for piece in kernels._pieces(batch, heads, length, size // row_bytes):
                seen[piece] += 1
                order.append(places[piece].flatten())
                assert seen[piece].numel() <= max(16, size // row_bytes)
            assert torch.equal(seen, torch.ones_like(seen))
            assert torch.equal(torch.cat(order), places.flatten())


def test_pieces_of_known_lengths() -> None:
    """12 heads in float32: eight samples of 64 tokens are one piece, two of 128, half a head of 1024."""

    def first(length: int) -> tuple[int, ...]:
        piece = next(kernels._pieces(32, 12, length, kernels._PIECE_BYTES // (4 * length)))
        return tuple(part.stop for part in piece)

    assert first(64) == (8, 12, 64)
    assert first(128) == (2, 12, 128)
    assert first(512) == (1, 2, 512)
    assert first(1024) == (1, 1, 512)


def test_where_pieces_are_preferred() -> None:
    long, half = torch.empty(1, 64, 8), torch.empty(1, 64, 8, dtype=torch.bfloat16)
    assert not prefers_pieces(long, 64, 32, 64, 0.0)  # gradients are followed
    with torch.no_grad():
        assert prefers_pieces(long, 64, 32, 64, 0.0)
        assert prefers_pieces(long, 64, 184, 64, 0.0)
        assert prefers_pieces(half, 64, 64, 64, 0.0)
        assert not prefers_pieces(long, 64, 64, 64, 0.0)  # nothing to pad
        assert prefers_pieces(long[:, :1], 64, 32, 64, 0.0)
        assert not prefers_pieces(half[:, :63], 64, 32, 64, 0.0)  # few queries, many keys
        assert prefers_pieces(half[:, :63], 63, 32, 64, 0.0)
        assert prefers_pieces(half.view(8, 8, 8), 8, 32, 64, 0.0)
        assert not prefers_pieces(long, 64, 32, 64, 0.1)
        assert not prefers_pieces(long.to("meta"), 64, 32, 64, 0.0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not prefers_pieces(long, 64, 32, 64, 0.0)


def test_what_pieces_take_is_counted_and_small(tiny_bert: Callable[..., Any], monkeypatch: Any) -> None:
    model = make_collab_(tiny_bert(BertModel, max_position_embeddings=512), PLANS["tucker-narrow"])
    layer, states = model.encoder.layer[0].attention.self, torch.randn(4, 512, 24)

    def call() -> None:
        with torch.inference_mode():
            layer(states)

    operations, peak = count_flops(call), peak_memory(call)
    monkeypatch.setattr(attention, "prefers_pieces", lambda *_: False)
    # The stock kernel multiplies the zeros that queries and keys are padded with.
    padding = 2 * 4 * 3 * 512 * 512 * (8 - PLANS["tucker-narrow"].score_width)
    assert operations == count_flops(call) - padding
    assert peak < peak_memory(call) + kernels._PIECE_BYTES * torch.get_num_threads()


def test_a_bias_in_a_mask_stays_small() -> None:
    bias = torch.randn(B, H, 1, T)
    padding = torch.ones(B, 1, 1, T, dtype=torch.bool)
    padding[1, :, :, 50:] = False
    assert add_to_mask(bias, None, T, False) is bias
    for mask in (padding, padding.expand(B, 1, T, T), torch.zeros(B, 1, 1, T)):
        assert add_to_mask(bias, mask, T, False).shape == (B, H, 1, T)
    expanded = add_to_mask(bias, padding.expand(B, 1, T, T), T, False)
    assert torch.equal(expanded, bias.masked_fill(~padding, float("-inf")))
    causal = add_to_mask(bias, None, T, True)
    assert causal.shape == (B, H, T, T)
    assert torch.equal(causal.isinf()[0, 0], ~torch.ones(T, T, dtype=torch.bool).tril())


def outputs(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(input_ids=ids, attention_mask=mask).last_hidden_state
    return result


@pytest.fixture
def long_inputs() -> Callable[..., tuple[Tensor, Tensor]]:
    def make(batch: int, length: int) -> tuple[Tensor, Tensor]:
        mask = torch.ones(batch, length, dtype=torch.long)
        mask[-1, length // 2 :] = 0
        return torch.randint(0, 50, (batch, length)), mask

    return make


@pytest.fixture(params=["cp", "tucker-narrow", "cp-sparse", "svd", "copy-exact"])
def large_model(
    request: pytest.FixtureRequest, tiny_bert: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Any:
    """A model whose inputs of 40 tokens are above the threshold."""
    set_piece(monkeypatch, 1)
    monkeypatch.setattr(kernels, "_FEW_TOKENS", 1)
    return make_collab_(tiny_bert(BertModel), PLANS[request.param])


# The compiler fuses, and so rounds, in another order; outputs are of the order of one.
COMPILED = 2e-5


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_export_with_any_shape(large_model: Any, long_inputs: Callable[..., Any]) -> None:
    ids, mask = long_inputs(2, 38)
    batch, length = Dim("batch", min=1, max=64), Dim("length", min=2, max=40)
    shapes = {"input_ids": {0: batch, 1: length}, "attention_mask": {0: batch, 1: length}}
    graph = torch.export.export(
        large_model, (), {"input_ids": ids, "attention_mask": mask}, dynamic_shapes=shapes, strict=False
    ).module()
    for size in ((2, 38), (3, 40), (1, 5)):
        ids, mask = long_inputs(*size)
        got, want = outputs(graph, ids, mask), outputs(large_model, ids, mask)
        torch.testing.assert_close(got, want, rtol=0, atol=COMPILED)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_compile_has_no_breaks(
    large_model: Any, long_inputs: Callable[..., Any], request: pytest.FixtureRequest
) -> None:
    # One form goes through the C++ compiler, which takes its time; the graphs of all are traced.
    # inductor's own code takes a C++ compiler, which a machine need not have.
    compiles = any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++"))
    backend = "inductor" if compiles and "[cp]" in request.node.name else "aot_eager"
    torch._dynamo.reset()
    compiled = torch.compile(large_model, fullgraph=True, dynamic=True, backend=backend)
    for size in ((2, 38), (3, 33)):
        ids, mask = long_inputs(*size)
        torch.testing.assert_close(
            outputs(compiled, ids, mask), outputs(large_model, ids, mask), rtol=0, atol=COMPILED
        )
    torch._dynamo.reset()
    compiled = torch.compile(large_model.train(), fullgraph=True, backend="aot_eager")
    compiled(*long_inputs(2, 38)).last_hidden_state.sum().backward()
    assert all(p.grad is not None for name, p in large_model.named_parameters() if "attention.self" in name)
