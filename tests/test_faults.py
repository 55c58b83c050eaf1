"""Commands that are killed: the script that counts what stands afterwards runs, and sees a part."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

SCRIPT = REPOSITORY / "scripts" / "faults.py"


@pytest.mark.parametrize("name", ["compress", "push"])
def test_killed_at_every_step(name: str) -> None:
    """In a process of its own, which forks."""
    command = [sys.executable, str(SCRIPT), "--moments", "0", "--only", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = [line for line in done.stdout.splitlines() if line.startswith(f"| {name} |")]
    kills, absent, old, new, swept, faults = map(int, row.strip("| ").split(" | ")[1:])
    assert kills == absent + old + new >= 6
    assert min(absent, old) >= 1
    assert new == 2  # after the last step, over nothing and over an old output
    assert (swept >= 1) is (name == "compress")  # a push writes nothing here
    assert faults == 0


@pytest.mark.parametrize("spoil", ["pop('README.md')", "update({'model-2.safetensors': b'stale'})"])
def test_a_part_of_a_push_is_seen(tmp_path: Path, spoil: str) -> None:
    """Negative control: a repository with half of a commit."""
    code = (
        "import sys; from pathlib import Path; from faults_models import COMMANDS, make_models; "
        "from faults_place import HubPlace; made = make_models(Path(sys.argv[1]) / 'made'); "
        "place = HubPlace(made, COMMANDS['push'], Path(sys.argv[1]) / 'place'); place.make_old(old=False); "
        "seen = [place.state(None)]; code = place.run(); seen += [code, place.state(None)]; "
        "import faults_place; "
        f"faults_place._hub().repositories['me/model'].branches['main'].{spoil}; "
        "print(*seen, place.state(None), sep=',')"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=SCRIPT.parent)
    assert done.stdout.splitlines()[-1] == "absent,0,new,a part"


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
