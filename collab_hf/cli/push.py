"""`collab-hf push`: a compressed checkpoint goes to the Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from collab_hf.cli import options
from collab_hf.cli.answers import Answer, start_reporting
from collab_hf.modeling.errors import ConfigError

EXAMPLE = "Example: collab-hf push bert-quarter me/bert-quarter --private"


def push(
    directory: options.Directory,
    repository: Annotated[
        str, typer.Argument(metavar="ID", help="owner/name on the Hub; created if missing.")
    ],
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Make a new repository private or public.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="NAME", help="Branch to publish on; created if missing.")
    ] = None,
    message: Annotated[str | None, typer.Option(metavar="TEXT", help="Commit message.")] = None,
    evaluation: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Output of `evaluate --json`, for the card.")
    ] = None,
    bench: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Output of `bench --json`, for the card.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Output of `export --json`, for the card.")
    ] = None,
    base_model: options.BaseModel = None,
    token: options.Token = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    as_json: options.AsJson = False,
) -> Answer:
    """Publish DIR on the Hub, in one commit: weights, tokenizer, recipe, code and model card.

    The token comes from HF_TOKEN or from `hf auth login`. If the connection is lost, run the same command
    again: it continues. Nothing is visible before everything is.
    """
    from collab_hf.hub.publish import push as publish

    measured = [_json(file) for file in (evaluation, bench, export)]
    start_reporting()
    url = publish(
        directory,
        repository,
        private=private,
        revision=revision,
        message=message,
        token=token,
        evaluation=measured[0],
        bench=measured[1],
        export=measured[2],
        base_model=base_model,
    )
    return Answer(
        {"repository": repository, "revision": revision or "main", "commit": url}, f"published {url}"
    )


def _json(file: Path | None) -> dict[str, Any] | None:
    """A JSON object that a command printed into a file."""
    if file is None:
        return None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{file} must hold one JSON object, got a {type(values).__name__}")
    return values
