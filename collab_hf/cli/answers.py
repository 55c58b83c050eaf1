"""What a command returns, and the one place that prints it."""

from __future__ import annotations

import json
import os
import sys
import warnings
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperCommand

from collab_hf.layout import table as table
from collab_hf.registration.versions import check_versions


@dataclass(frozen=True)
class Answer:
    """The result of a command.

    Attributes:
        values: for `--json`; finite numbers only.
        text: for people.
    """

    values: dict[str, Any]
    text: str


class AnsweringCommand(TyperCommand):
    """A command whose function returns an `Answer`; whatever else it prints goes to stderr."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Run the command's function and print its answer on stdout."""
        check_versions()
        with redirect_stdout(sys.stderr):
            answer: Answer = super().invoke(ctx)
        typer.echo(json.dumps(answer.values, allow_nan=False) if ctx.params["as_json"] else answer.text)
        return answer


def start_reporting() -> bool:
    """Have Auto classes know the models, and leave stderr to progress bars, warnings and errors.

    Warnings and errors are one sentence each.

    Returns:
        Whether to draw progress bars: on a terminal alone, in the libraries too.
    """
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging

    from collab_hf.registration import register

    register()
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    watched = sys.stderr.isatty()
    logging.set_verbosity_error()
    if not watched:
        logging.disable_progress_bar()
        disable_progress_bars()
        os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"  # read when datasets is imported, later
    return watched
