"""`collab-hf export`: a checkpoint in formats that need no collab_hf."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from collab_hf.cli import options
from collab_hf.cli.answers import Answer, start_reporting
from collab_hf.cli.closeness import closeness
from collab_hf.hub.source import Loading
from collab_hf.modeling.errors import ConfigError

if TYPE_CHECKING:
    from collab_hf.checkpoint.onnx import OnnxExport

EXAMPLE = "Example: collab-hf export bert-quarter --onnx bert-quarter.onnx --int8"


def export(
    directory: options.Directory,
    onnx: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.onnx|DIR",
            help="Write an ONNX graph with dynamic batch and length: a file, or a directory with config and "
            "tokenizer that optimum and sentence-transformers open.",
        ),
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="With --onnx: store the weights in 8 bits.")] = False,
    dense: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the same model in the original's own class and size."),
    ] = None,
    nearest: Annotated[
        bool,
        typer.Option("--nearest", help="With --dense: approximate scores that do not fit a dense head."),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing FILE or DIR.")] = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    as_json: options.AsJson = False,
) -> Answer:
    """Write DIR as an ONNX graph, checked in ONNX Runtime, or as a plain transformers checkpoint."""
    if (onnx is None) == (dense is None):
        raise ConfigError("give either --onnx FILE or --dense DIR")
    from collab_hf.checkpoint.atomic import check_output

    as_file = onnx is not None and onnx.suffix == ".onnx"
    if onnx is not None and as_file and onnx.exists() and not (overwrite and onnx.is_file()):
        raise ConfigError(f"{onnx} exists; choose another file{_or_overwrite(onnx)}")
    if not as_file:
        check_output(Path(str(dense or onnx)), original=directory, overwrite=overwrite)
    start_reporting()
    if dense is not None:
        return _dense(directory, dense, nearest, overwrite)
    done = _onnx(directory, Path(str(onnx)), as_file, int8, overwrite)
    text = (
        f"wrote {done.file} ({done.file_size / 1e6:.1f} MB): {', '.join(done.inputs)} -> "
        f"{', '.join(done.outputs)}\nlargest difference to torch in ONNX Runtime: {done.difference:.1e} "
        f"of the largest value, cosine {done.cosine:.4f}: {closeness(done.cosine)}"
    )
    return Answer(done.to_dict(), text)


def _or_overwrite(file: Path) -> str:
    return " or pass --overwrite" if file.is_file() else ""


def _onnx(directory: Path, onnx: Path, as_file: bool, int8: bool, overwrite: bool) -> OnnxExport:
    from collab_hf.checkpoint.onnx import export_onnx
    from collab_hf.checkpoint.onnx_directory import write_onnx_directory
    from collab_hf.checkpoint.save import new_directory
    from collab_hf.files import CARD_FILE, ONNX_GRAPH
    from collab_hf.hub.card import make_onnx_card

    # As a path: DIR is never looked up on the Hub.
    model = Loading(dtype="float32", device="cpu").model(directory)
    if as_file:
        return export_onnx(model, onnx, int8=int8)
    with new_directory(onnx, overwrite=overwrite) as new:
        done = write_onnx_directory(model, new, original=directory, int8=int8)
        host = type(model).__name__.removeprefix("Collab")
        make_onnx_card(directory, onnx.resolve().name, host).save(new / CARD_FILE)
    return replace(done, file=onnx / ONNX_GRAPH)


def _dense(directory: Path, dense: Path, nearest: bool, overwrite: bool) -> Answer:
    from collab_hf.checkpoint.save import new_directory, save_checkpoint
    from collab_hf.files import CARD_FILE
    from collab_hf.hub.card import make_dense_card
    from collab_hf.surgery.dense import to_dense_

    model = to_dense_(Loading(device="cpu").model(directory), nearest=nearest)
    with new_directory(dense, overwrite=overwrite) as new:
        save_checkpoint(model, new, original=directory)
        # The card that was taken over describes the compressed form.
        make_dense_card(directory, dense.resolve().name, type(model).__name__).save(new / CARD_FILE)
    values: dict[str, Any] = {"output": str(dense), "class": type(model).__name__}
    return Answer(values, f"wrote {dense}: a plain {type(model).__name__}")
