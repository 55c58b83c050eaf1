"""What people do with a model: pipelines, sentence-transformers, PEFT, accelerate, int8."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_support import SENTENCES, VOCABULARY, save_with_image_processor, save_with_tokenizer
from random_models import PLANS, image_inputs, make_collab_, outputs, text_inputs
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    TorchAoConfig,
    ViTForImageClassification,
    pipeline,
)

import collab_hf
from collab_hf.modeling.attention import CollabAttention

# The same sums in another order, relative to outputs of the order of one; seen: 2e-6.
ROUNDING = 2e-5


@pytest.mark.parametrize(
    ("task", "head"),
    [
        ("fill-mask", BertForMaskedLM),
        ("text-classification", BertForSequenceClassification),
        ("feature-extraction", BertModel),
    ],
)
def test_text_pipelines(task: str, head: Any, tiny_bert: Callable[..., Any], tmp_path: Path) -> None:
    model = make_collab_(tiny_bert(head, vocab_size=len(VOCABULARY)), PLANS["tucker"])
    save_with_tokenizer(model, tmp_path)
    run = pipeline(task, model=str(tmp_path), device="cpu")
    assert type(run.model) is type(model)
    text = "a cat sat on the [MASK]"
    tokens = run.tokenizer(text, return_tensors="pt")
    result = run(text)
    if task == "feature-extraction":
        torch.testing.assert_close(torch.tensor(result), outputs(model, tokens))
        return
    logits = outputs(model, tokens)
    best = logits[0, -2].argmax() if task == "fill-mask" else logits[0].argmax()
    key, expected = (
        ("token", best.item()) if task == "fill-mask" else ("label", model.config.id2label[best.item()])
    )
    assert result[0][key] == expected


def test_the_image_pipeline(tiny_vit: Callable[..., Any], tmp_path: Path) -> None:
    from PIL import Image

    model = make_collab_(tiny_vit(ViTForImageClassification), PLANS["cp-sparse"])
    save_with_image_processor(model, tmp_path)
    run = pipeline("image-classification", model=str(tmp_path), device="cpu")
    image = Image.effect_noise((16, 16), 60).convert("RGB")
    pixels = run.image_processor(image, return_tensors="pt")
    best = outputs(model, pixels)[0].argmax().item()
    assert run(image)[0]["label"] == model.config.id2label[best]


@pytest.fixture
def sentence_transformer(tiny_bert: Callable[..., Any], tmp_path: Path) -> Path:
    """A sentence-transformers directory with a compressed model."""
    model = make_collab_(tiny_bert(vocab_size=len(VOCABULARY)), PLANS["tucker"])
    save_with_tokenizer(model, tmp_path / "st")
    kinds = {"": "Transformer", "1_Pooling": "Pooling"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    (tmp_path / "st" / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "st" / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 24, "pooling_mode_mean_tokens": True}
    (tmp_path / "st" / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return tmp_path / "st"


def test_sentence_transformers_with_the_package(sentence_transformer: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(sentence_transformer), device="cpu")
    assert any(isinstance(m, CollabAttention) for m in encoder.modules())
    embeddings = encoder.encode(SENTENCES)
    encoder.save_pretrained(str(tmp_path / "again"))
    again = SentenceTransformer(str(tmp_path / "again"), device="cpu")
    assert (torch.tensor(again.encode(SENTENCES)) - torch.tensor(embeddings)).abs().max() < ROUNDING


def test_sentence_transformers_without_the_package(sentence_transformer: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    expected = SentenceTransformer(str(sentence_transformer), device="cpu").encode(SENTENCES)
    code = (
        "import sys; sys.modules['collab_hf'] = None\n"
        "import numpy, torch; torch.set_num_threads(1)\n"
        "from sentence_transformers import SentenceTransformer\n"
        "model = SentenceTransformer(sys.argv[1], device='cpu', trust_remote_code=True)\n"
        f"numpy.save(sys.argv[2], model.encode({SENTENCES!r}))\n"
    )
    found = tmp_path / "found.npy"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home")}
    subprocess.run(
        [sys.executable, "-c", code, sentence_transformer, found], check=True, env=environment, timeout=120
    )
    import numpy as np

    np.testing.assert_allclose(np.load(found), expected, atol=ROUNDING)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # which PEFT asks for
@pytest.mark.parametrize("plan", ["tucker-narrow", "tucker-tied"])
@pytest.mark.parametrize("target", [None, ["query", "key", "value"]])
def test_lora_trains_merges_and_reloads(
    target: list[str] | None, plan: str, tiny_bert: Callable[..., Any], tmp_path: Path
) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    base = make_collab_(tiny_bert(BertForMaskedLM), PLANS[plan])
    base.save_pretrained(tmp_path / "base")
    model = get_peft_model(base, LoraConfig(r=2, target_modules=target))
    names = {name.split(".")[-2] for name, _ in model.named_modules() if name.endswith("lora_A")}
    assert names == set(target or ["query", "value"]) - ({"key"} if PLANS[plan].tied else set())
    inputs = text_inputs()
    before = outputs(model, inputs)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):  # the first step leaves A's gradient at zero, as B starts there
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = outputs(model.eval(), inputs)
    assert (trained - before).abs().max() > 1e-3
    model.save_pretrained(tmp_path / "adapter")
    fresh = AutoModelForMaskedLM.from_pretrained(tmp_path / "base")
    reloaded = PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    assert torch.equal(outputs(reloaded, inputs), trained)
    merged = reloaded.merge_and_unload()
    assert type(merged) is type(base)
    assert (outputs(merged, inputs) - trained).abs().max() < ROUNDING


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}])
def test_big_model_loading_of_shards(device_map: Any, tiny_bert: Callable[..., Any], tmp_path: Path) -> None:
    model = make_collab_(tiny_bert(), PLANS["tucker-head-rank"])
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    again = AutoModel.from_pretrained(tmp_path, device_map=device_map)
    inputs = text_inputs()
    assert torch.equal(outputs(again.to("cpu"), inputs), outputs(model, inputs))


@pytest.mark.filterwarnings("ignore:.*offloaded")
@pytest.mark.parametrize("plan", PLANS)
def test_layers_on_disk(plan: str, tiny_bert: Callable[..., Any], tmp_path: Path) -> None:
    model = make_collab_(tiny_bert(), PLANS[plan])
    model.save_pretrained(tmp_path / "model")
    places = {"embeddings": "cpu", "encoder.layer.0": "cpu", "encoder.layer.1": "disk", "pooler": "disk"}
    again = AutoModel.from_pretrained(tmp_path / "model", device_map=places, offload_folder=tmp_path / "disk")
    assert again.encoder.layer[1].attention.self.query.weight.is_meta
    inputs = text_inputs()
    assert torch.equal(outputs(again, inputs), outputs(model, inputs))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # which PEFT asks for
def test_prefix_tuning_is_refused_in_a_sentence(tiny_bert: Callable[..., Any]) -> None:
    from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model

    inputs = text_inputs()
    settings: dict[str, Any] = {"task_type": "SEQ_CLS", "num_virtual_tokens": 3}
    base = make_collab_(tiny_bert(BertForSequenceClassification), PLANS["tucker"])
    model = get_peft_model(base, PrefixTuningConfig(**settings))
    with pytest.raises(collab_hf.CollabError, match="prefix tuning needs the original model"):
        model(**inputs)
    base = make_collab_(tiny_bert(BertForSequenceClassification), PLANS["tucker"])
    model = get_peft_model(base, PromptTuningConfig(**settings))
    assert model(**inputs).logits.shape == (len(inputs["input_ids"]), 3)


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")  # torch.ao is to move, its tensors to change
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_dynamic_int8_of_torch(tiny_bert: Callable[..., Any]) -> None:
    from torch.ao.quantization import quantize_dynamic

    model = make_collab_(tiny_bert(), PLANS["tucker"])
    inputs = text_inputs()
    expected = outputs(model, inputs)
    small = quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    change = (outputs(small, inputs) - expected).norm() / expected.norm()
    assert 1e-5 < change < 0.1


@pytest.mark.filterwarnings("ignore")  # of torchao, about kernels for other machines
@pytest.mark.parametrize("plan", PLANS)
def test_int8_of_torchao(plan: str, tiny_bert: Callable[..., Any], tmp_path: Path) -> None:
    torchao = pytest.importorskip("torchao.quantization")
    model = make_collab_(tiny_bert(), PLANS[plan])
    inputs = text_inputs()
    expected = outputs(model, inputs)
    model.save_pretrained(tmp_path / "whole")
    config = TorchAoConfig(torchao.Int8DynamicActivationInt8WeightConfig())
    small = AutoModel.from_pretrained(tmp_path / "whole", quantization_config=config)
    change = (outputs(small, inputs) - expected).norm() / expected.norm()
    assert 1e-5 < change < 0.1  # seen: 0.01 to 0.03
    small.save_pretrained(tmp_path / "small")
    again = AutoModel.from_pretrained(tmp_path / "small")
    assert type(again.get_parameter("encoder.layer.0.attention.self.query.weight")).__name__ == "Int8Tensor"
    assert torch.equal(outputs(again, inputs), outputs(small, inputs))


def test_image_models_compute_in_bfloat16(tiny_vit: Callable[..., Any]) -> None:
    model = make_collab_(tiny_vit(), PLANS["tucker"])
    inputs = image_inputs()
    expected = outputs(model, inputs)
    half = {name: value.bfloat16() for name, value in inputs.items()}
    change = (outputs(model.bfloat16(), half).float() - expected).norm() / expected.norm()
    assert change < 0.05  # 8 bits of mantissa through two layers; seen: 0.01


def test_hf_runs_the_extension(tmp_path: Path) -> None:
    """`hf collab ...` reaches hf-collab, by a manifest such as `hf extensions install` writes."""
    folder = tmp_path / ".local" / "share" / "hf" / "extensions" / "hf-collab"
    folder.mkdir(parents=True)
    script = Path(sys.executable).with_name("hf-collab")
    manifest = {
        "owner": "me",
        "repo": "hf-collab",
        "repo_id": "me/hf-collab",
        "short_name": "collab",
        "executable_path": str(script),
        "type": "python",
        "installed_at": "2026-11-21T00:00:00+00:00",
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    hf = Path(sys.executable).with_name("hf")
    environment = {**os.environ, "HOME": str(tmp_path), "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
    result = subprocess.run(
        [hf, "collab", "--version"], env=environment, capture_output=True, text=True, check=False
    )
    assert result.stdout.strip() == collab_hf.__version__, result.stderr
