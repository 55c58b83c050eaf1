"""Tiny checkpoints with a tokenizer, and the command line run inside the test's process."""

import json
import os
import string
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.utils.tqdm import enable_progress_bars
from transformers import BertTokenizer, PreTrainedModel, ViTImageProcessorPil
from transformers.utils import logging

from collab_hf import cli

# Every letter alone and inside a word, so that no lower-case word is unknown.
VOCABULARY = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *string.ascii_lowercase,
    *(f"##{letter}" for letter in string.ascii_lowercase),
    *(".", ",", "'"),
]
SENTENCES = [
    "a cat sat on the mat",
    "dogs bark",
    "the sun is up, and so are we",
    "rain",
    "who wrote this",
    "it is cold today, isn't it",
]


@dataclass(frozen=True)
class Result:
    """What one command did."""

    code: int
    out: str
    err: str

    @property
    def values(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        values: dict[str, Any] = json.loads(self.out)
        return values

    @property
    def complaint(self) -> str:
        """The one sentence on stderr of a command that refused its input, after the stages it came to."""
        assert self.code == 2, self
        assert self.out == ""
        *stages, last = self.err.splitlines()
        assert last.startswith("error: ")
        assert not any(line.startswith(("error: ", "Traceback", " ")) for line in stages), self.err
        return last.removeprefix("error: ").strip()


class CommandLine:
    """Calls `collab-hf` in this process, and leaves logging and warnings as they were."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> Result:
        verbosity, form = logging.get_verbosity(), warnings.formatwarning
        self._capsys.readouterr()
        try:
            code = cli.run([str(argument) for argument in arguments])
        finally:
            logging.set_verbosity(verbosity)
            warnings.formatwarning = form
            logging.enable_progress_bar()
            enable_progress_bars()
            os.environ.pop("HF_DATASETS_DISABLE_PROGRESS_BARS", None)
        captured = self._capsys.readouterr()
        return Result(code, captured.out, captured.err)


def save_with_tokenizer(model: PreTrainedModel, directory: Path) -> Path:
    """Save a tiny BERT whose vocabulary is that of the tokenizer beside it."""
    model.save_pretrained(directory)
    vocabulary = {token: index for index, token in enumerate(VOCABULARY)}
    BertTokenizer(vocab=vocabulary, model_max_length=38).save_pretrained(directory)
    return directory


def save_with_image_processor(model: PreTrainedModel, directory: Path) -> Path:
    """Save a tiny image model and the processor that makes its 16 x 16 pixels."""
    model.save_pretrained(directory)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(directory)
    return directory


def write_lines(path: Path, lines: list[str]) -> Path:
    """A text file, one line an entry."""
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path
