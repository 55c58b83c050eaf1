"""Commands that are killed: the script that counts what stands afterwards runs, and sees a part."""

import subprocess
import sys
from pathlib import Path

from conftest import REPOSITORY

SCRIPT = REPOSITORY / "scripts" / "faults.py"


def test_compress_killed_at_every_rename() -> None:
    """In a process of its own, which forks."""
    command = [sys.executable, str(SCRIPT), "--moments", "0", "--only", "compress"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("| compress |")]
    kills, absent, old, new, swept, faults = map(int, row.strip("| ").split(" | ")[1:])
    assert kills == absent + old + new >= 4
    assert min(absent, old, new, swept) >= 1
    assert faults == 0


def test_a_part_of_an_output_is_seen(tmp_path: Path) -> None:
    """Negative control, in a process of its own: the script's module sets its environment up."""
    code = (
        "import sys; from pathlib import Path; from faults_models import COMMANDS, is_complete, make_models; "
        "place = make_models(Path(sys.argv[1]) / 'made') / 'small'; "
        "whole = is_complete(COMMANDS['compress'], place); (place / 'README.md').unlink(); "
        "print(whole, is_complete(COMMANDS['compress'], place))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=SCRIPT.parent)
    assert done.stdout.split()[-2:] == ["True", "False"]
