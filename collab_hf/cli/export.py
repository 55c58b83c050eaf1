"""`collab-hf export`: a checkpoint in formats that need no collab_hf."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from collab_hf.cli import options
from collab_hf.cli.answers import Answer, start_reporting
from collab_hf.modeling.errors import ConfigError

EXAMPLE = "Example: collab-hf export bert-quarter --onnx bert-quarter.onnx --int8"


def export(
    directory: options.Directory,
    onnx: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write an ONNX graph with dynamic batch and length.")
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
    as_json: options.AsJson = False,
) -> Answer:
    """Write DIR as an ONNX graph, checked in ONNX Runtime, or as a plain transformers checkpoint."""
    if (onnx is None) == (dense is None):
        raise ConfigError("give either --onnx FILE or --dense DIR")
    if onnx is not None and onnx.exists() and not overwrite:
        raise ConfigError(f"{onnx} exists; choose another file or pass --overwrite")
    start_reporting()
    if dense is not None:
        return _dense(directory, dense, nearest, overwrite)
    from collab_hf.checkpoint.load import load_model
    from collab_hf.checkpoint.onnx import export_onnx

    # As a path: DIR is never looked up on the Hub.
    done = export_onnx(load_model(directory, dtype="float32"), Path(str(onnx)), int8=int8)
    text = (
        f"wrote {done.file} ({done.file_size / 1e6:.1f} MB): {', '.join(done.inputs)} -> "
        f"{', '.join(done.outputs)}\nlargest difference to torch in ONNX Runtime: {done.difference:.1e}"
    )
    return Answer(done.to_dict(), text)


def _dense(directory: Path, dense: Path, nearest: bool, overwrite: bool) -> Answer:
    from collab_hf.checkpoint.load import load_model
    from collab_hf.checkpoint.save import check_output, new_directory, save_checkpoint
    from collab_hf.files import CARD_FILE
    from collab_hf.hub.card import make_dense_card
    from collab_hf.surgery.dense import to_dense_

    check_output(dense, original=directory, overwrite=overwrite)
    model = to_dense_(load_model(directory), nearest=nearest)
    with new_directory(dense, overwrite=overwrite) as new:
        save_checkpoint(model, new, original=directory)
        # The card that was taken over describes the compressed form.
        make_dense_card(directory, dense.resolve().name, type(model).__name__).save(new / CARD_FILE)
    values: dict[str, Any] = {"output": str(dense), "class": type(model).__name__}
    return Answer(values, f"wrote {dense}: a plain {type(model).__name__}")
