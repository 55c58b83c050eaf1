"""Read a Whisper model that CTranslate2 wrote (faster-whisper, say) under the names of transformers."""

import struct
from pathlib import Path

import torch
from torch import Tensor

# CTranslate2's numbers for its types, and theirs here: float32, int8, int16, int32, float16.
_TYPES = {0: torch.float32, 1: torch.int8, 2: torch.int16, 3: torch.int32, 4: torch.float16}

# Names of one stack, beginnings of each, by theirs in CTranslate2.
_NORMS = {"gamma": "weight", "beta": "bias"}
_FEED_FORWARD = {"layer_norm": "final_layer_norm", "linear_0": "fc1", "linear_1": "fc2"}


class _Reader:
    """The parts of a file, one after another."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def number(self, form: str) -> int:
        """An unsigned integer of 1 (B), 2 (H) or 4 bytes (I)."""
        (value,) = struct.unpack_from(f"<{form}", self._data, self._at)
        self._at += struct.calcsize(form)
        return int(value)

    def text(self) -> str:
        """A string with its length before it and a zero behind it."""
        return bytes(self.block(self.number("H"))).rstrip(b"\0").decode()

    def block(self, size: int) -> bytearray:
        """So many bytes."""
        self._at += size
        return bytearray(self._data[self._at - size : self._at])


def read_variables(path: Path) -> dict[str, Tensor]:
    """All variables of a model, under CTranslate2's names.

    Args:
        path: a `model.bin` of CTranslate2, binary version 6.

    Returns:
        Tensors by name.
    """
    reader = _Reader(path.read_bytes())
    reader.number("I")  # version of the format
    reader.text()  # the kind of model
    reader.number("I")  # its revision
    found = {}
    for _ in range(reader.number("I")):
        name = reader.text()
        shape = [reader.number("I") for _ in range(reader.number("B"))]
        dtype = _TYPES[reader.number("B")]
        found[name] = torch.frombuffer(reader.block(reader.number("I")), dtype=dtype).reshape(shape)
    return found


def whisper_state(path: Path) -> dict[str, Tensor]:
    """The weights of a Whisper model in float32, under the names of WhisperForConditionalGeneration.

    Args:
        path: a `model.bin` of CTranslate2.

    Returns:
        The state dict.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in read_variables(path).items():
        if not tensor.is_floating_point():  # sizes and switches, which config.json has
            continue
        stack, *inside, kind = name.split("/")
        for place, part in _places(inside, tensor.float()):
            end = _NORMS.get(kind, "weight" if kind == "encodings" else kind)
            state[f"model.{stack}.{place}.{end}"] = part
    # Keys have no bias in Whisper; joined to those of queries and values they are zeros.
    zeros = [name for name in state if name.endswith("k_proj.bias")]
    if any(bool(state.pop(name).any()) for name in zeros):
        raise ValueError(f"{path} has biases of keys, which Whisper lacks")
    return {**state, "proj_out.weight": state["model.decoder.embed_tokens.weight"]}


def _places(inside: list[str], tensor: Tensor) -> list[tuple[str, Tensor]]:
    """Where a variable belongs in its stack; several places for projections that are joined."""
    if not inside[0].startswith("layer_") or inside[0] == "layer_norm":
        names = {"embeddings": "embed_tokens", "position_encodings": "embed_positions"}
        return [(names.get(inside[0], inside[0]), tensor)]
    layer = f"layers.{inside[0].removeprefix('layer_')}"
    block, module = inside[1:]
    if block == "ffn":
        return [(f"{layer}.{_FEED_FORWARD[module]}", tensor)]
    place = "self_attn" if block == "self_attention" else "encoder_attn"
    if module == "layer_norm":
        return [(f"{layer}.{place}_layer_norm", tensor)]
    joined = {
        "self_attn": (("q_proj", "k_proj", "v_proj"), ("out_proj",)),
        "encoder_attn": (("q_proj",), ("k_proj", "v_proj"), ("out_proj",)),
    }[place][int(module.removeprefix("linear_"))]
    return [
        (f"{layer}.{place}.{name}", part)
        for name, part in zip(joined, tensor.chunk(len(joined)), strict=True)
    ]
