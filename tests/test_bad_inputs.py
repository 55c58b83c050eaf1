"""Whatever is wrong with what a user gives: one sentence says so, nothing is written, nothing is changed."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bad_input_cases import CONFIG, HEAL, IMAGES, PROCESSORS, SECTION, WEIGHTS
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
            {"MODEL": directory, "OUT": tmp_path / "out", "TEXT": tmp_path / "text.txt"}.get(str(w), w)
            for w in command
        ]
        complaint = collab_hf(*words).complaint
        assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
        assert len(complaint) < 500
        return complaint

    return run


@pytest.mark.parametrize("case", CONFIG)
def test_config(refused: Any, case: str) -> None:
    spoil, message = CONFIG[case]
    assert message in refused(
        "dense", spoil, "compress", "MODEL", "-o", "OUT", *RANK, "--calibration", "none"
    )
