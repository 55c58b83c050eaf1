"""Statistics collected from tiny models, against the inputs that the attention layers really saw."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    BartConfig,
    BartModel,
    BertModel,
    CLIPConfig,
    CLIPModel,
    PreTrainedModel,
)

from collab_hf.calibration.statistics import collect_statistics
from collab_hf.errors import CalibrationError

TINY = {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 32}
# The oracle sums the same float64 numbers in another order.
ROUNDING = 1e-12

ModelFactory = Callable[..., PreTrainedModel]


def layers_of(model: nn.Module, *class_names: str) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if type(module).__name__ in class_names}


def text_batch(tokens: int = 7, *, padded: bool = True) -> dict[str, Tensor]:
    mask = torch.ones(4, tokens, dtype=torch.long)
    if padded:
        mask[1, 4:] = 0
        mask[2, 2:] = 0
    return {"input_ids": torch.randint(3, 50, (4, tokens)), "attention_mask": mask}


def tiny_bart() -> BartModel:
    heads = {"encoder_attention_heads": 3, "decoder_attention_heads": 3}
    layers = {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    return BartModel(BartConfig(d_model=24, vocab_size=50, max_position_embeddings=30, **heads, **layers))


def seen_inputs(model: nn.Module, layer: nn.Module, batch: Mapping[str, Any]) -> list[Tensor]:
    """The hidden states that the layer is called with."""
    seen: list[Tensor] = []

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    handle = layer.register_forward_pre_hook(hook, with_kwargs=True)
    with torch.no_grad():
        model(**batch)
    handle.remove()
    return seen


def test_self_attention_matches_the_inputs_seen(tiny_bert: ModelFactory) -> None:
    model = tiny_bert()
    layers = layers_of(model, "BertSelfAttention")
    batches = [text_batch(7), text_batch(5), text_batch(9, padded=False)]
    statistics = collect_statistics(model, layers, batches)
    assert list(statistics) == list(layers)
    for name, layer in layers.items():
        rows = [seen_inputs(model, layer, b)[0][b["attention_mask"].bool()] for b in batches]
        expected = torch.cov(torch.cat(rows).double().T, correction=0)
        moments = statistics[name].query
        assert statistics[name].key is moments
        assert moments.count == sum(int(b["attention_mask"].sum()) for b in batches)
        assert (moments.covariance - expected).norm() < ROUNDING * expected.norm()


def test_padding_tokens_leave_no_trace(tiny_bert: ModelFactory) -> None:
    model = tiny_bert()
    layers = layers_of(model, "BertSelfAttention")
    batch = text_batch()
    other = {**batch, "input_ids": torch.where(batch["attention_mask"] == 0, 49, batch["input_ids"])}
    counted = {k: v for k, v in batch.items() if k != "attention_mask"}
    first, second = (collect_statistics(model, layers, [b]) for b in (batch, other))
    padded = collect_statistics(model, layers, [counted])
    for name in layers:
        assert torch.equal(first[name].query.mean, second[name].query.mean)
        # negative control: without the mask the same tokens do count
        assert padded[name].query.count == 28
        assert (padded[name].query.mean - first[name].query.mean).norm() > 1e-2


def test_every_token_of_an_image_counts(tiny_vit: ModelFactory) -> None:
    model = tiny_vit()
    layers = layers_of(model, "ViTAttention")
    batch = {"pixel_values": torch.randn(5, 3, 16, 16)}
    statistics = collect_statistics(model, layers, [batch])
    for name, layer in layers.items():
        rows = seen_inputs(model, layer, batch)[0].flatten(0, 1)
        assert statistics[name].query.count == 5 * 17  # 16 patches and the class token
        torch.testing.assert_close(statistics[name].query.mean, rows.double().mean(dim=0))


def test_cross_attention_has_its_own_key_side() -> None:
    model = tiny_bart()
    layers = layers_of(model, "BartAttention")
    batch, target = text_batch(7), text_batch(7)  # equal lengths: only the right mask gives the right counts
    target["attention_mask"] = torch.ones(4, 7, dtype=torch.long)
    target["attention_mask"][3, 1:] = 0
    decoder = {f"decoder_{name}": value for name, value in target.items()}
    statistics = collect_statistics(model, layers, [{**batch, **decoder}])
    source_count, target_count = int(batch["attention_mask"].sum()), int(target["attention_mask"].sum())
    assert source_count != target_count
    for name, layer_statistics in statistics.items():
        crossed = "encoder_attn" in name
        assert layer_statistics.query.count == (target_count if "decoder" in name else source_count)
        assert layer_statistics.key.count == (source_count if crossed else layer_statistics.query.count)
        assert (layer_statistics.key is layer_statistics.query) is not crossed


def test_cross_attention_of_a_bert_decoder(tiny_bert: ModelFactory) -> None:
    model = tiny_bert(BertModel, is_decoder=True, add_cross_attention=True)
    layers = layers_of(model, "BertSelfAttention", "BertCrossAttention")
    encoded = torch.randn(4, 6, 24)
    batch = {
        **text_batch(7),
        "encoder_hidden_states": encoded,
        "encoder_attention_mask": torch.tensor([[1, 1, 1, 0, 0, 0]] * 4),
    }
    for name, layer_statistics in collect_statistics(model, layers, [batch]).items():
        if "crossattention" in name:
            expected = encoded[:, :3].flatten(0, 1).double()
            torch.testing.assert_close(layer_statistics.key.mean, expected.mean(dim=0))
            assert layer_statistics.key.count == 12


def test_the_text_mask_does_not_reach_the_image_tower() -> None:
    text = {**TINY, "vocab_size": 50, "max_position_embeddings": 20}
    tokens = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    vision = {**TINY, "image_size": 16, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config={**text, **tokens}, vision_config=vision, projection_dim=8))
    batch = {
        **text_batch(5),
        "pixel_values": torch.randn(4, 3, 16, 16),
    }  # 4 patches and a class token: also 5
    for name, layer_statistics in collect_statistics(
        model, layers_of(model, "CLIPAttention"), [batch]
    ).items():
        expected = 20 if name.startswith("vision") else int(batch["attention_mask"].sum())
        assert layer_statistics.query.count == expected


def test_a_shared_module_adds_up_its_calls() -> None:
    model = AlbertModel(AlbertConfig(**TINY, embedding_size=16, vocab_size=50))
    ((name, layer),) = layers_of(model, "AlbertAttention").items()
    batch = text_batch()
    calls = seen_inputs(model.eval(), layer, batch)
    rows = torch.cat([call[batch["attention_mask"].bool()] for call in calls]).double()
    moments = collect_statistics(model, {name: layer}, [batch])[name].query
    assert len(calls) == 2
    assert moments.count == len(rows)
    torch.testing.assert_close(moments.covariance, torch.cov(rows.T, correction=0))


def test_a_plain_torch_model() -> None:
    class Layer(nn.Linear):
        def forward(self, hidden_states: Tensor) -> Tensor:
            return super().forward(hidden_states)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = Layer(3, 3)

        def forward(self, states: Tensor, attention_mask: Tensor) -> Tensor:
            return self.attention(states)

    model, states = Model(), torch.randn(2, 4, 3)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    statistics = collect_statistics(
        model, {"a": model.attention}, [{"states": states, "attention_mask": mask}]
    )
    torch.testing.assert_close(statistics["a"].query.mean, states[mask.bool()].double().mean(dim=0))


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) for module in model.modules())


def test_the_model_is_left_as_it_was_found(tiny_bert: ModelFactory) -> None:
    model = tiny_bert().train()
    model.encoder.layer[0].eval()  # mixed modes come back as they were
    layers = layers_of(model, "BertSelfAttention")
    before, weights = modes(model), {k: v.clone() for k, v in model.state_dict().items()}
    first = collect_statistics(model, layers, [text_batch()])
    assert modes(model) == before
    assert hooks(model) == 0
    assert torch.is_grad_enabled()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not first["encoder.layer.0.attention.self"].query.mean.requires_grad


def test_dropout_is_off_while_collecting(tiny_bert: ModelFactory) -> None:
    model, batch = tiny_bert().train(), text_batch()
    layers = layers_of(model, "BertSelfAttention")
    first, second = (collect_statistics(model, layers, [batch]) for _ in range(2))
    assert all(torch.equal(first[name].query.mean, second[name].query.mean) for name in layers)


def test_the_model_is_restored_after_an_error(tiny_bert: ModelFactory) -> None:
    model = tiny_bert().train()
    layers = layers_of(model, "BertSelfAttention")
    too_large = {"input_ids": torch.full((1, 3), 50)}  # the vocabulary ends at 49
    with pytest.raises(
        CalibrationError, match="BertModel refused calibration batch 2 with the inputs input_ids"
    ):
        collect_statistics(model, layers, [text_batch(), too_large])
    assert all(modes(model))
    assert hooks(model) == 0


def test_the_users_own_hooks_stay_and_are_seen(tiny_bert: ModelFactory) -> None:
    model, batch = tiny_bert(), text_batch()
    layer = model.encoder.layer[0].attention.self
    handle = layer.register_forward_pre_hook(lambda module, args: (args[0] + 100, *args[1:]))
    statistics = collect_statistics(model, {"0": layer}, [batch])
    assert list(layer._forward_pre_hooks) == [handle.id]
    assert statistics["0"].query.mean.mean() > 50  # what the layer really reads


def test_batches_go_to_the_dtype_of_the_model(tiny_vit: ModelFactory) -> None:
    model = tiny_vit().to(torch.bfloat16)
    batch = {"pixel_values": torch.randn(2, 3, 16, 16)}
    statistics = collect_statistics(model, layers_of(model, "ViTAttention"), [batch])
    assert all(s.query.covariance.dtype == torch.float64 for s in statistics.values())
    assert batch["pixel_values"].dtype == torch.float32


def test_progress_goes_to_stderr(tiny_bert: ModelFactory, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_bert()
    collect_statistics(model, layers_of(model, "BertSelfAttention"), [text_batch()] * 2, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "calibration" in captured.err


def test_activations_that_are_not_finite_name_the_layer(tiny_bert: ModelFactory) -> None:
    model = tiny_bert()
    with torch.no_grad():
        model.encoder.layer[0].output.dense.weight.fill_(float("inf"))
    with pytest.raises(CalibrationError, match=r"must be finite, .* \(encoder.layer.1.attention.self\)"):
        collect_statistics(model, layers_of(model, "BertSelfAttention"), [text_batch()])


def test_a_layer_that_never_runs_is_named(tiny_bert: ModelFactory) -> None:
    model = tiny_bert()
    layers = {**layers_of(model, "BertSelfAttention"), "spare": nn.Linear(24, 24)}
    with pytest.raises(CalibrationError, match="no token of the calibration data reached spare; "):
        collect_statistics(model, layers, [text_batch()])


def test_nothing_but_padding_is_refused(tiny_bert: ModelFactory) -> None:
    model, batch = tiny_bert(), text_batch()
    batch["attention_mask"].zero_()
    with pytest.raises(
        CalibrationError, match=r"no token .* reached encoder.layer.0.attention.self, encoder"
    ):
        collect_statistics(model, layers_of(model, "BertSelfAttention"), [batch])


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "the calibration data has no batch; pass at least one"),
        ([("a", "b")], "batch 1 must be a mapping of model inputs with at least one tensor, got tuple"),
        ([{}], "at least one tensor, got one with nothing"),
        ([{"input_ids": [[1, 2]]}], "at least one tensor, got one with input_ids"),
    ],
)
def test_batches_that_are_none(tiny_bert: ModelFactory, batches: list[Any], message: str) -> None:
    model = tiny_bert()
    with pytest.raises(CalibrationError, match=message):
        collect_statistics(model, layers_of(model, "BertSelfAttention"), batches)


def test_no_layers(tiny_bert: ModelFactory) -> None:
    with pytest.raises(CalibrationError, match="at least one attention layer, got none"):
        collect_statistics(tiny_bert(), {}, [text_batch()])


def test_an_unknown_input_is_named(tiny_bert: ModelFactory) -> None:
    model = tiny_bert()
    with pytest.raises(CalibrationError, match="with the inputs pixel_values: "):
        collect_statistics(model, layers_of(model, "BertSelfAttention"), [{"pixel_values": torch.ones(1, 3)}])
