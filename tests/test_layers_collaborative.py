"""Collaborative attention for architectures of one's own."""

import copy
import itertools

import pytest
import torch
from layer_cases import HEADS, SIZE, full_rank_plans
from torch import nn

from collab_hf.errors import ConfigError, LayerError, RankError
from collab_hf.layers import CollaborativeAttention, KeyValueCache
from collab_hf.modeling.plan import LayerPlan

BATCH, LENGTH, KEYS = 3, 6, 7

FORMS = {name: {"plan": plan} for name, plan in full_rank_plans().items()}
FORMS |= {
    "half rank": {"rank": 12},
    "half rank, sparse": {"rank": 12, "dims_per_head": 4},
    "key groups": {"plan": LayerPlan("tucker", 12, 12, 6, key_groups=2)},
    "head rank": {"plan": LayerPlan("tucker", 12, 8, 8, head_rank=2, content_bias="folded")},
    "tied whole": {"plan": LayerPlan("tucker", 8, 8, 8, tied=True)},
}


def layer(form="half rank", seed=0, **options):
    """A layer whose parameters are all away from their first values."""
    torch.manual_seed(seed)
    made = CollaborativeAttention(SIZE, HEADS, dtype=torch.float64, **FORMS[form], **options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made.eval()


def tokens(length=LENGTH, size=SIZE, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, length, size, generator=generator, dtype=torch.float64)


def reference(made, hidden, source, blocked=None):
    """The paper's formula, head by head, from the maps of the mixing alone."""
    scores = made.scores
    query, key = scores.query(hidden), scores.query(source) if scores.key is None else scores.key(source)
    values = made.value(source).view(BATCH, -1, HEADS, made.value_dim)
    outputs, weights = [], []
    for head in range(HEADS):
        queries = query @ scores.mixing.query_maps()[head].to(query)
        if scores.mixing.bias is not None:
            queries = queries + scores.mixing.bias[head]
        logits = queries @ (key @ scores.mixing.key_maps()[head].to(query)).mT
        if scores.content_bias is not None:
            logits = logits + (source @ scores.content_bias.weight[head]).unsqueeze(1)
        logits = logits / made.shape.head_dim**0.5
        if blocked is not None:
            logits = logits.masked_fill(blocked, -torch.inf)
        weights.append(logits.softmax(-1))
        outputs.append(weights[-1] @ values[:, :, head])
    return made.output(torch.cat(outputs, -1)), torch.stack(weights, 1)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("value_dim", [None, 3, 11])
@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_scores_are_the_papers_formula(form, cross, value_dim, gradients):
    """With and without returned weights, values narrower and wider than scores, to 1e-10 in float64."""
    if cross and FORMS[form].get("plan", LayerPlan("cp", 1, 1, 1)).tied:
        pytest.skip("tied forms are for self-attention")
    sizes = {"key_value_size": 24} if cross else {}
    made = layer(form, cross=cross, value_dim=value_dim, **sizes)
    hidden, source = tokens(), tokens(KEYS, seed=2) if cross else None
    with torch.set_grad_enabled(gradients):
        want = reference(made, hidden, hidden if source is None else source)
        output, weights = made(hidden, source, need_weights=True)
        assert torch.allclose(output, want[0], atol=1e-10)
        assert torch.allclose(weights, want[1], atol=1e-10)
        output, weights = made(hidden, source)
        assert weights is None
        assert torch.allclose(output, want[0], atol=1e-10)


@pytest.mark.parametrize("bias", [False, True])
def test_concatenated_mixing_is_ordinary_attention(bias):
    """A block of ones at full rank: torch's module with the same weights, scores of its scale included."""
    torch.manual_seed(0)
    made = CollaborativeAttention(SIZE, HEADS, SIZE, mixing="concatenate", bias=bias, dtype=torch.float64)
    dense = nn.MultiheadAttention(SIZE, HEADS, bias=bias, batch_first=True, dtype=torch.float64)
    owner = torch.arange(SIZE) // (SIZE // HEADS)
    assert torch.equal(made.scores.mixing.weight == 1, owner == torch.arange(HEADS).unsqueeze(1))
    with torch.no_grad():
        made.scores.query.weight.copy_(dense.in_proj_weight[:SIZE])
        made.scores.key.weight.copy_(dense.in_proj_weight[SIZE : 2 * SIZE])
        made.value.weight.copy_(dense.in_proj_weight[2 * SIZE :])
        made.output.load_state_dict(dense.out_proj.state_dict())
        if bias:
            query_bias, _, value_bias = dense.in_proj_bias.normal_().chunk(3)  # the key's bias drops out
            made.scores.mixing.bias.copy_(made.scores.mixing.weight * query_bias)
            made.value.bias.copy_(value_bias)
    hidden = tokens()
    want = dense(hidden, hidden, hidden, average_attn_weights=False)
    got = made(hidden, need_weights=True)
    assert torch.allclose(got[0], want[0], atol=1e-10)
    assert torch.allclose(got[1], want[1], atol=1e-10)
    made.reset_parameters("random")
    assert (made(hidden)[0] - want[0]).abs().max() > 0.01


@pytest.mark.parametrize(("rank", "blocks"), [(24, [6] * 4), (10, [3, 2, 3, 2]), (2, [1] * 4)])
def test_concatenated_blocks_are_as_equal_as_can_be(rank, blocks):
    made = CollaborativeAttention(SIZE, HEADS, rank)
    assert made.scores.mixing.weight.sum(1).tolist() == blocks
    assert (made.scores.mixing.weight.sum(0) == max(1, HEADS // rank)).all()
    ones = CollaborativeAttention(SIZE, HEADS, rank, mixing="ones")
    assert (ones.scores.mixing.weight == 1).all()


def test_sparse_mixing_begins_as_windows_or_anywhere():
    windows = CollaborativeAttention(SIZE, HEADS, 12, dims_per_head=4, mixing="concatenate").scores.mixing
    assert windows.index.tolist() == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9], [9, 10, 11, 0]]
    assert (windows.weight == 1).all()
    drawn = CollaborativeAttention(SIZE, HEADS, 12, dims_per_head=4, mixing="random").scores.mixing
    assert all(len(set(row)) == 4 for row in drawn.index.tolist())
    assert (drawn.index.sort(1).values != windows.index.sort(1).values).any()


@pytest.mark.parametrize("form", [name for name in FORMS if name != "tied whole"])
def test_first_scores_have_variance_one(form):
    """Whatever the rank, inputs of unit variance give scores of unit variance; a tied query is a key."""
    torch.manual_seed(0)
    sizes, plan = (64, 8), FORMS[form].get("plan")
    options = FORMS[form] if plan is None else {"plan": LayerPlan(**_scaled(plan))}
    mixing = "random" if "rank" in options or options["plan"].method == "cp" else None
    variances = []
    for _ in range(8):
        made = CollaborativeAttention(*sizes, bias=False, mixing=mixing, **options)
        hidden, source = torch.randn(2, 4, 100, 64)
        query, key, _, scaling = made.scores(
            hidden, made.scores.query(hidden), made.scores.shared_keys(source)
        )
        variances.append(float((query @ key.mT * scaling).detach().var()))
    assert 0.6 < sum(variances) / len(variances) < 1.5


def _scaled(plan):
    """A plan for 8 heads of 8."""
    values = plan.to_dict()
    if plan.method == "copy":
        return values | {"query_rank": 64, "key_rank": 64, "score_width": 8}
    return values


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_causal_is_what_a_mask_does(form, gradients):
    causal, plain = layer(form, causal=True), layer(form)
    hidden = tokens()
    blocked = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    with torch.set_grad_enabled(gradients):
        want = reference(plain, hidden, hidden, blocked)
        for output, weights in (
            causal(hidden, need_weights=True),
            causal(hidden),
            plain(hidden, attention_mask=blocked),
            plain(hidden, attention_mask=torch.zeros(LENGTH, LENGTH).masked_fill(blocked, -torch.inf)),
        ):
            assert torch.allclose(output, want[0], atol=1e-10)
            assert weights is None or torch.allclose(weights, want[1], atol=1e-10)
        assert (plain(hidden)[0] - want[0]).abs().max() > 0.01


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("form", ["copy", "half rank", "half rank, sparse", "narrowed tucker"])
def test_masks_of_every_kind(form, need_weights):
    """Boolean, additive and both; of two to four dimensions; a padding mask with either."""
    made = layer(form)
    hidden = tokens()
    generator = torch.Generator().manual_seed(3)
    shapes = [
        (LENGTH, LENGTH),
        (BATCH, LENGTH, LENGTH),
        (BATCH, HEADS, LENGTH, LENGTH),
        (BATCH, 1, 1, LENGTH),
    ]
    padding = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    padding[0, -2:] = True
    added_padding = torch.zeros(padding.shape, dtype=torch.float64).masked_fill(padding, -torch.inf)
    plain, _ = made(hidden)
    for shape, paddings in itertools.product(shapes, (None, padding, added_padding)):
        blocked = torch.rand(shape, generator=generator) < 0.4
        blocked[..., 0] = False
        whole = (blocked.unsqueeze(1) if len(shape) == 3 else blocked).expand(BATCH, HEADS, LENGTH, LENGTH)
        if paddings is not None:
            whole = whole | padding[:, None, None]
        additive = torch.zeros(shape, dtype=torch.float32).masked_fill(blocked, -torch.inf)
        results = [
            made(hidden, attention_mask=mask, key_padding_mask=paddings, need_weights=need_weights)
            for mask in (blocked, additive, additive.bfloat16())
        ]
        for output, weights in results:
            assert torch.allclose(output, results[0][0], atol=1e-10)
            if need_weights:
                assert torch.equal(weights == 0, whole)
        scores = made.scores(hidden, made.scores.query(hidden), made.scores.shared_keys(hidden))
        logits = scores.query @ scores.key.mT * scores.scaling + (0 if scores.bias is None else scores.bias)
        weights = logits.masked_fill(whole, -torch.inf).softmax(-1)
        values = made.value(hidden).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        want = made.output((weights @ values).transpose(1, 2).flatten(2))
        assert torch.allclose(results[0][0], want, atol=1e-10)
        assert (want - plain).abs().max() > 0.01


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_decoding_with_a_cache_is_the_whole_forward(form, gradients):
    """A prompt of three tokens, then one token, then two at once; the cache holds shared keys only."""
    made = layer(form, causal=True)
    hidden = tokens()
    padding = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    padding[1, 0] = True
    with torch.set_grad_enabled(gradients):
        want, _ = made(hidden, key_padding_mask=padding)
        for need_weights in (False, True):
            cache, steps, end = KeyValueCache(), [], 0
            for step in (3, 1, 2):
                new = hidden[:, end : end + step]
                end += step
                options = {"key_padding_mask": padding[:, :end], "need_weights": need_weights}
                steps.append(made(new, cache=cache, **options)[0])
            assert torch.allclose(torch.cat(steps, 1)[0], want[0], atol=1e-10)
            assert torch.allclose(torch.cat(steps, 1)[1, 1:], want[1, 1:], atol=1e-10)
    assert cache.length == LENGTH
    biased = made.scores.content_bias is not None
    assert cache.key.shape == (BATCH, LENGTH, made.plan.key_rank + (HEADS if biased else 0))
    assert cache.value.shape == (BATCH, LENGTH, SIZE)
    restarted, _ = made(hidden[:, -2:], cache=KeyValueCache())
    assert (restarted - want[:, -2:]).abs().max() > 0.01  # the cache counts


def test_cross_attention_reads_its_source_once():
    made = layer(cross=True, key_value_size=24)
    hidden, source = tokens(), tokens(KEYS, seed=2)
    want, _ = made(hidden, source)
    cache = KeyValueCache()
    steps = [made(hidden[:, :1], source, cache=cache)[0]]
    steps += [made(hidden[:, i : i + 1], cache=cache)[0] for i in range(1, LENGTH)]
    assert torch.allclose(torch.cat(steps, 1), want, atol=1e-10)
    assert cache.length == KEYS


def test_cache_follows_beams():
    made = layer(causal=True)
    hidden, index = tokens(), torch.tensor([1, 1, 0, 2])
    cache = KeyValueCache()
    made(hidden[:, :4], cache=cache)
    cache.reorder_(index)
    got, _ = made(hidden[index, 4:], cache=cache)
    assert torch.allclose(got, made(hidden)[0][index, 4:], atol=1e-10)
    with pytest.raises(LayerError, match=r"batch and width \(4, \d+\), got \(3, \d+\); begin a new sequence"):
        made(hidden, cache=cache)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_reach_every_parameter_and_state_comes_back(form):
    torch.manual_seed(0)
    made = CollaborativeAttention(SIZE, HEADS, dtype=torch.float64, **FORMS[form])
    made(tokens())[0].square().sum().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    fresh = CollaborativeAttention(SIZE, HEADS, dtype=torch.float64, **FORMS[form])
    assert not torch.equal(fresh(tokens())[0], made(tokens())[0])
    fresh.load_state_dict(made.state_dict())
    assert torch.equal(fresh(tokens())[0], made(tokens())[0])
    assert torch.equal(copy.deepcopy(made)(tokens())[0], made(tokens())[0])


def test_dropout_acts_in_training_only():
    made = layer(dropout=0.5)
    want, _ = made(tokens())
    assert torch.equal(made(tokens())[0], want)
    made.train()
    for need_weights in (False, True):
        assert (made(tokens(), need_weights=need_weights)[0] - want).abs().max() > 0.01
    assert (made(tokens(), need_weights=True)[1] == 0).any()


def test_head_size_is_free():
    """Heads of their own, wider than hidden_size / num_heads; values follow unless they have a width too."""
    made = CollaborativeAttention(SIZE, HEADS, head_dim=16)
    assert made.plan.method == "copy"
    assert made.scores.query.weight.shape == (64, SIZE)
    assert made.output.weight.shape == (SIZE, 64)
    narrow = CollaborativeAttention(25, HEADS, head_dim=16, value_dim=3)
    assert narrow(torch.randn(1, 5, 25))[0].shape == (1, 5, 25)
    assert "head_dim=16, copy 64" in repr(narrow)
    shared = CollaborativeAttention(SIZE, HEADS, 64, head_dim=16)
    assert shared.scores.query.weight.shape == (64, SIZE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_narrow_dtypes_and_compilation(form, dtype):
    made = layer(form, causal=True).requires_grad_(False)
    hidden = tokens()
    want, _ = made(hidden)
    made = made.to(dtype)
    # Relative to all of the output: a softmax this sharp turns a rounding of the scores into several.
    tolerance = (1e-5 if dtype == torch.float32 else 0.05) * want.norm()
    got, _ = made(hidden.to(dtype))
    assert got.dtype == dtype
    assert (got.double() - want).norm() < tolerance
    torch.compiler.reset()  # every form is another graph of the same code
    compiled = torch.compile(made, backend="eager", fullgraph=True)
    assert (compiled(hidden.to(dtype))[0] - got).norm() < tolerance


def test_exported_for_any_batch_and_length():
    made = layer(causal=True).requires_grad_(False)
    sizes = {0: torch.export.Dim("batch", min=2, max=64), 1: torch.export.Dim("length", min=2, max=64)}
    program = torch.export.export(made, (tokens(),), dynamic_shapes=(sizes,), strict=False)
    other = tokens(9)[:2]
    assert torch.allclose(program.module()(other)[0], made(other)[0], atol=1e-10)


def test_refusals():
    made, cross = layer(), layer(cross=True)
    with pytest.raises(ConfigError, match="causal belongs to self-attention"):
        layer(cross=True, causal=True)
    with pytest.raises(ConfigError, match="key_value_size belongs to cross-attention"):
        layer(key_value_size=5)
    with pytest.raises(RankError, match="tied needs queries and keys from the same input"):
        layer("tied", cross=True)
    with pytest.raises(ConfigError, match="hidden_size must be a multiple of num_heads, got 25 and 4"):
        CollaborativeAttention(25, 4)
    with pytest.raises(ConfigError, match="must be at least 1, got 24, 0 and None"):
        CollaborativeAttention(24, 0)
    with pytest.raises(ConfigError, match=r"dropout must be between 0 and 1, got 1\.5"):
        layer(dropout=1.5)
    with pytest.raises(ConfigError, match="dims_per_head needs a rank"):
        CollaborativeAttention(24, 4, dims_per_head=3)
    with pytest.raises(ConfigError, match="mixing must be one of concatenate, ones, random, got 'zeros'"):
        layer(mixing="zeros")
    with pytest.raises(ConfigError, match="mixing belongs to cp, got 'ones' with tucker"):
        layer("tucker", mixing="ones")
    with pytest.raises(RankError, match="key_rank must equal query_rank for cp"):
        CollaborativeAttention(24, 4, plan=LayerPlan("cp", 8, 6, 6))
    with pytest.raises(RankError, match="rank and score_width must be 24 and 6 for copy"):
        CollaborativeAttention(24, 4, plan=LayerPlan("copy", 12, 12, 3))
    with pytest.raises(LayerError, match=r"hidden_states must have shape \(batch, length, 24\)"):
        made(tokens(size=5))
    with pytest.raises(LayerError, match="build the layer with cross=True"):
        made(tokens(), tokens())
    with pytest.raises(LayerError, match="needs key_value, or a cache"):
        cross(tokens(), cache=KeyValueCache())
    with pytest.raises(LayerError, match=r"key_value must have shape \(3, length, 24\)"):
        cross(tokens(), tokens()[:1])
    with pytest.raises(LayerError, match=r"must broadcast to \(3, 4, 6, 6\) .*, got \(6, 5\)"):
        made(tokens(), attention_mask=torch.zeros(6, 5))
    with pytest.raises(LayerError, match="attention_mask must be boolean or floating-point"):
        made(tokens(), attention_mask=torch.zeros(6, 6, dtype=torch.long))
