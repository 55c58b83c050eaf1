"""Checkpoints that transformers 4 pruned load with the heads that are left."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, BertForMaskedLM, ViTModel

from collab_hf import heads, load_model
from collab_hf.errors import CheckpointError, RankError

PRUNED = {"0": [1], "1": [2, 0]}
LAYERS = {
    "bert": ("bert.encoder.layer.{}.attention", ("self.query", "self.key", "self.value"), "output.dense"),
    "vit": (
        "encoder.layer.{}.attention",
        ("attention.query", "attention.key", "attention.value"),
        "output.dense",
    ),
}


def pruned_as_by_v4(model, kind, directory):
    """What `prune_heads` and `save_pretrained` of transformers 4 left: smaller weights, heads' numbers."""
    model.save_pretrained(directory)
    weights = load_file(directory / "model.safetensors")
    around, projections, output = LAYERS[kind]
    for layer, gone in PRUNED.items():
        kept = torch.tensor([h * 8 + i for h in range(3) if h not in gone for i in range(8)])
        prefix = around.format(layer)
        for name in projections:
            for part in ("weight", "bias"):
                weights[f"{prefix}.{name}.{part}"] = weights[f"{prefix}.{name}.{part}"][kept]
        name = f"{prefix}.{output}.weight"
        weights[name] = weights[name][:, kept].contiguous()
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    change_config(directory, pruned_heads=PRUNED, transformers_version="4.57.0")
    return directory


def change_config(directory, **values):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **values}))


@pytest.fixture
def made(tiny_bert, tiny_vit, tmp_path):
    def make(kind):
        model = tiny_bert(BertForMaskedLM) if kind == "bert" else tiny_vit(ViTModel)
        return model, pruned_as_by_v4(model, kind, tmp_path / kind)

    return make


def batch(kind):
    if kind == "vit":
        return {"pixel_values": torch.randn(2, 3, 16, 16)}
    return {"input_ids": torch.randint(50, (2, 9)), "attention_mask": torch.ones(2, 9, dtype=torch.long)}


@torch.no_grad()
def first(model, inputs):
    return model(**inputs)[0]


@pytest.mark.parametrize("kind", LAYERS)
def test_it_computes_what_gates_of_zero_give(kind, made, tmp_path):
    model, directory = made(kind)
    names = list(heads.head_sites(model))
    off = [(names[int(layer)], head) for layer, gone in PRUNED.items() for head in gone]
    inputs = batch(kind)
    whole = first(model, inputs)
    with heads.gated(model, heads.without(model, off)):
        expected = first(model, inputs)
    loaded = load_model(directory)
    assert type(loaded).__name__ == f"Collab{type(model).__name__}"
    # Sums over fewer terms round otherwise in float32.
    torch.testing.assert_close(first(loaded, inputs), expected, rtol=0, atol=1e-5)
    assert (whole - expected).abs().max() > 1e-2  # negative control
    assert not hasattr(loaded.config, "pruned_heads")
    loaded.save_pretrained(tmp_path / "again")
    again = load_model(tmp_path / "again")
    assert torch.equal(first(again, inputs), first(loaded, inputs))
    assert [site.num_heads for site in heads.head_sites(again).values()] == [2, 1]


def test_the_backbone_alone_and_auto_classes(made, tmp_path):
    _, directory = made("bert")
    inputs = batch("bert")
    loaded = load_model(directory)
    with pytest.warns(UserWarning, match="no weights for a pooler"):
        backbone = load_model(directory, backbone=True)
    expected = loaded.base_model(**inputs).last_hidden_state
    assert torch.equal(backbone(**inputs).last_hidden_state, expected)
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(AutoModel.from_pretrained(tmp_path / "again")(**inputs)[0], expected)


def test_without_the_field_nothing_changes(tiny_bert, tmp_path):
    """Negative control: an empty field, which transformers 4 wrote too, is no pruned model."""
    tiny_bert(BertForMaskedLM).save_pretrained(tmp_path / "whole")
    change_config(tmp_path / "whole", pruned_heads={})
    assert type(load_model(tmp_path / "whole")) is BertForMaskedLM


@pytest.mark.parametrize(
    ("pruned", "error", "message"),
    [
        ({"2": [0]}, CheckpointError, "pruned_heads in config.json names layer 2 of 2"),
        ({"0": [3]}, RankError, "the model has no head 3 in encoder.layer.0.attention.self"),
        ({"0": "all"}, CheckpointError, "must map layers to heads"),
        ({"0": [1]}, CheckpointError, "where config.json says"),
    ],
)
def test_what_does_not_fit_is_refused(pruned, error, message, made):
    _, directory = made("bert")
    change_config(directory, pruned_heads=pruned)
    with pytest.raises(error, match=message):
        load_model(directory)
