"""The command line: `collab-hf compress | heal | verify | evaluate | bench | export | push`.

Exit codes: 0 done, 2 bad usage or input, 1 anything else. Only this package prints. A command
imports what it needs when it runs, so that help appears at once.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from typing import Annotated

import typer

from collab_hf.cli import bench, compress, evaluate, export, families, heal, inspect, push, verify
from collab_hf.cli import heads as heads_commands
from collab_hf.cli.answers import AnsweringCommand
from collab_hf.errors import HubError
from collab_hf.launched import is_main_process
from collab_hf.modeling.errors import CollabError

_INTERRUPTED = "interrupted"

# Seconds that another process than the main one leaves to that: more than a slow start of it takes.
_SILENCE = 30.0

app = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Make pretrained Transformers smaller, and check the result.",
    epilog="Example: collab-hf compress bert-base-uncased -o bert-quarter --budget 0.25",
)
app.command(cls=AnsweringCommand, epilog=compress.EXAMPLE)(compress.compress)
app.command(cls=AnsweringCommand, epilog=heal.EXAMPLE)(heal.heal)
app.command(cls=AnsweringCommand, epilog=families.EXAMPLE)(families.families)
app.command(cls=AnsweringCommand, epilog=inspect.EXAMPLE)(inspect.inspect)
app.command(cls=AnsweringCommand, epilog=verify.EXAMPLE)(verify.verify)
app.command(cls=AnsweringCommand, epilog=evaluate.EXAMPLE)(evaluate.evaluate)
app.command(cls=AnsweringCommand, epilog=bench.EXAMPLE)(bench.bench)
app.command(cls=AnsweringCommand, epilog=export.EXAMPLE)(export.export)
app.command(cls=AnsweringCommand, epilog=push.EXAMPLE)(push.push)

app.add_typer(heads_commands.app, name="heads")

# What typer raises for arguments that it can't parse: BadParameter's ancestor, which it does not export.
_UNUSABLE_ARGUMENTS: type[Exception] = next(
    ancestor for ancestor in typer.BadParameter.__mro__ if ancestor.__name__ == "ClickException"
)


@app.callback(invoke_without_command=True)
def _start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        from collab_hf import __version__

        typer.echo(__version__)
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the words after `collab-hf`; None for those of the process.

    Returns:
        The exit code. What is neither the user's mistake nor an interruption is raised.
    """
    try:
        result = app(arguments, prog_name="collab-hf", standalone_mode=False)
    except HubError as error:
        return _fail(str(error), 1)
    except CollabError as error:
        return _fail(str(error), 2)
    except _UNUSABLE_ARGUMENTS as error:
        message = " ".join(error.format_message().split())  # type: ignore[attr-defined]
        return _fail(message, 2)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(_INTERRUPTED, 1)
    except OSError as error:
        if error.strerror is None:
            raise
        where = "" if error.filename is None else f" ({error.filename})"
        return _fail(f"{error.strerror}{where}", 1)
    # An exit code comes back where typer itself ended the run: 0 after help, 130 when interrupted.
    return _fail(_INTERRUPTED, 1) if isinstance(result, int) and result else 0


def main() -> None:
    """The console script; SIGTERM and SIGHUP end it as Ctrl-C does, so that nothing half-written stays."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        # What started us may have chosen to ignore it, as nohup does.
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    sys.exit(run())


def _fail(message: str, code: int) -> int:
    """Say what went wrong, once for all processes of a run.

    The main process says it and ends, and the launcher then stops the others. What another process still has
    to say after that time went wrong there alone.
    """
    if not is_main_process():
        if message == _INTERRUPTED:
            return code
        try:
            time.sleep(_SILENCE)
        except KeyboardInterrupt:
            return code
    typer.echo(f"error: {message}", err=True)
    return code
