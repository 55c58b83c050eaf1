"""What the README tells a newcomer to do works."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from cli_support import VOCABULARY, save_with_tokenizer
from conftest import REPOSITORY
from doc_blocks import code_blocks, run_blocks
from transformers import AutoModel, BertModel
from transformers.utils import logging

import checkpoints
from collab_hf import cli

README = REPOSITORY / "README.md"


def shell_lines() -> list[list[str]]:
    """Words of the lines that set things up, which tests do not run."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]


def test_its_examples_run(tiny_bert: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a tiny model of the name that the real one has there."""
    monkeypatch.chdir(tmp_path)
    save_with_tokenizer(tiny_bert(BertModel, vocab_size=len(VOCABULARY)), tmp_path / "minilm")
    verbosity = logging.get_verbosity()
    try:
        assert run_blocks(README, cli.run) == 3
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
    for name in ("minilm-quarter", "minilm-half"):
        assert type(AutoModel.from_pretrained(tmp_path / name)).__name__ == "CollabBertModel"


def test_its_set_up_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    lines = shell_lines()
    assert {words[1] for words in lines if words[0] == "make"} == {"demo", "test"} <= targets
    (script,) = [words for words in lines if words[0] == "python"]
    assert (REPOSITORY / script[1]).is_file()
    assert script[2] in checkpoints.SOURCES
    assert script[3:] == ["--out", "minilm"]
    assert {words[0] for words in lines} == {"make", "pip", "python"}


def test_its_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README.read_text())
    assert [link for link in links if "://" not in link and not (REPOSITORY / link).exists()] == []
    assert len(code_blocks(README)) == 3
