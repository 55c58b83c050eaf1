"""Whatever is wrong with what a user gives: one sentence says so, nothing is written, nothing is changed."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bad_input_cases import CONFIG, IMAGES, PROCESSORS, WEIGHTS, Case
from bad_small_cases import HEAL, PUSH, SECTION
from cli_support import (
    SENTENCES,
    VOCABULARY,
    CommandLine,
    save_with_image_processor,
    save_with_tokenizer,
    write_lines,
)
from transformers import ViTModel

from collab_hf import cli

RANK = ["--method", "tucker", "--rank", 6, "--reconstruct-steps", 0]


@pytest.fixture(scope="session")
def kept(tiny_bert: Any, tiny_vit: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound checkpoints, to be copied."""
    place = tmp_path_factory.mktemp("sound")
    dense = save_with_tokenizer(tiny_bert(vocab_size=len(VOCABULARY)), place / "dense")
    save_with_image_processor(tiny_vit(ViTModel), place / "images")
    command = ["compress", dense, "-o", place / "small", *RANK, "--calibration", "none", "--quiet"]
    assert cli.run([str(word) for word in command]) == 0
    return place


@pytest.fixture
def refused(kept: Path, tmp_path: Path, collab_hf: CommandLine) -> Callable[..., str]:
    """Spoil a copy of a checkpoint, run a command on it, and give what it complains of."""

    def run(name: str, spoil: Callable[[Path], object], *command: object) -> str:
        directory = shutil.copytree(kept / name, tmp_path / "model")
        spoil(directory)
        write_lines(tmp_path / "text.txt", SENTENCES)
        before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
        words = [
            {
                "MODEL": directory,
                "DENSE": kept / "dense",
                "OUT": tmp_path / "out",
                "TEXT": tmp_path / "text.txt",
            }.get(str(w), w)
            for w in command
        ]
        complaint = collab_hf(*words).complaint
        assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
        assert len(complaint) < 500
        return complaint

    return run


# By table: the sound checkpoint that is spoiled, and the command that is run on it.
NONE = ["--calibration", "none"]
TEXT = ["--calibration", "TEXT"]
COMPRESS = ["compress", "MODEL", "-o", "OUT", *RANK]
TABLES: dict[str, tuple[dict[str, Case], str, list[Any]]] = {
    "config": (CONFIG, "dense", [*COMPRESS, *NONE]),
    "weights": (WEIGHTS, "dense", [*COMPRESS, *NONE]),
    "text": (PROCESSORS, "dense", [*COMPRESS, *TEXT]),
    "images": (IMAGES, "images", COMPRESS),
    "section": (SECTION, "small", ["verify", "MODEL"]),
    "heal": (HEAL, "small", ["heal", "MODEL", "--teacher", "DENSE", "--data", "TEXT", "-o", "OUT"]),
    "push": (PUSH, "small", ["push", "MODEL", "someone/name"]),
}


# Of numpy, where an image processor divides by a deviation of zero.
@pytest.mark.filterwarnings("ignore:(divide by zero|invalid value) encountered:RuntimeWarning")
@pytest.mark.parametrize(
    ("table", "case"), [(name, case) for name, (cases, _, _) in TABLES.items() for case in cases]
)
def test_one_sentence_says_what_is_wrong(refused: Any, table: str, case: str) -> None:
    cases, name, command = TABLES[table]
    spoil, message = cases[case]
    assert message in refused(name, spoil, *command)


def test_there_are_enough() -> None:
    assert sum(len(cases) for cases, _, _ in TABLES.values()) >= 120


@pytest.mark.parametrize("table", [name for name in TABLES if name != "push"])  # test_hub.py has that
def test_sound_ones_pass(kept: Path, tmp_path: Path, collab_hf: CommandLine, table: str) -> None:
    """Negative control: nothing is refused where nothing is spoiled."""
    _, name, command = TABLES[table]
    write_lines(tmp_path / "text.txt", SENTENCES)
    places = {"MODEL": kept / name, "DENSE": kept / "dense", "OUT": tmp_path / "out"}
    done = collab_hf(*[{**places, "TEXT": tmp_path / "text.txt"}.get(str(word), word) for word in command])
    assert done.code == 0
