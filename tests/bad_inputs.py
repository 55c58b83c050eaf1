"""Ways to spoil what lies in a checkpoint: each gives a function that damages a directory."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from checkpoint_support import configure, edit
from safetensors.torch import save_file

Spoil = Callable[[Path], object]
DEEP = '{"a":' * 5000 + "1" + "}" * 5000
# Names in the tiny BERT.
LAYER = "encoder.layer.1.attention.self"
NEURONS = "encoder.layer.1"
QUERY = f"{LAYER}.query.weight"


def settings(**changes: Any) -> Spoil:
    """Other entries in config.json."""
    return lambda directory: configure(directory, **changes)


def without(name: str) -> Spoil:
    """An entry less in config.json."""

    def spoil(directory: Path) -> None:
        file = directory / "config.json"
        values = json.loads(file.read_text())
        del values[name]
        file.write_text(json.dumps(values))

    return spoil


def section(*path: str, value: Any) -> Spoil:
    """Another value somewhere in config.json's entry of ours."""

    def spoil(directory: Path) -> None:
        file = directory / "config.json"
        values = json.loads(file.read_text())
        place = values
        for name in ("collab", *path)[:-1]:
            place = place[name]
        place[("collab", *path)[-1]] = value
        file.write_text(json.dumps(values))

    return spoil


def plan(**changes: Any) -> Spoil:
    """Other ranks of one layer in config.json; None leaves an entry out."""

    def spoil(directory: Path) -> None:
        values = json.loads((directory / "config.json").read_text())
        found = {**values["collab"]["layers"][LAYER], **changes}
        section("layers", LAYER, value={n: v for n, v in found.items() if v is not None})(directory)

    return spoil


def written(name: str, content: str | bytes) -> Spoil:
    """A file of another content."""
    data = content.encode() if isinstance(content, str) else content
    return lambda directory: (directory / name).write_bytes(data)


def entries(name: str, **changes: Any) -> Spoil:
    """Other entries in some JSON file."""

    def spoil(directory: Path) -> None:
        file = directory / name
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return spoil


def header(change: Callable[[dict[str, Any]], object]) -> Spoil:
    """Another header of the weights, before the same numbers."""

    def spoil(directory: Path) -> None:
        file = directory / "model.safetensors"
        content = file.read_bytes()
        (size,) = struct.unpack("<Q", content[:8])
        values = json.loads(content[8 : 8 + size])
        change(values)
        made = json.dumps(values).encode()
        file.write_bytes(struct.pack("<Q", len(made)) + made + content[8 + size :])

    return spoil


def raw(change: Callable[[bytes], bytes]) -> Spoil:
    """Other bytes of the weights."""

    def spoil(directory: Path) -> None:
        file = directory / "model.safetensors"
        file.write_bytes(change(file.read_bytes()))

    return spoil


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    """Other weights in a sound file."""
    return lambda directory: edit(directory, change)


def filled(name: str, number: float) -> Spoil:
    """One number of a weight replaced."""
    return tensors(lambda found: found[name].view(-1)[:1].fill_(number))


def sharded(index: Any, *, second: bool = True) -> Spoil:
    """Weights in two files, with an index of one's choice beside them."""

    def spoil(directory: Path) -> None:
        found: dict[str, torch.Tensor] = {}
        edit(directory, found.update)
        (directory / "model.safetensors").unlink()
        names = sorted(found)
        parts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
        for file, own in parts.items():
            if second or file != "two.safetensors":
                save_file({name: found[name] for name in own}, directory / file, {"format": "pt"})
        sound = {name: file for file, own in parts.items() for name in own}
        made = index(sound) if callable(index) else index
        if isinstance(made, dict):
            made = {"metadata": {}, **made}
        (directory / "model.safetensors.index.json").write_text(json.dumps(made))

    return spoil
