"""Back to the host's own classes: same outputs, files that load without collab_hf."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from random_models import PLANS, image_inputs, make_collab_, outputs, text_inputs
from safetensors.torch import load_file
from transformers import AutoModel, BertForMaskedLM, BertLMHeadModel, BertModel, ViTForImageClassification

from collab_hf import CollabError, load_model, to_dense_
from collab_hf.errors import FamilyError
from collab_hf.modeling.errors import RankError

# Two float32 orders of summation in two layers of width 24; seen: 3e-6.
ROUNDING = 2e-5
FITTING = [name for name in PLANS if name not in ("cp", "copy-exact")]


@pytest.mark.parametrize("plan", FITTING)
def test_text_outputs_stay(plan: str, tiny_bert: Callable[..., Any]) -> None:
    model = make_collab_(tiny_bert(BertForMaskedLM), PLANS[plan])
    inputs = text_inputs()
    before = outputs(model, inputs)
    assert to_dense_(model) is model
    assert type(model) is BertForMaskedLM
    assert type(model.config) is transformers.BertConfig
    assert (outputs(model, inputs) - before).abs().max() < ROUNDING
    # Negative control: the content bias is part of it.
    for layer in model.bert.encoder.layer:
        layer.attention.self.query.bias.data.zero_()
    assert (outputs(model, inputs) - before).abs().max() > 100 * ROUNDING


@pytest.mark.parametrize("plan", ["copy", "tucker", "tucker-narrow"])
@pytest.mark.parametrize("bias", [True, False])
def test_image_outputs_stay_and_reload(
    plan: str, bias: bool, tiny_vit: Callable[..., Any], tmp_path: Path
) -> None:
    """Without host biases the content bias still finds its place: config.qkv_bias is switched on for it."""
    model = make_collab_(tiny_vit(ViTForImageClassification, qkv_bias=bias), PLANS[plan])
    inputs = image_inputs()
    before = outputs(model, inputs)
    to_dense_(model).save_pretrained(tmp_path)
    again, info = ViTForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert (outputs(again.eval(), inputs) - before).abs().max() < ROUNDING
    backbone, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True, add_pooling_layer=False)
    assert not info["missing_keys"]
    assert type(backbone) is transformers.ViTModel


def test_the_files_are_the_hosts(tiny_bert: Callable[..., Any], tmp_path: Path) -> None:
    original = tiny_bert(BertModel)
    original.save_pretrained(tmp_path / "original")
    to_dense_(make_collab_(original, PLANS["tucker"])).save_pretrained(tmp_path / "dense")
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    assert config == json.loads((tmp_path / "original" / "config.json").read_text())
    assert not list((tmp_path / "dense").glob("*.py"))
    shapes = [
        {k: v.shape for k, v in load_file(tmp_path / d / "model.safetensors").items()}
        for d in ("original", "dense")
    ]
    assert shapes[0] == shapes[1]


def test_copy_comes_back_bit_for_bit(tiny_bert: Callable[..., Any]) -> None:
    """Stacked per-head weights are the dense weights; the content bias gives back the query's bias."""
    model = tiny_bert(BertModel)
    dense = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    make_collab_(model, PLANS["copy-exact"])
    for name, module in model.named_modules():
        if name.endswith("attention.self"):
            weight, bias = dense[f"{name}.key.weight"], dense[f"{name}.query.bias"]
            content = torch.einsum("hd,hdj->hj", bias.view(3, 8), weight.view(3, 8, 24))
            module.query.weight.data.copy_(dense[f"{name}.query.weight"])
            module.key.weight.data.copy_(torch.cat([weight, content]))
    to_dense_(model)
    for name, tensor in model.state_dict().items():
        if name.endswith("query.bias"):
            torch.testing.assert_close(tensor, dense[name])
        elif not name.endswith("self.key.bias"):  # which the softmax drops
            assert torch.equal(tensor, dense[name]), name


@pytest.mark.parametrize(("plan", "needed"), [("cp", 17), ("copy-exact", 9)])
def test_scores_that_do_not_fit_are_refused_or_approximated(
    plan: str, needed: int, tiny_bert: Callable[..., Any]
) -> None:
    """A random content bias is in no head's key space, so copy needs one dimension more than it has."""
    model = make_collab_(tiny_bert(), PLANS[plan])
    inputs = text_inputs()
    before = outputs(model, inputs)
    with pytest.raises(RankError, match=rf"need {needed} dimensions, more than its 8 \(encoder.layer.0"):
        to_dense_(model)
    assert torch.equal(outputs(model, inputs), before)
    to_dense_(model, nearest=True)
    change = (outputs(model, inputs) - before).norm() / before.norm()
    assert 1e-4 < change < 0.5


def test_a_decoder_with_cross_attention(tiny_bert: Callable[..., Any]) -> None:
    model = tiny_bert(BertLMHeadModel, is_decoder=True, add_cross_attention=True)
    make_collab_(model, PLANS["tucker"])
    inputs = {**text_inputs(), "encoder_hidden_states": torch.randn(2, 5, 24)}
    before = outputs(model, inputs)
    to_dense_(model)
    assert (outputs(model, inputs) - before).abs().max() < ROUNDING


def test_a_loaded_model(tiny_vit: Callable[..., Any], tmp_path: Path) -> None:
    """Its inner model is not of a collaborative class, unlike that of a model compressed in place."""
    make_collab_(tiny_vit(ViTForImageClassification), PLANS["tucker"]).save_pretrained(tmp_path / "small")
    model = load_model(tmp_path / "small")
    inputs = image_inputs()
    before = outputs(model, inputs)
    to_dense_(model).save_pretrained(tmp_path / "dense")
    assert type(model) is ViTForImageClassification
    again, info = ViTForImageClassification.from_pretrained(tmp_path / "dense", output_loading_info=True)
    assert not any(info.values()), info
    assert (outputs(again, inputs) - before).abs().max() < ROUNDING


def test_what_surgery_keeps_is_kept(tiny_bert: Callable[..., Any]) -> None:
    model = make_collab_(tiny_bert(attn_implementation="eager"), PLANS["tucker"]).to(torch.bfloat16)
    layer = model.encoder.layer[0].attention.self
    layer.query.weight.requires_grad = False
    seen = []
    layer.register_forward_hook(lambda *_: seen.append(1))
    to_dense_(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not layer.query.weight.requires_grad
    assert not model.training
    result = model(**text_inputs(), output_attentions=True)
    assert len(result.attentions) == 2
    assert seen == [1]


def test_a_dense_model_is_refused(tiny_bert: Callable[..., Any]) -> None:
    with pytest.raises(FamilyError, match="BertModel has no compressed attention layer"):
        to_dense_(tiny_bert())
    assert issubclass(FamilyError, CollabError)
