"""Masks that carry a content bias, and wide scores in pieces; graphs above the size where pieces begin."""

import os
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from random_models import PLANS, make_collab_
from torch import Tensor
from torch.export import Dim
from transformers import BertModel

from collab_hf import wide
from collab_hf.wide import add_to_mask, wide_attention

# float64: sums of a few hundred numbers of the order of one in another order.
EXACT = 1e-12
B, H, T, W, V = 2, 3, 70, 12, 4


def tensors(keys: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def random(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64)

    return random(B, H, T, W), random(B, keys, T, W), random(B, H, T, V), random(B, H, 1, T)


def reference(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    scores = query @ key.transpose(2, 3) * 0.3
    if mask is not None:
        scores = scores + mask
    return (scores.softmax(-1).nan_to_num(0.0) @ value).transpose(1, 2)


@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize("keys", [1, H])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_the_formula(
    pieces: bool, keys: int, causal: bool, biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wide, "_PIECE_BYTES", 1 if pieces else 1 << 30)
    query, key, value, bias = tensors(keys)
    mask = torch.zeros(T, T, dtype=torch.float64)
    if causal:
        mask = mask.masked_fill(~torch.ones(T, T, dtype=torch.bool).tril(), float("-inf"))
    expected = reference(query, key, value, mask + bias if biased else mask)
    got = wide_attention(query, key, value, None, 0.3, bias=bias if biased else None, causal=causal)
    torch.testing.assert_close(got, expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize("shape", [(B, 1, T, T), (1, 1, T, T), (B, 1, 1, T), (B, H, T, T), (T, T)])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_masks_of_every_shape(shape: tuple[int, ...], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value, _ = tensors()
    allowed = torch.rand(shape) < 0.5
    allowed[..., 0, :] = False  # nothing to attend
    additive = torch.zeros(shape, dtype=torch.float64).masked_fill(~allowed, float("-inf"))
    expected = reference(query, key, value, additive)
    for size in (1, 1 << 30):
        monkeypatch.setattr(wide, "_PIECE_BYTES", size)
        got = wide_attention(query, key, value, allowed if kind == "bool" else additive, 0.3)
        torch.testing.assert_close(got, expected, rtol=0, atol=EXACT)


def test_pieces_are_taken_when_large() -> None:
    """The thresholds that the tests above set by hand are what a long input reaches by itself."""
    short, long = torch.empty(1, 12, 128, 192), torch.empty(8, 12, 512, 192)
    assert wide._piece_rows(short, 128) is None
    assert wide._piece_rows(long, 512) == wide._PIECE_BYTES // (12 * 512 * 4)


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
    monkeypatch.setattr(wide, "_PIECE_BYTES", 1)
    model = make_collab_(tiny_bert(BertModel), PLANS[request.param])
    assert wide._piece_rows(torch.empty(2, H, 38, W), 38) is not None
    return model


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
