"""Every path of the collaborative attention equals one plain formula in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from random_models import PLANS, make_collab_
from torch import Tensor, nn
from transformers import BertModel

from collab_hf.modeling import attention, kernels
from collab_hf.modeling.errors import ConfigError
from collab_hf.modeling.plan import LayerPlan

HEADS, HEAD_DIM, HIDDEN = 3, 8, 24
# Relative to outputs of the order of one. Queries, keys and weights are rounded once each, so about three
# units in the last place; scores of the order of ten make the half-precision ones some ten times that.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 2e-2, torch.bfloat16: 1.5e-1}
MASKS = ["none", "bool", "float", "per-query", "blocked", "blocked-float"]


@pytest.fixture
def make(tiny_bert: Callable[..., Any]) -> Callable[..., Any]:
    """One attention module with random factors: `make(plan, backend, dtype)`."""

    def build(
        plan: LayerPlan, backend: str = "sdpa", dtype: torch.dtype = torch.float64, **settings: Any
    ) -> nn.Module:
        model = make_collab_(tiny_bert(BertModel, **settings), plan).to(dtype)
        model.config._attn_implementation = backend
        return model.encoder.layer[0].attention.self

    return build


def plain(module: Any, states: Tensor, mask: Tensor | None, causal: bool = False) -> Tensor:
    """softmax((x A P_h Q_h^T B^T y^T + l_h y^T) / sqrt(head_dim) + mask) y W_V, in float64."""
    plan, mixing = module.collab_plan, module.mixing
    x = states.detach().double()
    shared_key = module.query.weight if plan.tied else module.key.weight[: plan.key_rank]
    left = x @ module.query.weight.detach().double().T  # (B, T, R)
    right = x @ shared_key.detach().double().T
    queries = left.unsqueeze(1) @ mixing.query_maps().detach().double()  # (B, H, T, W)
    keys = right.unsqueeze(1) @ mixing.key_maps().detach().double()
    if mixing.bias is not None:
        queries = queries + mixing.bias.detach().double().unsqueeze(1)
    scores = queries @ keys.transpose(2, 3)
    if plan.content_bias == "exact":
        scores = scores + (x @ module.key.weight[-HEADS:].detach().double().T).transpose(1, 2).unsqueeze(2)
    scores = scores * HEAD_DIM**-0.5
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape).double().masked_fill(~mask, float("-inf"))
        scores = scores + mask.double()
    weights = scores.softmax(-1).nan_to_num(0.0)  # torch's kernels give zeros where nothing may be attended
    value = nn.functional.linear(
        x, module.value.weight.detach().double(), module.value.bias.detach().double()
    )
    value = value.unflatten(-1, (HEADS, -1)).transpose(1, 2)
    return (weights @ value).transpose(1, 2).flatten(2)


def make_mask(kind: str, batch: int, length: int, dtype: torch.dtype) -> Tensor | None:
    if kind == "none":
        return None
    if kind == "per-query":
        allowed = torch.rand(batch, 1, length, length) < 0.6
        return allowed | torch.eye(length, dtype=torch.bool)
    allowed = torch.ones(batch, 1, length, length, dtype=torch.bool)
    allowed[-1, :, :, length // 2 :] = False
    if kind == "blocked":
        allowed[0, :, 0] = False
    if kind in ("float", "blocked-float"):
        mask = torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, float("-inf"))
        if kind == "blocked-float":
            mask[0, :, 1] = float("-inf")
        return mask
    return allowed


def check(module: Any, length: int, kind: str, dtype: torch.dtype, **arguments: Any) -> None:
    states = torch.randn(2, length, HIDDEN, dtype=dtype)
    mask = make_mask(kind, 2, length, dtype)
    with torch.no_grad():
        fast = module(states, mask, **arguments)[0]
    followed = module(states, mask, **arguments)[0]
    expected = plain(module, states, mask, causal=arguments.get("is_causal", False))
    for got in (fast, followed):
        assert got.dtype == dtype
        torch.testing.assert_close(
            got.double(), expected, rtol=0, atol=TOLERANCE[dtype] * expected.abs().max()
        )


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("plan", PLANS)
def test_sdpa(plan: str, kind: str, dtype: torch.dtype, make: Callable[..., Any]) -> None:
    check(make(PLANS[plan], "sdpa", dtype), 9, kind, dtype)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("length", [1, 2, 9])
def test_causal(plan: str, length: int, make: Callable[..., Any]) -> None:
    check(make(PLANS[plan]), length, "none", torch.float64, is_causal=True)


@pytest.mark.parametrize("kind", ["none", "float"])
@pytest.mark.parametrize("plan", PLANS)
def test_eager(plan: str, kind: str, make: Callable[..., Any]) -> None:
    check(make(PLANS[plan], "eager"), 9, kind, torch.float64)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Pieces of 16 queries of one head each, for inputs of any length; the results of all calls so far."""
    calls = []

    def attend_(output: Tensor, *arguments: Any, **settings: Any) -> None:
        kernels.attend_(output, *arguments, **settings)
        calls.append(output)

    for name in ("_PIECE_BYTES", "_TRAINING_BYTES", "_FEW_TOKENS"):
        monkeypatch.setattr(kernels, name, 1)
    monkeypatch.setattr(attention, "attend_", attend_)
    return calls


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("plan", PLANS)
def test_pieces(
    plan: str, kind: str, dtype: torch.dtype, make: Callable[..., Any], small_pieces: list[Tensor]
) -> None:
    check(make(PLANS[plan], "sdpa", dtype), 37, kind, dtype)
    # One call a sample, none where gradients are followed, nor where nothing is saved.
    served = dtype.itemsize == 2 or PLANS[plan].score_width != HEAD_DIM
    assert len(small_pieces) == (2 if served else 0)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("length", [1, 2, 37])
def test_pieces_with_later_keys_unseen(
    plan: str, length: int, make: Callable[..., Any], small_pieces: list[Tensor]
) -> None:
    check(make(PLANS[plan]), length, "none", torch.float64, is_causal=True)
    assert len(small_pieces) == (0 if PLANS[plan].score_width == HEAD_DIM else 2)


def test_another_mixing_differs(make: Callable[..., Any]) -> None:
    """Negative control: the tolerance tells heads that were swapped."""
    for name, plan in PLANS.items():
        module = make(plan)
        states = torch.randn(2, 9, HIDDEN, dtype=torch.float64)
        expected = plain(module, states, None)
        with torch.no_grad():
            module.value.weight.copy_(module.value.weight.roll(HEAD_DIM, 0))
            assert (module(states)[0] - expected).abs().max() > 1e-2, name


@pytest.mark.parametrize("plan", PLANS)
def test_weights_that_may_attend_nothing(plan: str, make: Callable[..., Any]) -> None:
    """With the host's eager mask (the least finite number) such a row is the mean of the values."""
    module = make(PLANS[plan], "eager", torch.float32)
    states = torch.randn(2, 9, HIDDEN)
    mask = torch.zeros(2, 1, 9, 9)
    mask[0, :, 3] = torch.finfo(torch.float32).min
    output, weights = module(states, mask)
    torch.testing.assert_close(weights[0, :, 3], torch.full((HEADS, 9), 1 / 9))
    torch.testing.assert_close(output[0, 3], module.value(states[0]).mean(0))


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_gradients(
    plan: str, backend: str, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_PIECE_BYTES", 1)
    module = make(PLANS[plan], backend)
    states = torch.randn(1, 17, HIDDEN, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*module.named_parameters(), strict=True)

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))[0]

    assert torch.autograd.gradcheck(run, (states, *parameters), fast_mode=True)
    run(states, *parameters).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in parameters)


@pytest.mark.parametrize("plan", ["tucker-narrow", "cp", "cp-sparse"])
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_dropout_keeps_the_mean(plan: str, backend: str, make: Callable[..., Any]) -> None:
    """In training mode weights are dropped, and their mean over draws is the value without."""
    module = make(PLANS[plan], backend, attention_probs_dropout_prob=0.3).train()
    states = torch.randn(1, 9, HIDDEN, dtype=torch.float64)
    expected = plain(module, states, None)
    with torch.no_grad():
        draws = torch.stack([module(states)[0] for _ in range(400)])
        first = module(states)[0]
    assert (first - draws[0]).abs().max() > 1e-3
    error = draws.std(0) / 20  # of a mean of 400
    assert ((draws.mean(0) - expected).abs() / error).mean() < 1.5
    torch.testing.assert_close(module.eval()(states)[0], expected)


@pytest.mark.parametrize("plan", ["tucker", "tucker-narrow", "cp", "cp-sparse", "svd"])
def test_gradient_checkpointing(plan: str, tiny_bert: Callable[..., Any]) -> None:
    model = make_collab_(tiny_bert(BertModel), PLANS[plan]).train()
    model.config.hidden_dropout_prob = 0.0
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    ids = torch.randint(0, 50, (2, 7))

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model(ids).last_hidden_state.square().sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    expected = gradients()
    model.activation_checkpointing_enable()
    for got, want in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(got, want)


def test_other_backends_are_refused_where_they_cannot_serve(make: Callable[..., Any]) -> None:
    states = torch.randn(1, 5, HIDDEN, dtype=torch.float64)
    for name, message in (
        ("cp", "backend 'flash_attention_2' can't serve a score width of 16 > 8"),
        (
            "copy-exact",
            "backend 'flash_attention_2' can't serve an exact content bias with a score width of 8",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            make(PLANS[name], "flash_attention_2")(states)


@pytest.mark.parametrize("plan", PLANS)
def test_a_backend_gets_ordinary_heads(plan: str, make: Callable[..., Any]) -> None:
    """Where the score fits a head, any attention function sees queries, keys and values of head_dim."""
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    seen = []

    def spy(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        seen.append((query.shape, key.shape, value.shape))
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)

    AttentionInterface.register("spy", spy)
    if plan in ("cp", "copy-exact"):
        pytest.skip("refused, see above")
    check(make(PLANS[plan], "spy"), 9, "bool", torch.float64)
    assert set(seen) == {(torch.Size([2, HEADS, 9, HEAD_DIM]),) * 3}
