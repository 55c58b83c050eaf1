"""The documentation builds without a warning, and every code block of it runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY
from doc_blocks import code_blocks, run_blocks
from hub_server import HubServer
from transformers.utils import logging

import collab_hf
from collab_hf import cli, heads, layers
from collab_hf.parts import vocabulary

GUIDES = REPOSITORY / "docs" / "guides"
PAGES = [
    REPOSITORY / "docs" / "index.md",
    *(
        GUIDES / f"{name}.md"
        for name in ("compressing", "finetuning", "from-scratch", "publishing", "exporting")
    ),
]
# Pages whose commands read texts.txt.
WITH_TEXTS = ("recovering", "whole-model", "heads")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of exporters, PEFT and HTTP clients
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning"),
]


@pytest.fixture
def reader(hub_of_originals: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Someone who works through a page, in an empty directory."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_runs(page: Path, reader: None) -> None:
    verbosity = logging.get_verbosity()
    try:
        assert run_blocks(page, cli.run) == len(code_blocks(page)) >= 2
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()


@pytest.mark.filterwarnings("ignore::UserWarning")  # accelerate's, about a machine without a GPU
@pytest.mark.parametrize("name", WITH_TEXTS)
def test_pages_that_read_texts(name: str, reader: None, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text(
        "a cat sat on the mat\nthe sun is up\nit is cold\nwho wrote this\n" * 8
    )
    page = GUIDES / f"{name}.md"
    smaller = {"400": "3", "budget 0.25": "budget 0.5", "budget=0.25": "budget=0.5"}
    verbosity = logging.get_verbosity()
    try:
        assert run_blocks(page, cli.run, smaller) == len(code_blocks(page))
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()


def test_a_block_that_fails_is_seen(reader: None, tmp_path: Path) -> None:
    """Negative control of the above."""
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n```\ntext\n```python\nassert x == 2\n```\n")
    with pytest.raises(AssertionError) as raised:
        run_blocks(page, cli.run)
    assert raised.traceback[-1].lineno == 5
    page.write_text("```bash\nrm -r everything\n```\n")
    with pytest.raises(AssertionError, match="can't run"):
        run_blocks(page, cli.run)


def test_every_page_with_code_is_run() -> None:
    """The commands of pages whose numbers come from long runs are run by tests/test_doc_commands.py."""
    own = {"decomposition", "families", "planning", "speed"}
    with_code = {page.stem for page in (REPOSITORY / "docs").rglob("*.md") if code_blocks(page)}
    assert with_code - own <= {page.stem for page in PAGES} | set(WITH_TEXTS)


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    mkdocs = Path(sys.executable).with_name("mkdocs")
    result = subprocess.run(
        [mkdocs, "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=REPOSITORY,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    reference = (tmp_path / "site" / "reference" / "index.html").read_text()
    names = [name for name in collab_hf.__all__ if name != "__version__"]
    for name in (*names, *heads.__all__, *layers.__all__, *vocabulary.__all__, "HubError"):
        assert re.search(rf'id="collab_hf\.[a-z_.]*{name}"', reference), name
