"""compress_ in place: exact at full rank, the host's behaviour kept, plain refusals."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import TINY, build_tiny
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
    DeiTForImageClassification,
    Dinov2Model,
    FNetConfig,
    FNetModel,
    PreTrainedModel,
    ViTForImageClassification,
)
from transformers.models.bert.modeling_bert import BertSelfAttention

from collab_hf import CollabConfig, compress_
from collab_hf.errors import DecompositionError, FamilyError
from collab_hf.modeling.attention import CollabAttention
from collab_hf.modeling.errors import ConfigError, RankError
from collab_hf.parts.query_key.graft import key_rows

FULL = 24  # 3 heads of 8
# float32 through two layers whose hidden states are of order one: a few units in the last place each.
EXACT = 1e-5

EXACT_CONFIGS = [
    CollabConfig(method="copy"),
    CollabConfig(method="copy", content_bias="exact"),
    CollabConfig(method="cp", rank=FULL),
    CollabConfig(method="cp", rank=FULL, content_bias="folded"),
    CollabConfig(method="svd", rank=FULL),
    CollabConfig(method="tucker", rank=FULL),
    CollabConfig(method="tucker", rank=FULL, content_bias="exact"),
]


@pytest.fixture
def make(
    tiny_bert: Any, tiny_vit: Any, tiny_deit: Any, tiny_dinov2: Any
) -> Callable[[str], tuple[PreTrainedModel, dict[str, Tensor]]]:
    """A tiny model of a family with inputs, the text ones padded."""

    def build(family: str) -> tuple[PreTrainedModel, dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(1)
        mask = torch.ones(3, 11, dtype=torch.long)
        mask[1, 7:] = 0
        mask[2, 4:] = 0
        text = {"input_ids": torch.randint(0, 50, (3, 11), generator=generator), "attention_mask": mask}
        image = {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
        albert = AlbertConfig(
            **{**TINY, "vocab_size": 50, "embedding_size": 16, "max_position_embeddings": 40}
        )
        factories: dict[str, tuple[Callable[[], PreTrainedModel], dict[str, Tensor]]] = {
            "bert": (lambda: tiny_bert(BertForSequenceClassification), text),
            "albert": (lambda: build_tiny(AlbertForMaskedLM, albert), text),
            "vit": (lambda: tiny_vit(ViTForImageClassification), image),
            "deit": (lambda: tiny_deit(DeiTForImageClassification), image),
            "dinov2": (lambda: tiny_dinov2(Dinov2Model), image),
        }
        factory, inputs = factories[family]
        return factory(), inputs

    return build


FAMILY_NAMES = ["bert", "albert", "vit", "deit", "dinov2"]


def outputs(model: PreTrainedModel, inputs: dict[str, Tensor], **kwargs: Any) -> list[Tensor]:
    with torch.no_grad():
        result = model(**inputs, output_hidden_states=True, **kwargs)
    return [*result.hidden_states, *(result.attentions or ())]


def difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    assert len(ours) == len(theirs) > 0
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("config", EXACT_CONFIGS, ids=lambda c: "-".join(map(str, c.to_dict().values())))
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_full_rank_is_exact(make: Any, family: str, config: CollabConfig) -> None:
    model, inputs = make(family)
    model.set_attn_implementation("sdpa")
    expected = outputs(model, inputs)
    compress_(model, config)
    assert difference(outputs(model, inputs), expected) < EXACT


@pytest.mark.parametrize("config", EXACT_CONFIGS, ids=lambda c: "-".join(map(str, c.to_dict().values())))
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_eager_and_attention_maps_at_full_rank(make: Any, family: str, config: CollabConfig) -> None:
    model, inputs = make(family)
    model.set_attn_implementation("eager")
    expected = outputs(model, inputs, output_attentions=True)
    compress_(model, config)
    assert difference(outputs(model, inputs, output_attentions=True), expected) < EXACT


def zero_content_bias_(model: PreTrainedModel) -> None:
    for module in model.modules():
        if isinstance(module, CollabAttention):
            if module.mixing.bias is not None:
                nn.init.zeros_(module.mixing.bias)
            else:
                key = module.collab_family.projection(module, "key")
                with torch.no_grad():
                    key.weight[module.collab_plan.key_rank :] = 0


@pytest.mark.parametrize("bias", ["exact", "folded"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_without_the_content_bias_outputs_differ(make: Any, family: str, bias: Any) -> None:
    model, inputs = make(family)
    expected = outputs(model, inputs)
    compress_(model, CollabConfig(method="cp", rank=FULL, content_bias=bias))
    zero_content_bias_(model)
    assert difference(outputs(model, inputs), expected) > 1e-2


@pytest.mark.parametrize(
    "config",
    [
        CollabConfig(method="cp", rank=6),
        CollabConfig(method="cp", rank=12),
        CollabConfig(method="cp", rank=12, dims_per_head=4),
        CollabConfig(method="svd", rank=12),
        CollabConfig(method="tucker", query_rank=12, key_rank=6),
        CollabConfig(method="tucker", query_rank=12, key_rank=12, score_width=4),
        CollabConfig(method="tucker", rank=10, score_width=4, tied=True),
        CollabConfig(method="tucker", rank=6, tied=True),
        CollabConfig(method="tucker", rank=6, tied=True, content_bias="exact"),
        CollabConfig(method="tucker", query_rank=12, key_rank=4, key_groups=3),
        CollabConfig(method="tucker", query_rank=12, key_rank=6, head_rank=2),
        CollabConfig(method="tucker", query_rank=12, key_rank=6, content_bias="exact"),
    ],
    ids=lambda c: "-".join(map(str, c.to_dict().values())),
)
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_low_rank_attention_is_the_formula_with_the_original_scale(
    tiny_bert: Any, config: CollabConfig, backend: str
) -> None:
    model = tiny_bert(BertModel)
    model.set_attn_implementation(backend)
    dense = copy.deepcopy(model.encoder.layer[0].attention.self)
    compress_(model, config)
    module = model.encoder.layer[0].attention.self
    hidden = torch.randn(2, 7, 24)

    # The formula, in float64, from the factors alone.
    plan, x = module.collab_plan, hidden.double()
    key = key_rows(module).detach().double()
    left = module.query.weight.detach().double().T @ module.mixing.query_maps().detach().double()
    right = key[: plan.key_rank].T @ module.mixing.key_maps().detach().double()
    if plan.content_bias == "exact":
        bias = key[plan.key_rank :]
    else:
        bias = torch.einsum("hjw,hw->hj", right, module.mixing.bias.detach().double())
    scores = (
        torch.einsum("bti,hiw,hjw,bsj->bhts", x, left, right, x) + (x @ bias.T).transpose(1, 2)[:, :, None]
    )
    weights = (scores / 8**0.5).softmax(-1)
    value = dense.double().value(x).unflatten(-1, (3, 8)).transpose(1, 2)
    expected = (weights @ value).transpose(1, 2).flatten(2)

    with torch.no_grad():
        got, maps = module(hidden)
    assert (got - expected).abs().max() < 1e-5  # float32 against float64
    if backend == "eager":
        assert (maps - weights).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["tiny_bert", "tiny_vit", "tiny_dinov2", "tiny_deit"])
def test_a_compressed_model_is_pickled(kind: str, request: pytest.FixtureRequest) -> None:
    """As processes that are spawned, and torch.save of a whole model, do."""
    model = request.getfixturevalue(kind)()
    compress_(model, CollabConfig(method="tucker", budget=0.5))
    again = pickle.loads(pickle.dumps(model))
    assert type(again) is type(model)
    for (name, tensor), (other, twin) in zip(
        model.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(tensor, twin)


def test_report_counts_what_is_there(tiny_bert: Any) -> None:
    model = tiny_bert(BertForMaskedLM)
    before = sum(p.numel() for p in model.parameters())
    for_layer = {n: sum(p.numel() for p in m.parameters()) for n, m in model.named_modules()}
    report = compress_(model, CollabConfig(method="tucker", query_rank=12, key_rank=12, score_width=4))
    after = sum(p.numel() for p in model.parameters())
    assert (report.parameters_before, report.parameters_after) == (before, after)
    assert before - after == report.qk_parameters_before - report.qk_parameters_after
    for layer in report.layers:
        module = model.get_submodule(f"bert.{layer.name}")
        shape = module.collab_family.shape(module)
        now = sum(p.numel() for p in module.parameters())
        assert for_layer[f"bert.{layer.name}"] - now == layer.qk_parameters_before - layer.qk_parameters_after
        assert layer.plan is not None
        assert layer.plan.num_parameters(shape) == layer.qk_parameters_after
        assert 0 < layer.relative_error < 1
        assert layer.rank == 12
    assert report.to_dict()["layers"][0]["relative_error"] == report.layers[0].relative_error


def test_a_module_that_all_layers_share_is_compressed_once(make: Any) -> None:
    model, _ = make("albert")
    assert len(compress_(model, CollabConfig(method="cp", rank=6)).layers) == 1


def test_keeps_mode_gradients_hooks_dtype_and_backend(tiny_bert: Any) -> None:
    model = tiny_bert(BertModel).to(torch.bfloat16)
    model.set_attn_implementation("eager")
    model.train()
    frozen, free = (layer.attention.self for layer in model.encoder.layer)
    frozen.eval().requires_grad_(False)
    calls: list[str] = []
    free.register_forward_hook(lambda *_: calls.append("attention"))
    free.query.register_forward_hook(lambda *_: calls.append("query"))
    compress_(model, CollabConfig(method="cp", rank=6))
    assert not frozen.training
    assert free.training
    assert free.mixing.training
    assert not any(p.requires_grad for p in frozen.parameters())
    assert all(p.requires_grad for p in free.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.config._attn_implementation == "eager"
    assert isinstance(free, BertSelfAttention)
    model(torch.zeros(1, 4, dtype=torch.long))
    assert sorted(calls) == ["attention", "query"]


def test_attentions_are_recorded_after_a_forward_that_recorded_them_before(tiny_bert: Any) -> None:
    model = tiny_bert(BertForSequenceClassification)
    model.set_attn_implementation("eager")
    ids = torch.arange(8)[None]
    model(ids, output_attentions=True, output_hidden_states=True)
    compress_(model, CollabConfig(method="cp", rank=6))
    result = model(ids, output_attentions=True, output_hidden_states=True)
    assert (len(result.attentions), len(result.hidden_states)) == (2, 3)


def test_gradient_checkpointing_gives_the_same_gradients(tiny_bert: Any) -> None:
    model = tiny_bert(
        BertForSequenceClassification, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    compress_(model, CollabConfig(method="tucker", query_rank=12, key_rank=12, score_width=4))
    model.train()
    batch = {"input_ids": torch.arange(8)[None], "labels": torch.tensor([1])}

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model(**batch).loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain = gradients()
    model.activation_checkpointing_enable()
    checkpointed = gradients()
    names = [n for n, p in model.named_parameters() if p.grad is not None]
    assert any("mixing.query_core" in n for n in names)
    assert any("mixing.bias" in n for n in names)
    assert all(torch.equal(a, b) for a, b in zip(plain, checkpointed, strict=True))


def test_same_input_same_bytes(tiny_bert: Any) -> None:
    config = CollabConfig(method="tucker", query_rank=12, key_rank=4, key_groups=2)
    models = [tiny_bert(BertModel), tiny_bert(BertModel)]
    for model in models:
        compress_(model, config)
    first, second = (m.state_dict() for m in models)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_layers_can_be_left_dense_or_get_their_own_ranks(tiny_bert: Any) -> None:
    model = tiny_bert(BertForQuestionAnswering)
    config = CollabConfig(method="cp", rank=6, layers={"*.0.*": "dense", "*.1.*": {"rank": 9}})
    report = compress_(model, config)
    assert [(layer.method, layer.rank) for layer in report.layers] == [("dense", FULL), ("cp", 9)]
    assert type(model.bert.encoder.layer[0].attention.self) is BertSelfAttention


def test_second_compression_is_refused(tiny_bert: Any) -> None:
    model = tiny_bert(BertModel)
    compress_(model, CollabConfig(method="cp", rank=6))
    with pytest.raises(FamilyError, match="compressed already"):
        compress_(model, CollabConfig(method="cp", rank=6))


def test_unknown_architecture_is_refused() -> None:
    model = FNetModel(FNetConfig(hidden_size=8, num_hidden_layers=1, intermediate_size=8, vocab_size=10))
    with pytest.raises(FamilyError, match="FNetModel has no attention layer that collab_hf knows"):
        compress_(model)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            CollabConfig(method="cp", rank=25),
            r"rank must be between 1 and 24, got 25 \(encoder.layer.0.attention.self\)",
        ),
        (
            CollabConfig(method="tucker", query_rank=25, key_rank=4),
            "query_rank must be between 1 and 24, got 25",
        ),
        (CollabConfig(method="cp", rank=6, dims_per_head=7), "dims_per_head must be between 1 and 6, got 7"),
        (
            CollabConfig(method="tucker", query_rank=8, key_rank=4, score_width=5),
            "score_width must be between 1 and 4",
        ),
        (
            CollabConfig(method="tucker", query_rank=8, key_rank=4, key_groups=4),
            "key_groups must be between 1 and 3",
        ),
        (CollabConfig(method="cp", budget=0.001), "budget must be at least 0.1"),
    ],
)
def test_a_rank_that_does_not_fit_leaves_the_model_alone(
    tiny_bert: Any, config: CollabConfig, message: str
) -> None:
    model = tiny_bert(BertModel)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(RankError, match=message):
        compress_(model, config)
    assert type(model) is BertModel
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_nan_in_the_weights_is_refused_by_name(tiny_bert: Any) -> None:
    model = tiny_bert(BertModel)
    with torch.no_grad():
        model.encoder.layer[1].attention.self.key.weight[3, 3] = float("nan")
    with pytest.raises(DecompositionError, match=r"encoder.layer.1.attention.self are not finite"):
        compress_(model, CollabConfig(method="cp", rank=6))
    assert type(model) is BertModel


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "cpd"}, "method must be one of"),
        ({"method": "cp", "rank": 0}, "rank must be an integer of at least 1, got 0"),
        ({"method": "cp", "rank": 8, "budget": 0.5}, "a budget or ranks, not both"),
        ({"method": "tucker", "query_rank": 8}, "query_rank and key_rank are given together"),
        ({"method": "svd", "dims_per_head": 8, "rank": 8}, "dims_per_head belongs to method cp"),
        ({"method": "cp", "tied": True, "rank": 8}, "tied belongs to method tucker"),
        (
            {"method": "tucker", "tied": True, "key_groups": 2, "rank": 8},
            "can't be combined with key_groups or head_rank",
        ),
        ({"budget": 1.5}, r"budget must be in \(0, 1\]"),
        ({"budget": True}, r"budget must be in \(0, 1\].* got True"),
        ({"budget": "0.5"}, r"budget must be in \(0, 1\]"),
        ({"target_params": 0}, "target_params must be a whole number of at least 1, got 0"),
        ({"target_params": 1.5}, "target_params must be a whole number of at least 1, got 1.5"),
        ({"max_loss": float("nan")}, "max_loss must be above 0 and finite, got nan"),
        ({"max_loss": True}, "max_loss must be above 0 and finite, got True"),
        ({"method": "tucker", "tied": "x", "rank": 8}, "tied must be true or false, got 'x'"),
        ({"seed": 2**64}, "seed must be a whole number from 0 to 9223372036854775807"),
        ({"seed": 1.0}, "seed must be a whole number from 0"),
        ({"reconstruct_steps": 1.5}, "reconstruct_steps must be a whole number of at least 0"),
        ({"solver": 3}, "solver must be text, got 3"),
        ({"layers": None}, "layers must be a mapping, got None"),
        ({"damping": -1.0}, "damping must be at least 0"),
        ({"damping": float("nan")}, "damping must be at least 0, got nan"),
        ({"content_bias": "none"}, "content_bias must be auto, exact or folded"),
        ({"precision": "float16"}, "precision must be float64 or float32"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CollabConfig(**settings)


def test_settings_round_trip() -> None:
    config = CollabConfig(method="cp", rank=6, dims_per_head=4, layers={"*.0.*": "dense"})
    assert CollabConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ConfigError, match="there is no setting 'rnak'; there are method, rank, "):
        CollabConfig.from_dict({"rnak": 6})


def test_softmax_never_sees_the_key_bias(tiny_bert: Any) -> None:
    """The key bias is dropped: a model that differs in it alone compresses to the same outputs."""
    models = [tiny_bert(BertModel), tiny_bert(BertModel)]
    nn.init.constant_(models[1].encoder.layer[0].attention.self.key.bias, 3.0)
    for model in models:
        compress_(model, CollabConfig(method="cp", rank=6))
    ids = {"input_ids": torch.arange(8)[None]}
    assert difference(outputs(models[0], ids), outputs(models[1], ids)) == 0


@pytest.mark.parametrize("content_bias", ["exact", "folded"])
def test_tied_layers_have_one_projection(tiny_bert: Any, content_bias: Any) -> None:
    model = tiny_bert(BertModel)
    report = compress_(model, CollabConfig(method="tucker", tied=True, budget=0.6, content_bias=content_bias))
    for layer in report.layers:
        assert layer.plan is not None
        assert layer.plan.tied
        assert 0.5 < layer.qk_parameters_after / layer.qk_parameters_before <= 0.6
    attention = model.encoder.layer[0].attention.self
    if content_bias == "exact":
        assert attention.key.weight.shape == (3, 24)  # what is left to it: a row a head
    else:
        assert attention.key is None
    assert attention.query.weight.shape[0] == layer.plan.query_rank == layer.plan.key_rank


def test_tied_needs_self_attention(tiny_bert: Any) -> None:
    model = tiny_bert(BertModel, is_decoder=True, add_cross_attention=True)
    with pytest.raises(RankError, match=r"not cross-attention \(encoder.layer.0.crossattention.self"):
        compress_(model, CollabConfig(method="tucker", tied=True, rank=8))
    assert type(model) is BertModel
    compress_(model, CollabConfig(method="tucker", tied=True, rank=8, layers={"*crossattention*": "dense"}))
    assert model.encoder.layer[0].attention.self.key is None


@pytest.mark.parametrize(
    "settings",
    [
        {"key_groups": 3, "budget": 0.6},
        {"head_rank": 2, "budget": 0.5},
        {"query_rank": 12, "key_rank": 9, "key_groups": 2},  # wider than a head: folded into the query length
        {"query_rank": 12, "key_rank": 12, "head_rank": 2},
    ],
)
def test_groups_and_head_ranks_with_a_budget_or_keys_wider_than_a_head(tiny_bert: Any, settings: Any) -> None:
    model = tiny_bert(BertModel)
    report = compress_(model, CollabConfig(method="tucker", **settings))
    plan = report.layers[0].plan
    assert plan is not None
    assert plan.key_groups == settings.get("key_groups", 1)
    assert plan.score_width == plan.key_rank // plan.key_groups
    assert report.qk_parameters_after <= settings.get("budget", 1) * report.qk_parameters_before
    assert torch.isfinite(outputs(model, {"input_ids": torch.arange(8)[None]})[-1]).all()
