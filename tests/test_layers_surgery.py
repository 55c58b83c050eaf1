"""Surgery of models that are built on torch's own attention."""

import copy
import pickle

import pytest
import torch
from torch import nn

from collab_hf.errors import CalibrationError, ConfigError, FamilyError, RankError
from collab_hf.layers import (
    InputMoments,
    MultiheadAttention,
    collect_moments,
    compress_layers_,
    convert_layers_,
    dense_layers,
)
from collab_hf.modeling.plan import LayerPlan
from collab_hf.tensors import Moments

SIZE, HEADS, BATCH, LENGTH = 24, 4, 3, 6

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")


def encoder(batch_first=True, dropout=0.0, **options):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(SIZE, HEADS, 32, dropout, batch_first=batch_first, dtype=torch.float64)
    model = nn.TransformerEncoder(layer, 2, **options)
    with torch.no_grad():
        for parameter in model.parameters():  # torch's layers begin as copies of one
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def tokens(seed=1, batch=BATCH):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, LENGTH, SIZE, generator=generator, dtype=torch.float64)


def padding():
    mask = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    mask[0, -2:] = True
    mask[2, -1:] = True
    return mask


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("mask", ["none", "padding", "causal", "both"])
@pytest.mark.parametrize("plan", [None, LayerPlan("tucker", 24, 24, 6, content_bias="folded")])
def test_encoder_at_full_rank_gives_what_it_gave(plan, mask, training, gradients):
    """In eval mode without gradients torch takes its fused path, with padding also nested tensors."""
    dense = encoder().train(training)
    model = copy.deepcopy(dense)
    reports = compress_layers_(model, None if plan else SIZE, plan=plan)
    assert list(reports) == ["layers.0.self_attn", "layers.1.self_attn"]
    options = {}
    if mask in ("padding", "both"):
        options["src_key_padding_mask"] = padding()
    if mask in ("causal", "both"):
        options["mask"] = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    with torch.set_grad_enabled(gradients):
        want, got = dense(tokens(), **options), model(tokens(), **options)
    real = ~padding() if "src_key_padding_mask" in options else torch.ones(BATCH, LENGTH, dtype=torch.bool)
    torch.testing.assert_close(got[real], want[real], rtol=1e-6, atol=1e-6)
    assert model.training is training


@torch.no_grad()
def test_the_fused_path_is_never_taken_silently():
    """It reads dense weights: with these still there it would answer as if nothing had been compressed."""
    dense = encoder()
    model = copy.deepcopy(dense)
    compress_layers_(model, 4)
    want = model(tokens(), src_key_padding_mask=padding())
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        slow = model(tokens(), src_key_padding_mask=padding())
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert torch.equal(want, slow)
    assert (want - dense(tokens(), src_key_padding_mask=padding()))[~padding()].abs().max() > 1e-3
    assert dense.use_nested_tensor
    assert not model.use_nested_tensor
    for layer in model.layers:
        assert layer.self_attn.in_proj_weight is None


@torch.no_grad()
def test_encoders_take_nested_input_as_before():
    dense = encoder()
    model = copy.deepcopy(dense)
    compress_layers_(model, SIZE)
    rows = [tokens()[0, :4], tokens()[1]]
    nested = torch.nested.nested_tensor(rows)
    for got, want in zip(model(nested).unbind(), dense(nested).unbind(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("index", [0, 1])
def test_layer_swapped_by_hand_in_a_packing_encoder(index):
    """Without compress_layers_ the encoder still packs padded input where no gradients are followed."""
    dense = encoder()
    model = copy.deepcopy(dense)
    layer = model.layers[index]
    layer.self_attn = MultiheadAttention.from_dense(layer.self_attn, SIZE)
    assert model.use_nested_tensor
    with torch.no_grad():
        want = dense(tokens(), src_key_padding_mask=padding())
        got = model(tokens(), src_key_padding_mask=padding())
    torch.testing.assert_close(got[~padding()], want[~padding()], rtol=1e-6, atol=1e-6)


def test_encoder_made_of_swapped_layers_says_that_it_does_not_pack():
    layer = nn.TransformerEncoderLayer(SIZE, HEADS, 32, batch_first=True)
    layer.self_attn = MultiheadAttention(SIZE, HEADS, batch_first=True, rank=8)
    with pytest.warns(UserWarning, match="_qkv_same_embed_dim was not True"):
        model = nn.TransformerEncoder(layer, 2).eval()
    with torch.no_grad():
        assert model(tokens().float(), src_key_padding_mask=padding()).isfinite().all()


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_whole_transformer(batch_first, training):
    """Encoder, causal decoder and cross-attention."""
    torch.manual_seed(0)
    dense = nn.Transformer(
        SIZE, HEADS, 1, 2, 32, dropout=0.0, batch_first=batch_first, dtype=torch.float64
    ).train(training)
    model = copy.deepcopy(dense)
    reports = compress_layers_(model, SIZE)
    assert len(reports) == 5
    source, target = tokens(), tokens(2)[:, :4]
    if not batch_first:
        source, target = source.transpose(0, 1), target.transpose(0, 1)
    options = {
        "tgt_mask": nn.Transformer.generate_square_subsequent_mask(4, dtype=torch.float64),
        "tgt_is_causal": True,
        "src_key_padding_mask": torch.zeros(BATCH, LENGTH, dtype=torch.float64),
        "memory_key_padding_mask": torch.zeros(BATCH, LENGTH, dtype=torch.float64),
    }
    options["memory_key_padding_mask"][1, -2:] = -torch.inf
    with torch.no_grad():
        want = dense(source, target, **options)
        torch.testing.assert_close(model(source, target, **options), want, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_calibration_lowers_the_error_and_leaves_out_padding():
    dense = encoder().train()
    # Spread along a few directions, as real activations are.
    mixing = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    data = tokens(batch=40) @ (mixing * 0.6 ** torch.arange(SIZE)) + 1.0
    want = dense(data)
    errors = []
    for calibration in (None, [data], [{"src": data}], [(data[:20],), (data[20:],)]):
        model = copy.deepcopy(dense)
        compress_layers_(model, 6, calibration=calibration)
        assert model.training
        assert all(module.training for module in model.modules())
        errors.append(float((model(data) - want).norm()))
    assert errors[1] < 0.9 * errors[0]
    assert errors[1:] == pytest.approx([errors[1]] * 3)
    noisy = data[:BATCH].masked_fill(padding().unsqueeze(2), 100.0)
    found = dense_layers(dense)
    batches = [{"src": noisy, "src_key_padding_mask": padding()}]
    moments = collect_moments(dense, found, batches)["layers.0.self_attn"]
    expected = Moments.from_samples(data[:BATCH][~padding()])
    assert moments.query is moments.key
    assert torch.allclose(moments.query.covariance, expected.covariance)
    assert moments.query.count == int((~padding()).sum())
    assert torch.backends.mha.get_fastpath_enabled()
    assert not found["layers.0.self_attn"]._forward_pre_hooks


def test_cross_attention_has_moments_of_both_inputs():
    torch.manual_seed(0)
    model = nn.TransformerDecoderLayer(SIZE, HEADS, 32, batch_first=True, dtype=torch.float64)
    memory = tokens(4)
    blocked = padding()
    batch = {"tgt": tokens(), "memory": memory, "memory_key_padding_mask": blocked}
    found = collect_moments(model, dense_layers(model), [batch])
    assert torch.allclose(found["multihead_attn"].key.mean, memory[~blocked].mean(0))
    assert found["multihead_attn"].query.count == BATCH * LENGTH
    reports = compress_layers_(model, 6, calibration=found)
    assert 0 < reports["multihead_attn"].relative_error < 1
    assert isinstance(found["self_attn"], InputMoments)


def test_modules_stay_the_objects_they_are():
    """Hooks, references, devices, frozen weights and attributes of one's own survive."""
    model = encoder()
    attention = model.layers[0].self_attn
    attention.note = "mine"
    attention.in_proj_weight.requires_grad_(False)
    seen = []
    attention.register_forward_hook(lambda module, args, output: seen.append(module))
    compress_layers_(model, 12)
    assert model.layers[0].self_attn is attention
    assert isinstance(attention, MultiheadAttention)
    assert attention.note == "mine"
    model(tokens())
    assert seen == [attention]
    assert not attention.scores.query.weight.requires_grad
    assert model.layers[1].self_attn.scores.query.weight.requires_grad


def test_reports_count_what_there_is():
    model = encoder()
    report = compress_layers_(model, 6)["layers.0.self_attn"]
    assert report.qk_parameters_before == 2 * SIZE * SIZE + 2 * SIZE
    assert report.qk_parameters_after == 2 * SIZE * 6 + HEADS * 6 + HEADS * SIZE
    assert 0 < report.relative_error < 1


@torch.no_grad()
def test_weights_load_into_a_model_of_the_same_plans():
    model = encoder()
    reports = compress_layers_(model, 12, dims_per_head=4, calibration=[tokens()])
    fresh = encoder()
    convert_layers_(fresh, {name: report.plan for name, report in reports.items()})
    assert not torch.equal(fresh(tokens()), model(tokens()))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(tokens()), model(tokens()))
    assert torch.equal(pickle.loads(pickle.dumps(model))(tokens()), model(tokens()))
    with pytest.raises(FamilyError, match=r"no torch.nn.MultiheadAttention at 'other'"):
        convert_layers_(encoder(), {"other": LayerPlan("cp", 4, 4, 4)})


def test_training_goes_on_after_surgery():
    model = encoder().train()
    compress_layers_(model, 8)
    loss = model(tokens()).square().mean()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name


def test_refusals_change_nothing():
    model = encoder()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RankError, match="rank must be between 1 and 24, got 25"):
        compress_layers_(model, 25)
    with pytest.raises(ConfigError, match="give a rank or a plan"):
        compress_layers_(model)
    with pytest.raises(CalibrationError, match="no activations were seen"):
        compress_layers_(model, 4, calibration=[])
    with pytest.raises(CalibrationError, match="a batch must be a tensor"):
        compress_layers_(model, 4, calibration=["text"])
    with pytest.raises(FamilyError, match=r"no dense torch.nn.MultiheadAttention named 'decoder"):
        compress_layers_(model, 4, layers="decoder*")
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    compress_layers_(model, 4, layers="layers.0*")
    assert type(model.layers[1].self_attn) is nn.MultiheadAttention
    compress_layers_(model, 4)
    with pytest.raises(FamilyError, match="compressed already"):
        compress_layers_(model, 4)
