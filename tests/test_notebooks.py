"""The notebooks run from top to bottom, against a local Hub with tiny models of the same names."""

from pathlib import Path

import nbformat
import pytest
from conftest import REPOSITORY
from hub_server import TOKEN, HubServer
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the notebook tools


def run(notebook: nbformat.NotebookNode, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Execute in a kernel of its own, in an empty directory and with an empty cache."""
    monkeypatch.setenv("HF_HOME", str(folder / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    NotebookClient(notebook, timeout=240, kernel_name="python3").execute(cwd=str(folder))


def test_there_are_three() -> None:
    assert [path.stem for path in NOTEBOOKS] == [
        "compress_and_compare",
        "push_and_load",
        "recover_and_finetune",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(
    path: Path, hub_of_originals: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "clear the outputs before committing"
    run(notebook, tmp_path, monkeypatch)
    if path.stem == "push_and_load":
        assert "model.safetensors" in hub_of_originals.files("me/minilm-small")
        assert hub_of_originals.repositories["me/minilm-small"].private


def test_a_cell_that_fails_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of the above."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        run(notebook, tmp_path, monkeypatch)
