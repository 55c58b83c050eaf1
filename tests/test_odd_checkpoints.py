"""Checkpoints as people have them: each works, or ends in one sentence before the long work."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_support import VOCABULARY, CommandLine, save_with_image_processor, save_with_tokenizer
from conftest import TINY_IMAGE
from PIL import Image
from transformers import (
    AutoModelForMultipleChoice,
    AutoTokenizer,
    BertForMultipleChoice,
    Dinov2Backbone,
    Dinov2Config,
    RobertaConfig,
    RobertaModel,
    ViTConfig,
    ViTModel,
)

from collab_hf import load_model
from collab_hf.checkpoint.fresh_load import run_batches

RANK = ["--method", "cp", "--rank", 6, "--reconstruct-steps", 2]


@pytest.fixture
def odd(model: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of a tiny BERT's checkpoint, with other settings in its config.json."""

    def make(**settings: Any) -> Path:
        directory = shutil.copytree(model, tmp_path / "odd")
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps({**config, **settings}))
        return directory

    return make


def photographs(folder: Path, sizes: list[tuple[int, int]]) -> Path:
    folder.mkdir()
    random = np.random.default_rng(0)
    for number, (width, height) in enumerate(sizes):
        pixels = random.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_a_config_that_asks_for_attention_maps_goes_through_recovery(
    collab_hf: CommandLine, odd: Callable[..., Path], text: Path, tmp_path: Path
) -> None:
    """Maps come out unasked, of fewer heads than the teacher's: the loss must leave them alone."""
    source, out = odd(output_attentions=True), tmp_path / "out"
    target = ["--params", 0.7, "--parts", "heads,feed_forward", "--calibration", text, "--heal-steps", 1]
    assert collab_hf("compress", source, "-o", out, *target).code == 0
    config = json.loads((out / "config.json").read_text())
    assert config["output_attentions"]
    assert config["collab"]["heads"]


def test_a_config_that_asks_for_tuples(
    collab_hf: CommandLine, odd: Callable[..., Path], text: Path, tmp_path: Path
) -> None:
    source, out = odd(return_dict=False), tmp_path / "out"
    assert collab_hf("compress", source, "-o", out, *RANK, "--calibration", text).code == 0
    done = collab_hf("export", out, "--onnx", tmp_path / "model.onnx", "--json")
    assert "last_hidden_state" in done.values["outputs"]
    measured = collab_hf(
        "evaluate", out, "--task", "agreement", "--against", source, "--data", text, "--json"
    )
    assert 0.9 < measured.values["mean_cosine"] < 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "is quantised (bitsandbytes); give the"),
        ({"intermediate_size": 64}, "intermediate.dense.bias of"),
    ],
)
def test_what_cannot_be_loaded_is_said(
    collab_hf: CommandLine, odd: Callable[..., Path], tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    result = collab_hf("compress", odd(**settings), "-o", tmp_path / "out", *RANK)
    assert message in result.complaint


def test_weights_that_git_lfs_did_not_fetch(
    collab_hf: CommandLine, odd: Callable[..., Path], tmp_path: Path
) -> None:
    source = odd()
    (source / "model.safetensors").unlink()
    (source / "pytorch_model.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    refused = collab_hf("compress", source, "-o", tmp_path / "out", *RANK).complaint
    assert "pytorch_model.bin is a pointer of Git LFS" in refused


def test_tokenizers_that_cannot_be_read(
    collab_hf: CommandLine, odd: Callable[..., Path], tmp_path: Path
) -> None:
    source = odd()
    whole = (source / "tokenizer.json").read_text()
    (source / "tokenizer.json").write_text(whole[: len(whole) // 2])
    refused = collab_hf("compress", source, "-o", tmp_path / "out", *RANK).complaint
    assert "tokenizer.json can't be read" in refused

    (source / "tokenizer.json").unlink()
    settings = {"tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "mecab"}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    (source / "vocab.txt").write_text("\n".join(VOCABULARY))
    refused = collab_hf("compress", source, "-o", tmp_path / "out", *RANK).complaint
    assert "You need to install fugashi" in refused


def test_a_model_without_tokenizer_of_a_known_family(collab_hf: CommandLine, tmp_path: Path) -> None:
    """Its family is no reason to refuse it."""
    config = RobertaConfig(
        hidden_size=24,
        num_attention_heads=3,
        num_hidden_layers=1,
        intermediate_size=24,
        vocab_size=40,
        max_position_embeddings=20,
    )
    RobertaModel(config).save_pretrained(tmp_path / "bare")
    refused = collab_hf("compress", tmp_path / "bare", "-o", tmp_path / "out", *RANK).complaint
    assert "has no tokenizer or image processor to prepare data with; add its files" in refused


def test_a_name_that_is_no_directory_is_not_looked_up(collab_hf: CommandLine, tmp_path: Path) -> None:
    for name in ("nowhere", "./nowhere", tmp_path / "nowhere"):
        assert "nowhere is not a directory" in collab_hf("verify", name).complaint


def test_a_readme_in_another_encoding(
    collab_hf: CommandLine, odd: Callable[..., Path], text: Path, tmp_path: Path
) -> None:
    source, out = odd(), tmp_path / "out"
    (source / "README.md").write_bytes("---\nlicense: mit\n---\nGrüße\n".encode("latin-1"))
    assert collab_hf("compress", source, "-o", out, *RANK, "--calibration", text).code == 0
    assert "license: mit" in (out / "README.md").read_text(encoding="utf-8")


def test_a_multiple_choice_model(
    collab_hf: CommandLine, tiny_bert: Callable[..., Any], text: Path, tmp_path: Path
) -> None:
    """Each text is a question with one choice; at full rank nothing changes, for questions of several too."""
    source = save_with_tokenizer(
        tiny_bert(BertForMultipleChoice, vocab_size=len(VOCABULARY)), tmp_path / "source"
    )
    out = tmp_path / "out"
    full = ["--method", "cp", "--rank", 24, "--reconstruct-steps", 0]
    assert collab_hf("compress", source, "-o", out, *full, "--calibration", text).code == 0
    inputs = AutoTokenizer.from_pretrained(source)(["rain", "dogs bark"], padding=True, return_tensors="pt")
    question = {name: value.unsqueeze(0) for name, value in inputs.items()}
    with torch.no_grad():
        new, old = (
            AutoModelForMultipleChoice.from_pretrained(place)(**question).logits for place in (out, source)
        )
    assert new.shape == (1, 2)
    torch.testing.assert_close(new, old, atol=1e-5, rtol=1e-5)

    small = tmp_path / "small"
    auto = ["--params", 0.8, "--parts", "heads", "--calibration", text, "--heal-steps", 2]
    assert collab_hf("compress", source, "-o", small, *auto).code == 0
    measured = collab_hf(
        "evaluate", small, "--task", "agreement", "--against", source, "--data", text, "--json"
    )
    assert 0.5 < measured.values["mean_cosine"] < 1


def test_images_of_several_sizes_that_nothing_resizes(collab_hf: CommandLine, tmp_path: Path) -> None:
    source = save_with_image_processor(ViTModel(ViTConfig(**TINY_IMAGE)), tmp_path / "source")
    processor = json.loads((source / "preprocessor_config.json").read_text())
    (source / "preprocessor_config.json").write_text(json.dumps({**processor, "do_resize": False}))
    mixed = photographs(tmp_path / "mixed", [(16, 16), (20, 16)])
    refused = collab_hf("compress", source, "-o", tmp_path / "out", *RANK, "--calibration", mixed).complaint
    assert "they differ, such as 16x16 and 20x16; give images of one size" in refused
    even = photographs(tmp_path / "even", [(16, 16)] * 2)
    assert collab_hf("compress", source, "-o", tmp_path / "out", *RANK, "--calibration", even).code == 0


def test_an_image_model_of_one_channel(collab_hf: CommandLine, tmp_path: Path) -> None:
    model = ViTModel(ViTConfig(**{**TINY_IMAGE, "num_channels": 1}))
    source = save_with_image_processor(model, tmp_path / "source")
    photos = photographs(tmp_path / "photos", [(16, 16)] * 2)
    refused = collab_hf("compress", source, "-o", tmp_path / "out", *RANK, "--calibration", photos).complaint
    assert "ViTModel refused calibration batch 1" in refused
    assert "Expected 1 but got 3" in refused
    assert collab_hf("compress", source, "-o", tmp_path / "out", *RANK, "--calibration", "none").code == 0


def test_a_backbone(collab_hf: CommandLine, tmp_path: Path) -> None:
    model = Dinov2Backbone(Dinov2Config(**TINY_IMAGE, out_features=["stage1", "stage2"]))
    source = save_with_image_processor(model, tmp_path / "source")
    photos = photographs(tmp_path / "photos", [(16, 16)] * 2)
    out = tmp_path / "out"
    assert collab_hf("compress", source, "-o", out, *RANK, "--calibration", photos).code == 0
    small = load_model(out)
    pixels = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        maps = small(pixels).feature_maps
    assert len(maps) == 2
    # What `verify` compares is the last one.
    found = run_batches(small, {"0.pixel_values": pixels})["0"]
    torch.testing.assert_close(found, maps[-1])
    refused = collab_hf("export", out, "--onnx", tmp_path / "graph.onnx").complaint
    assert "gives no tensors, only feature_maps" in refused
    compare = ["--task", "agreement", "--against", source, "--data", photos]
    assert "gives no hidden states to compare" in collab_hf("evaluate", out, *compare).complaint
