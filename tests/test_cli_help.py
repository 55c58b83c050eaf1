"""Help comes at once, says how, and errors of usage are one sentence."""

import json
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


BAD_USAGE = [
    ["compress", "m", "-o", "{there}"],
    ["compress", "m", "-o", "out", "--budget", "2"],
    ["compress", "m", "-o", "out", "--budget", "nan"],
    ["compress", "m", "-o", "out", "--target-params", "0"],
    *(["compress", "m", "-o", "out", "--max-loss", value] for value in ("nan", "inf", "0", "-1")),
    ["compress", "m", "-o", "out", "--max-loss", "0.1", "--calibration", "none"],
    ["compress", "m", "-o", "out", "--flops", "0.5", "--calibration", "none"],
    *(["compress", "m", "-o", "out", "--seed", value] for value in (str(2**63), "-1")),
    *(["compress", "m", "-o", "out", "--speedup", value] for value in ("nan", "inf", "1")),
    *(["compress", "m", "-o", "out", "--flops", value] for value in ("0", "1.5", "nan")),
    *(["compress", "m", "-o", "out", "--size", value] for value in ("0MB", "nan", "-1MB")),
    ["compress", "m", "-o", "out", "--params", "-1"],
    *(["compress", "m", "-o", "out", "--heal-minutes", value] for value in ("inf", "nan", "0")),
    ["compress", "m", "-o", "out", "--heal-steps", "5", "--heal-minutes", "1"],
    ["compress", "m", "-o", "out", "--flops", "0.5", "--length", "0"],
    ["compress", "m", "-o", "out", "--speedup", "2", "--batch-size", "0"],
    *(["compress", "m", "-o", "out", "--target-flops", value] for value in ("128:nan", "0:0.5", "128:2")),
    ["compress", "m", "-o", "out", "--method", "cp", "--rank", "0"],
    ["compress", "m", "-o", "out", "--reconstruct-steps", "-1"],
    ["compress", "m", "-o", "out", "--calibration-examples", "0"],
    ["compress", "m", "-o", "out", "--attention", "sideways"],
    ["compress", "m", "-o", "out", "--flops", "0.5", "--parts", "tail"],
    ["compress", "m", "-o", "out", "--push-to-hub", "no name!"],
    ["compress", "m", "-o", "out", "--quiet", "--verbose"],
    ["heal", "m", "-o", "{there}", "--data", "default"],
    *(["heal", "m", "-o", "out", "--data", "default", "--minutes", value] for value in ("nan", "0")),
    ["heal", "m", "-o", "out", "--data", "default", "--lr", "nan"],
    ["heal", "m", "-o", "out", "--data", "default", "--seed", str(2**64)],
    *(["heads", "prune", "m", "-o", "out", "--share", value] for value in ("1.5", "0", "nan", "-1")),
    ["heads", "prune", "m", "-o", "{there}", "--share", "0.5"],
    ["heads", "prune", "m", "-o", "out", "--share", "0.5", "--attention", "sideways"],
    ["heads", "score", "m", "--seed", str(2**64)],
    ["heads", "ablate", "m", "--task", "stsb"],
    ["heads", "ablate", "m", "--task", "agreement", "--tolerance", "nan"],
    ["evaluate", "m", "--task", "stsb"],
    ["bench", "m", "--against", "n", "--lengths", "0"],
    ["bench", "m", "--against", "n", "--dtype", "int3"],
    ["bench", "m", "--against", "n", "--seconds", "nan"],
    ["inspect", "m", "--html", "{there}"],
    ["export", "m", "--dense", "{there}"],
    ["export", "m", "--onnx", "{there}"],
]


def test_bad_usage_is_refused_before_torch_and_transformers_are_imported(tmp_path: Path) -> None:
    """Each in one sentence, and nothing is written; which modules were imported is asked of one process."""
    there = tmp_path / "there"
    there.mkdir()
    (there / "config.json").write_text("{}")
    code = (
        "import json, sys, collab_hf_command\n"
        "from collab_hf.cli import run\n"
        "print(json.dumps([\n"
        "    [run(words), sorted({'torch', 'transformers'} & set(sys.modules))]\n"
        "    for words in json.loads(sys.argv[1])\n"
        "]))\n"
    )
    words = [[word.format(there=there) for word in usage] for usage in BAD_USAGE]
    command = [sys.executable, "-c", code, json.dumps(words)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    answers = json.loads(result.stdout)
    assert [usage for usage, answer in zip(words, answers, strict=True) if answer != [2, []]] == []
    complaints = result.stderr.splitlines()
    assert len(complaints) == len(words)
    assert all(line.startswith("error: ") for line in complaints)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_the_console_script_runs() -> None:
    script = Path(sys.executable).with_name("collab-hf")
    result = subprocess.run([script, "--help"], capture_output=True, text=True, check=True)
    assert all(command in result.stdout for command in COMMANDS)
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("collab-hf comp", "compress"),
        ("collab-hf evaluate m --task re", "retrieval"),
        ("collab-hf heads a", "ablate"),
    ],
)
def test_shells_complete_commands_options_and_values(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, offered: str
) -> None:
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    monkeypatch.setenv("_COLLAB_HF_COMPLETE", "complete_bash")
    with pytest.raises(SystemExit) as end:
        cli.run([])
    assert (end.value.code, capsys.readouterr().out.strip()) == (0, offered)


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
