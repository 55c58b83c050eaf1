"""Models made of others: names are relative to each, both ways of loading work, and they generate."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, TINY_IMAGE, build_tiny
from transformers import (
    BertConfig,
    DPRConfig,
    DPRContextEncoder,
    DPRQuestionEncoder,
    DPRReader,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)

from collab_hf import compress_, load_model
from collab_hf.checkpoint.verification import verify_checkpoint

TEXT = {**TINY, "vocab_size": 50, "max_position_embeddings": 40}
SETTINGS: dict[str, Any] = {"method": "tucker", "budget": 0.5, "reconstruct_steps": 2}
WHOLE: dict[str, Any] = {"params": 0.8, "reconstruct_steps": 2}


def made_of(encoder: Any, composite: Any, config: Any) -> Any:
    decoder = BertConfig(**TEXT, is_decoder=True, add_cross_attention=True)
    settings = config.from_encoder_decoder_configs(encoder, decoder)
    settings.decoder_start_token_id, settings.pad_token_id, settings.eos_token_id = 1, 0, 2
    return build_tiny(composite, settings)


@pytest.fixture(params=["text", "image"])
def composite(request: pytest.FixtureRequest) -> tuple[Any, dict[str, Any]]:
    """A model of two, and its inputs."""
    words = {"decoder_input_ids": torch.randint(5, 50, (8, 6))}
    if request.param == "text":
        model = made_of(BertConfig(**TEXT), EncoderDecoderModel, EncoderDecoderConfig)
        return model, {"input_ids": torch.randint(5, 50, (8, 9)), **words}
    model = made_of(ViTConfig(**TINY_IMAGE), VisionEncoderDecoderModel, VisionEncoderDecoderConfig)
    return model, {"pixel_values": torch.randn(8, 3, 16, 16), **words}


@pytest.mark.parametrize("settings", [SETTINGS, WHOLE], ids=["query_key", "whole"])
def test_a_model_of_two(composite: Any, settings: Any, tmp_path: Path) -> None:
    model, inputs = composite
    report = compress_(model, settings, [inputs])
    assert {layer.name.partition(".")[0] for layer in report.layers} == {"encoder", "decoder"}
    with torch.no_grad():
        expected = model(**inputs).logits
    model.save_pretrained(tmp_path)
    source = {name: value for name, value in inputs.items() if name != "decoder_input_ids"}
    words = model.generate(**source, max_new_tokens=5, do_sample=False)
    for again in (load_model(tmp_path), type(model).from_pretrained(tmp_path)):
        with torch.no_grad():
            assert torch.equal(again(**inputs).logits, expected)
        assert torch.equal(again.generate(**source, max_new_tokens=5, do_sample=False), words)


@pytest.mark.parametrize("kind", [DPRQuestionEncoder, DPRContextEncoder, DPRReader])
def test_a_model_inside_of_an_encoder(kind: Any, tmp_path: Path) -> None:
    model = build_tiny(kind, DPRConfig(**TEXT))
    inputs = {"input_ids": torch.randint(5, 50, (8, 9))}
    compress_(model, SETTINGS, [inputs])
    with torch.no_grad():
        expected = model(**inputs)[0]
    model.save_pretrained(tmp_path)
    for again in (load_model(tmp_path), type(model).from_pretrained(tmp_path)):
        with torch.no_grad():
            assert torch.equal(again(**inputs)[0], expected)


def test_a_model_of_two_without_the_package(tmp_path: Path) -> None:
    model = made_of(BertConfig(**TEXT), EncoderDecoderModel, EncoderDecoderConfig)
    inputs = {"input_ids": torch.randint(5, 50, (8, 9)), "decoder_input_ids": torch.randint(5, 50, (8, 6))}
    compress_(model, SETTINGS, [inputs])
    model.save_pretrained(tmp_path)
    assert verify_checkpoint(tmp_path, [inputs]).layers
