"""The drop-in for torch.nn.MultiheadAttention: full rank is torch's answer for every option."""

import copy
import itertools

import pytest
import torch
from layer_cases import (
    BATCH,
    HEADS,
    KEYS,
    LENGTH,
    SIZE,
    assert_same,
    dense_attention,
    full_rank_plans,
    inputs,
    mask_cases,
)
from tensor_cases import random_samples
from torch import nn

from collab_hf.errors import ConfigError, FamilyError, LayerError, RankError
from collab_hf.layers import MultiheadAttention
from collab_hf.layers.dense import shared_from_dense
from collab_hf.modeling.plan import LayerPlan
from collab_hf.tensors import Moments

SIZES = {"one width": {}, "kdim and vdim": {"kdim": 10, "vdim": 14}}
WEIGHTS = [{"need_weights": False}, {"average_attn_weights": True}, {"average_attn_weights": False}]
FORMS = list(full_rank_plans())
APPENDED = list(itertools.product([False, True], repeat=2))


def full_rank(dense, form, **options):
    plans = full_rank_plans(dense.kdim)
    if form not in plans:
        pytest.skip("tied forms need one width")
    return MultiheadAttention.from_dense(dense, plan=plans[form], **options)


@pytest.mark.parametrize("unbatched", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("appended", APPENDED, ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("form", ["copy", "cp", "narrowed tucker"])
def test_full_rank_equals_torch_for_every_option(form, bias, appended, sizes, batch_first, unbatched):
    """Every mask, weights or not, averaged or not, with and without gradients: 1e-6 in float64."""
    options = {"bias": bias, "add_bias_kv": appended[0], "add_zero_attn": appended[1]}
    dense = dense_attention(batch_first=batch_first, **options, **SIZES[sizes])
    shared = full_rank(dense, form)
    tokens = inputs(dense, unbatched)
    for (name, masks), weights in itertools.product(mask_cases(unbatched), WEIGHTS):
        want = dense(*tokens, **masks, **weights)
        assert_same(shared(*tokens, **masks, **weights), want)
        with torch.no_grad():
            assert_same(shared(*tokens, **masks, **weights), want)
        if name != "no mask, no padding":  # masks count, or equality would say nothing of them
            assert (want[0] - dense(*tokens)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("content_bias", ["exact", "folded"])
@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("appended", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_at_full_rank_equals_torch(form, appended, calibrated, content_bias):
    """With either content bias, from weights or from data, which changes nothing where nothing is lost."""
    dense = dense_attention(batch_first=True, add_bias_kv=appended, add_zero_attn=appended)
    plan = LayerPlan(**full_rank_plans()[form].to_dict() | {"content_bias": content_bias})
    moments = Moments.from_samples(random_samples(SIZE)) if calibrated else None
    shared = MultiheadAttention.from_dense(dense, plan=plan, calibration=moments)
    tokens = inputs(dense)
    for _, masks in mask_cases():
        for weights in WEIGHTS:
            assert_same(shared(*tokens, **masks, **weights), dense(*tokens, **masks, **weights))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_self_attention_in_both_dtypes(form, dtype):
    """One tensor for all three inputs. In float32 a few roundings of 1e-7 each stay below 5e-6."""
    dense = dense_attention(dtype=dtype)
    shared = full_rank(dense, form)
    assert {p.dtype for p in shared.parameters()} == {dtype}
    query, _, _ = inputs(dense)
    tolerance = 5e-6 if dtype == torch.float32 else 1e-10
    for options in WEIGHTS:
        assert_same(shared(query, query, query, **options), dense(query, query, query, **options), tolerance)


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("options", WEIGHTS, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_causal_hint_equals_torch(form, options, padding):
    dense = dense_attention(batch_first=True)
    shared = full_rank(dense, form)
    tokens = inputs(dense, keys=LENGTH)
    mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    padded = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    padded[1, -1] = True
    options = options | {
        "attn_mask": mask,
        "is_causal": True,
        "key_padding_mask": padded if padding else None,
    }
    want = dense(*tokens, **options)
    assert_same(shared(*tokens, **options), want)
    with torch.no_grad():
        assert_same(shared(*tokens, **options), want)
    unmasked = dense(*tokens)[0]
    assert (unmasked - want[0]).abs().max() > 0.01


def test_causal_hint_never_hides_what_is_appended():
    """Torch drops the mask for the hint, and then hides the appended key from all but no query."""
    dense = dense_attention(batch_first=True, add_bias_kv=True)
    shared = full_rank(dense, "cp")
    tokens = inputs(dense, keys=LENGTH)
    options = {"attn_mask": torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1), "is_causal": True}
    want, _ = dense(*tokens, **options)
    for need_weights in (True, False):
        assert_same((shared(*tokens, need_weights=need_weights, **options)[0], None), (want, None))
    wrong, _ = dense(*tokens, need_weights=False, **options)
    assert (wrong - want).abs().max() > 0.01


@pytest.mark.parametrize("form", FORMS)
def test_dropout_drops_what_torch_drops(form):
    """The same seed, the same weights dropped, where the weights are returned."""
    dense = dense_attention(dropout=0.4).train()
    shared = full_rank(dense, form)
    assert shared.training
    tokens = inputs(dense)
    results = []
    for module in (dense, shared):
        torch.manual_seed(3)
        results.append(module(*tokens, average_attn_weights=False))
    assert_same(results[1], results[0])
    assert (results[1][1] == 0).any()
    torch.manual_seed(4)
    other = shared(*tokens)
    assert (other[0] - results[1][0]).abs().max() > 0.01
    without = shared(*tokens, need_weights=False)[0]
    assert (without - shared.eval()(*tokens)[0]).abs().max() > 0.01


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_batch_of_nothing(form, need_weights):
    dense = dense_attention(batch_first=True, add_zero_attn=True)
    shared = full_rank(dense, form)
    empty = torch.zeros(0, LENGTH, SIZE, dtype=torch.float64)
    want = dense(empty, empty, empty, need_weights=need_weights)
    got = shared(empty, empty, empty, need_weights=need_weights)
    assert_same(got, want)
    got[0].sum().backward()
    assert all(parameter.grad is not None for parameter in shared.value.parameters())


def test_blocked_queries_get_zeros_where_torch_gives_nan():
    dense = dense_attention(batch_first=True)
    shared = full_rank(dense, "cp")
    tokens = inputs(dense)
    mask = torch.zeros(LENGTH, KEYS, dtype=torch.bool)
    mask[2] = True
    output, weights = shared(*tokens, attn_mask=mask)
    assert dense(*tokens, attn_mask=mask)[0][:, 2].isnan().all()
    assert (weights[:, 2] == 0).all()
    assert torch.equal(output[:, 2], dense.out_proj.bias.expand(BATCH, -1))
    assert_same((shared(*tokens, attn_mask=mask, need_weights=False)[0], None), (output, None))


@pytest.mark.parametrize("appended", [False, True])
@pytest.mark.parametrize("calibrated", [False, True])
@torch.no_grad()
def test_error_falls_with_the_rank(calibrated, appended):
    dense = dense_attention(add_bias_kv=appended, add_zero_attn=appended, batch_first=True)
    samples = random_samples(SIZE)
    moments = Moments.from_samples(samples) if calibrated else None
    tokens = samples.view(10, 20, SIZE)
    want, _ = dense(tokens, tokens, tokens)
    errors = []
    for rank in (3, 6, 12, 18, 24):
        shared = MultiheadAttention.from_dense(dense, rank, calibration=moments)
        errors.append(float((shared(tokens, tokens, tokens)[0] - want).norm() / want.norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.03
    assert errors[2] < 0.8 * errors[0]
    assert errors[-1] < 1e-6


@torch.no_grad()
def test_sinks_make_up_for_what_softmax_no_longer_ignores():
    """At half rank on data, appended keys without the query's own error weigh wrongly."""
    dense = dense_attention(add_bias_kv=True, batch_first=True)
    samples = random_samples(SIZE) + 2.0
    tokens = samples.view(10, 20, SIZE)
    shared = MultiheadAttention.from_dense(dense, 8, calibration=Moments.from_samples(samples))
    plain = MultiheadAttention.from_dense(dense, 24)
    want = dense(tokens, tokens, tokens)[1][..., -1]

    def error():
        return float((shared(tokens, tokens, tokens)[1][..., -1] - want).abs().mean())

    corrected = error()
    shared.scores.sinks.load_state_dict(plain.scores.sinks.state_dict())
    assert corrected < 0.8 * error()


def test_data_lowers_the_error_that_is_seen():
    dense = dense_attention(batch_first=True)
    samples = random_samples(SIZE)
    tokens = samples.view(10, 20, SIZE)
    want, _ = dense(tokens, tokens, tokens)
    errors = [
        (MultiheadAttention.from_dense(dense, 8, calibration=m)(tokens, tokens, tokens)[0] - want).norm()
        for m in (None, Moments.from_samples(samples))
    ]
    assert errors[1] < 0.9 * errors[0]


def test_bias_free_module_stays_so_unless_data_asks_for_a_content_bias():
    dense = dense_attention(bias=False)
    shared, factors = shared_from_dense(MultiheadAttention, dense, 12)
    assert not any("bias" in name for name, _ in shared.named_parameters())
    assert 0 < factors.relative_error < 1
    calibrated = MultiheadAttention.from_dense(
        dense, 12, calibration=Moments.from_samples(random_samples(SIZE))
    )
    assert calibrated.scores.content_bias.weight.abs().max() > 0.01
    assert calibrated.out_proj.bias is None


@pytest.mark.parametrize("options", [{}, {"add_bias_kv": True, "add_zero_attn": True}], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_gradients_reach_every_parameter(form, options):
    torch.manual_seed(0)
    module = MultiheadAttention(SIZE, HEADS, plan=full_rank_plans()[form], dtype=torch.float64, **options)
    for need_weights in (True, False):
        module.zero_grad()
        module(*inputs(module), need_weights=need_weights)[0].square().sum().backward()
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("appended", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_state_dict_round_trip(form, appended):
    dense = dense_attention(add_bias_kv=appended, add_zero_attn=appended)
    shared = full_rank(dense, form)
    torch.manual_seed(9)
    fresh = MultiheadAttention(
        SIZE, HEADS, add_bias_kv=appended, add_zero_attn=appended, plan=shared.plan, dtype=torch.float64
    )
    tokens = inputs(dense)
    assert (fresh(*tokens)[0] - shared(*tokens)[0]).abs().max() > 0.01
    fresh.load_state_dict(shared.state_dict())
    assert torch.equal(fresh(*tokens)[0], shared(*tokens)[0])
    assert torch.equal(copy.deepcopy(shared)(*tokens)[0], shared(*tokens)[0])


def test_from_scratch_without_a_rank_is_ordinary_attention():
    """The same arguments as torch's, in the same order; and head_dim is free of embed_dim."""
    torch.manual_seed(0)
    module = MultiheadAttention(SIZE, HEADS, 0.0, True, False, False, None, None, True, "cpu", torch.float64)
    assert isinstance(module, nn.MultiheadAttention)
    dense = dense_attention(batch_first=True)
    with torch.no_grad():
        weights = [module.scores.query.weight, module.scores.key.weight, module.value.weight]
        dense.in_proj_weight.copy_(torch.cat(weights))
        dense.in_proj_bias.zero_()
        dense.out_proj.load_state_dict(module.out_proj.state_dict())
    tokens = inputs(dense)
    assert_same(module(*tokens), dense(*tokens), 1e-10)
    wide = MultiheadAttention(SIZE, HEADS, head_dim=16, batch_first=True, dtype=torch.float64)
    assert wide.scores.query.weight.shape == (64, SIZE)
    assert wide(*tokens)[0].shape == (BATCH, LENGTH, SIZE)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_equal_padded_ones(layout):
    shared = full_rank(dense_attention(batch_first=True), "cp")
    rows = [torch.randn(n, SIZE, dtype=torch.float64) for n in (3, 5)]
    nested = torch.nested.nested_tensor(rows, layout=layout)
    with torch.no_grad():
        output, weights = shared(nested, nested, nested, need_weights=False)
        assert weights is None
        for got, row in zip(output.unbind(), rows, strict=True):
            assert_same((got, None), (shared(row, row, row)[0], None), 1e-10)
    with pytest.raises(LayerError, match="need_weights=False"):
        shared(nested, nested, nested)
    with pytest.raises(LayerError, match="leave out both masks"):
        shared(nested, nested, nested, need_weights=False, key_padding_mask=torch.zeros(2, 5).bool())


def test_settings_of_the_dense_module_are_kept():
    dense = dense_attention(dropout=0.3, batch_first=True)
    dense.in_proj_weight.requires_grad_(False)
    state = torch.get_rng_state()
    shared = MultiheadAttention.from_dense(dense, 12)
    assert torch.equal(torch.get_rng_state(), state)
    assert (shared.dropout, shared.batch_first, shared.training) == (0.3, True, False)
    assert not any(p.requires_grad for p in shared.scores.parameters())
    assert all(p.requires_grad for p in shared.out_proj.parameters())
    assert "cp 12" in repr(shared)


def test_compiled_and_exported():
    """Tracing takes neither loops over pieces nor values that depend on data."""
    shared = full_rank(dense_attention(batch_first=True), "cp").requires_grad_(False)
    query, key, value = inputs(dense_attention(batch_first=True))
    options = {"need_weights": False, "key_padding_mask": torch.zeros(BATCH, KEYS, dtype=torch.bool)}
    program = torch.export.export(shared, (query, key, value), options, strict=False)
    want = shared(query, key, value, **options)
    assert_same(program.module()(query, key, value, **options), want, 1e-10)
    torch.compiler.reset()
    compiled = torch.compile(shared, backend="eager", fullgraph=True)
    assert_same(compiled(query, key, value, **options), want, 1e-10)


def test_refusals():
    dense = dense_attention(batch_first=True)
    shared = full_rank(dense, "cp")
    query, key, value = inputs(dense)
    with pytest.raises(LayerError, match="is_causal needs attn_mask"):
        shared(query, key, value, is_causal=True)
    with pytest.raises(LayerError, match=r"attn_mask must have shape \(5, 7\) or \(8, 5, 7\), got \(7, 5\)"):
        shared(query, key, value, attn_mask=torch.zeros(7, 5))
    with pytest.raises(LayerError, match=r"key_padding_mask must have shape \(2, 7\)"):
        shared(query, key, value, key_padding_mask=torch.zeros(2, 5))
    with pytest.raises(LayerError, match=r"boolean or floating-point, got torch.int64"):
        shared(query, key, value, key_padding_mask=torch.zeros(2, 7, dtype=torch.long))
    with pytest.raises(LayerError, match="all have 2 or all have 3 dimensions"):
        shared(query[0], key, value)
    with pytest.raises(LayerError, match=r"widths \(24, 24, 24\), got \(24, 24, 5\)"):
        shared(query, key, value[..., :5])
    with pytest.raises(LayerError, match="one batch size"):
        shared(query, key, value[:, :3])
    with pytest.raises(ConfigError, match="fused path"):
        shared.merge_masks(None, None, query)
    with pytest.raises(FamilyError, match=r"needs a torch.nn.MultiheadAttention, got MultiheadAttention"):
        MultiheadAttention.from_dense(shared, 12)
    with pytest.raises(RankError, match="rank must be between 1 and 24, got 25"):
        MultiheadAttention.from_dense(dense, 25)
    with pytest.raises(ConfigError, match="a plan, or rank"):
        MultiheadAttention.from_dense(dense, 12, plan=full_rank_plans()["cp"])
    with pytest.raises(ConfigError, match="multiple of num_heads"):
        MultiheadAttention(25, 4)
