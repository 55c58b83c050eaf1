"""Help comes at once, says how, and errors of usage are one sentence."""

import subprocess
import sys
from pathlib import Path

import pytest
from cli_support import CommandLine

from collab_hf import __version__, cli

COMMANDS = ("compress", "verify", "evaluate", "export", "push")


def test_help_and_wrong_usage_do_not_wait_for_torch_or_transformers() -> None:
    """What makes it slow is imports; time itself is not measured, machines differ."""
    code = (
        "import sys, collab_hf_command\n"
        "from collab_hf.cli import run\n"
        "assert run(['--help']) == 0\n"
        "assert run(['compress', '--help']) == 0\n"
        "heavy = {'torch', 'transformers', 'numpy', 'rich'}\n"
        "assert 'yaml' not in sys.modules\n"
        "assert run(['compress', 'model']) == 2\n"
        "assert run(['compress', 'model', '-o', 'out', '--method', 'magic']) == 2\n"
        "assert run(['export', 'model']) == 2\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_the_console_script_runs() -> None:
    script = Path(sys.executable).with_name("collab-hf")
    result = subprocess.run([script, "--help"], capture_output=True, text=True, check=True)
    assert all(command in result.stdout for command in COMMANDS)
    assert result.stderr == ""


def test_a_plain_import_still_registers() -> None:
    """Negative control of the two above: only the command puts it off, not what is called like it."""
    code = (
        "import sys; sys.argv = ['/usr/bin/collab-hf', '--help']\n"
        "import collab_hf\n"
        "from transformers import CONFIG_MAPPING\n"
        "print('collab_bert' in CONFIG_MAPPING)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "True"


def test_the_command_registers_when_it_starts_to_work() -> None:
    code = (
        "import sys, collab_hf_command\n"
        "from collab_hf.cli.answers import start_reporting\n"
        "assert 'transformers' not in sys.modules\n"
        "start_reporting()\n"
        "from transformers import CONFIG_MAPPING\n"
        "print('collab_bert' in CONFIG_MAPPING)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "True"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_an_example(collab_hf: CommandLine, command: str) -> None:
    result = collab_hf(command, "--help")
    assert result.code == 0
    assert f"Example: collab-hf {command}" in " ".join(result.out.split())
    assert "--json" in result.out
    assert result.err == ""


def test_nothing_asked_shows_the_help(collab_hf: CommandLine) -> None:
    assert collab_hf().out == collab_hf("--help").out
    assert collab_hf("--version").out.strip() == __version__


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shrink"], "No such command 'shrink'"),
        (["compress"], "Missing argument"),
        (["compress", "model"], "Missing option '--output' / '-o'"),
        (["compress", "model", "-o", "out", "--rank", "many"], "Invalid value for '--rank'"),
        (
            ["compress", "model", "-o", "out", "--method", "magic"],
            "method must be one of auto, cp, tucker, svd, copy, got 'magic'",
        ),
        (["compress", "model", "-o", "out", "--quick"], "No such option"),
        (["evaluate", "model"], "Missing option '--task'"),
    ],
)
def test_wrong_usage_is_one_sentence(collab_hf: CommandLine, arguments: list[str], message: str) -> None:
    assert message in collab_hf(*arguments).complaint


def test_an_interruption_is_no_success(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("collab_hf.recipe.Recipe.from_dict", interrupt)
    assert cli.run(["compress", "model", "-o", "out"]) == 1
    assert capsys.readouterr().err == "error: interrupted\n"


def test_an_unforeseen_error_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug must not look like the user's mistake."""

    def fail(*args: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("collab_hf.recipe.Recipe.from_dict", fail)
    with pytest.raises(ZeroDivisionError):
        cli.run(["compress", "model", "-o", "out"])
