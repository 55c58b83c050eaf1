"""What a command returns, and the one place that prints it."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from logging import DEBUG, INFO, WARNING, Handler, LogRecord
from typing import Any

import typer
from tqdm import tqdm
from typer.core import TyperCommand

from collab_hf.launched import is_main_process
from collab_hf.modeling.errors import ConfigError
from collab_hf.progress import logger
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
    """A command whose function returns an `Answer`; whatever else it prints goes to stderr.

    What it says while it works follows its options quiet and verbose.
    """

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Run the command's function and print its answer on stdout."""
        level = _loudness(ctx.params["quiet"], ctx.params["verbose"])
        check_versions()
        with _said(level), redirect_stdout(sys.stderr):
            answer: Answer = super().invoke(ctx)
        if is_main_process():
            typer.echo(json.dumps(answer.values, allow_nan=False) if ctx.params["as_json"] else answer.text)
        return answer


def _loudness(quiet: bool, verbose: bool) -> int:
    """Level of the log that the options ask for."""
    if quiet and verbose:
        raise ConfigError("give --quiet or --verbose, not both")
    return WARNING if quiet or not is_main_process() else DEBUG if verbose else INFO


class _Lines(Handler):
    """Prints the log on stderr, above a progress bar if there is one."""

    def emit(self, record: LogRecord) -> None:
        """Print one line."""
        tqdm.write(self.format(record), file=sys.stderr)


@contextmanager
def _said(level: int) -> Iterator[None]:
    """Print the package's log inside the with block."""
    lines, former = _Lines(), logger.level
    logger.addHandler(lines)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(lines)
        logger.setLevel(former)


def start_reporting() -> bool:
    """Have Auto classes know the models, and leave stderr to progress bars, warnings and errors.

    Warnings and errors are one sentence each.

    Returns:
        Whether to report progress: by bars on a terminal, the libraries' too, else in lines.
    """
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging

    from collab_hf.registration import register

    register()
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    if not is_main_process():
        warnings.simplefilter("ignore")
    if not logger.isEnabledFor(DEBUG):
        logging.set_verbosity_error()
    heard = logger.isEnabledFor(INFO)
    if not heard or not sys.stderr.isatty():
        logging.disable_progress_bar()
        disable_progress_bars()
        os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"  # read when datasets is imported, later
    return heard
