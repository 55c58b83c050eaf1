"""scripts/ctranslate2_weights.py: what a file of CTranslate2 holds, under the names of transformers."""

import struct
from pathlib import Path

import pytest
import torch
from family_models import build
from torch import Tensor

from ctranslate2_weights import whisper_state

# Names of one layer in CTranslate2, by those that make them up in transformers.
PLACES = {
    "self_attention/layer_norm": ("self_attn_layer_norm",),
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "attention/layer_norm": ("encoder_attn_layer_norm",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "ffn/layer_norm": ("final_layer_norm",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
}


def variables(state: dict[str, Tensor], key_bias: float) -> dict[str, Tensor]:
    """A Whisper model's weights as CTranslate2 lays them out."""
    found: dict[str, Tensor] = {"encoder/num_heads": torch.tensor(3, dtype=torch.int16)}
    for stack in ("encoder", "decoder"):
        for layer in range(2):
            for place, names in PLACES.items():
                if stack == "encoder" and place.startswith("attention"):
                    continue
                parts = [f"model.{stack}.layers.{layer}.{name}" for name in names]
                norm = place.endswith("norm")
                weight = torch.cat([state[f"{part}.weight"] for part in parts])
                rows = [len(state[f"{part}.weight"]) for part in parts]
                biases = [
                    state.get(f"{part}.bias", torch.full((n,), key_bias))
                    for part, n in zip(parts, rows, strict=True)
                ]
                at = f"{stack}/layer_{layer}/{place}"
                found[f"{at}/{'gamma' if norm else 'weight'}"] = weight
                found[f"{at}/{'beta' if norm else 'bias'}"] = torch.cat(biases)
        found[f"{stack}/position_encodings/encodings"] = state[f"model.{stack}.embed_positions.weight"]
        for old, new in (("weight", "gamma"), ("bias", "beta")):
            found[f"{stack}/layer_norm/{new}"] = state[f"model.{stack}.layer_norm.{old}"]
    for conv in ("conv1", "conv2"):
        for kind in ("weight", "bias"):
            found[f"encoder/{conv}/{kind}"] = state[f"model.encoder.{conv}.{kind}"]
    found["decoder/embeddings/weight"] = state["model.decoder.embed_tokens.weight"]
    return found


def write(path: Path, tensors: dict[str, Tensor]) -> Path:
    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    packed = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(tensors))
    for name, tensor in tensors.items():
        kind = 0 if tensor.is_floating_point() else 2
        data = tensor.contiguous().numpy().tobytes()
        packed += text(name) + struct.pack(f"<B{tensor.dim()}I", tensor.dim(), *tensor.shape)
        packed += struct.pack("<BI", kind, len(data)) + data
    path.write_bytes(packed + struct.pack("<I", 0))
    return path


def test_every_weight_is_in_its_place(tmp_path: Path) -> None:
    state = {name: tensor.detach() for name, tensor in build("whisper").state_dict().items()}
    found = whisper_state(write(tmp_path / "model.bin", variables(state, key_bias=0.0)))
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    with pytest.raises(ValueError, match="has biases of keys, which Whisper lacks"):
        whisper_state(write(tmp_path / "other.bin", variables(state, key_bias=0.5)))
