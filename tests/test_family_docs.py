"""The page on models: its table is what the package says, and its recipe works as a reader follows it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY
from doc_blocks import code_blocks

from collab_hf.host.support import as_markdown

PAGE = REPOSITORY / "docs" / "families.md"


def test_the_table_is_the_packages() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.partition("<!-- families -->\n")[2].partition("<!-- /families -->")[0] == as_markdown()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_attention_of_ones_own_is_compressed_saved_and_loaded(tmp_path: Path) -> None:
    """The first block is a file of the reader's; each other block is a process."""
    file, *scripts = code_blocks(PAGE)
    assert len(scripts) == 2
    (tmp_path / "my_encoder.py").write_text(file.code)
    paths = os.pathsep.join([str(tmp_path), str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    for block in scripts:
        done = subprocess.run(
            [sys.executable, "-c", block.code],
            capture_output=True, text=True, env=environment, cwd=tmp_path, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"families.md, line {block.line}: {done.stderr[-2000:]}"
