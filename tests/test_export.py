"""Graphs of compressed models: torch.export, torch.compile, ONNX, each equal to the model at other shapes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from cli_support import SENTENCES, CommandLine
from random_models import PLANS, image_inputs, make_collab_, outputs, text_inputs
from transformers import AutoTokenizer, BertForMaskedLM, BertForMultipleChoice, ViTForImageClassification

from collab_hf import export_onnx, load_model
from collab_hf.checkpoint import onnx
from collab_hf.errors import ExportError
from collab_hf.modeling import kernels

# The same sums in another order, relative to outputs of the order of one; seen: 2e-6.
ROUNDING = 2e-5

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the exporters, about their own parts
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.mark.parametrize("plan", ["tucker-groups", "cp"])
def test_text_to_onnx(
    plan: str, tiny_bert: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As small as that, the scores of these inputs are computed in pieces, unless they are traced.
    for name in ("_PIECE_BYTES", "_FEW_TOKENS"):
        monkeypatch.setattr(kernels, name, 1)
    model = make_collab_(tiny_bert(BertForMaskedLM), PLANS[plan]).train()
    model.config.return_dict = plan == "cp"  # where it asks for plain tuples, the graph's outputs have names
    done = export_onnx(model, tmp_path / "deep" / "model.onnx")
    assert done.inputs == ("input_ids", "attention_mask", "token_type_ids")
    assert done.outputs == ("logits",)
    assert done.difference < ROUNDING
    assert done.file_size == done.file.stat().st_size
    assert [p.name for p in done.file.parent.iterdir()] == ["model.onnx"]
    assert all(module.training for module in model.modules())


def test_an_image_model_to_onnx_and_int8(tiny_vit: Callable[..., Any], tmp_path: Path) -> None:
    model = make_collab_(tiny_vit(ViTForImageClassification), PLANS["tucker"])
    full = export_onnx(model, tmp_path / "full.onnx")
    small = export_onnx(model, tmp_path / "small.onnx", int8=True)
    assert full.inputs == ("pixel_values",)
    assert full.difference < ROUNDING < small.difference < 0.2
    assert 0.9 < small.cosine < full.cosine
    assert full.cosine == pytest.approx(1, abs=1e-6)
    assert small.to_dict()["int8"]


def test_the_check_sees_other_weights(
    tiny_vit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: a graph of something else is refused, and no file is left."""
    model = make_collab_(tiny_vit(ViTForImageClassification), PLANS["tucker"])
    trace = onnx._trace

    def spoil(*arguments: Any) -> None:
        trace(*arguments)
        model.classifier.bias.data += 0.1

    monkeypatch.setattr(onnx, "_trace", spoil)
    with pytest.raises(ExportError, match=r"the graph's outputs differ from torch's by .*, more than 1e-04"):
        export_onnx(model, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_said(
    tiny_bert: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ExportError, match="a multiple-choice model has no export"):
        export_onnx(tiny_bert(BertForMultipleChoice), tmp_path / "model.onnx")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ExportError,
        match=r"needs onnx, onnxruntime, onnxscript; run: pip install onnx onnxruntime onnxscript",
    ):
        export_onnx(tiny_bert(), tmp_path / "model.onnx")


def test_a_directory_has_what_other_libraries_open(
    collab_hf: CommandLine, model: Path, tmp_path: Path
) -> None:
    """A graph that needs no class of ours, beside its host's config and the tokenizer."""
    small, out = tmp_path / "small", tmp_path / "graph"
    how = ["--method", "cp", "--rank", 6, "--calibration", "none"]
    assert collab_hf("compress", model, "-o", small, *how).code == 0
    (small / "README.md").write_text("---\nlicense: mit\n---\nA card\n")
    (small / "modules.json").write_text('[{"path": "1_Pooling"}]')
    (small / "1_Pooling").mkdir()
    (small / "1_Pooling" / "config.json").write_text("{}")
    done = collab_hf("export", small, "--onnx", f"{out}/", "--json")
    assert done.values["file"] == str(out / "onnx" / "model.onnx")
    names = {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()}
    assert names >= {"config.json", "tokenizer.json", "onnx/model.onnx", "README.md", "1_Pooling/config.json"}
    assert not any(name.endswith((".py", ".safetensors")) or "collab" in name for name in names)
    config = json.loads((out / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("bert", ["BertModel"])
    assert "collab" not in config
    assert "license: mit" in (out / "README.md").read_text()

    inputs = AutoTokenizer.from_pretrained(out)(SENTENCES, padding=True, return_tensors="np")
    graph = onnxruntime.InferenceSession(out / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    states = graph.run(["last_hidden_state"], dict(inputs))[0]
    with torch.no_grad():
        expected = load_model(small)(**{name: torch.from_numpy(value) for name, value in inputs.items()})[0]
    assert abs(states - expected.numpy()).max() < ROUNDING
    assert "exists" in collab_hf("export", small, "--onnx", out).complaint
    assert "exists" in collab_hf("export", small, "--onnx", small / "config.json").complaint


@pytest.mark.parametrize("plan", ["tucker", "cp"])
def test_torch_export(plan: str, tiny_bert: Callable[..., Any]) -> None:
    model = make_collab_(tiny_bert(), PLANS[plan])
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=40)
    shapes = {name: {0: batch, 1: length} for name in ("input_ids", "attention_mask")}
    program = torch.export.export(model, (), text_inputs(), dynamic_shapes=shapes)
    inputs = text_inputs(batch=5, length=19)
    assert (program.module()(**inputs)[0] - outputs(model, inputs)).abs().max() < ROUNDING


@pytest.mark.parametrize("plan", ["tucker", "cp"])
def test_torch_compile_has_no_graph_breaks(plan: str, tiny_vit: Callable[..., Any]) -> None:
    model = make_collab_(tiny_vit(), PLANS[plan])
    inputs = image_inputs()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert (outputs(compiled, inputs) - outputs(model, inputs)).abs().max() < ROUNDING
