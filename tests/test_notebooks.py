"""The notebooks run from top to bottom, against a local Hub with tiny models of the same names."""

import re
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


def test_outputs_are_those_of_a_real_model() -> None:
    """Where no account is needed: of the model that `make demo` leaves, without warnings or paths."""
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        if path.stem == "push_and_load":
            assert outputs == []
            continue
        counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
        assert counts == list(range(1, len(counts) + 1))
        assert {output.output_type for output in outputs} <= {"stream", "execute_result", "display_data"}
        assert all(output.get("name") != "stderr" for output in outputs)
        assert (
            "encoder.layer.5" in str(outputs) or path.stem != "compress_and_compare"
        )  # six layers: the real one
        assert not re.search(r"(?<![\w.])/(?:home|work|tmp|root|Users)/", str(outputs))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(
    path: Path, hub_of_originals: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = nbformat.read(path, as_version=4)
    run(notebook, tmp_path, monkeypatch)
    if path.stem == "push_and_load":
        assert "model.safetensors" in hub_of_originals.files("me/minilm-small")
        assert hub_of_originals.repositories["me/minilm-small"].private


def test_a_cell_that_fails_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of the above."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        run(notebook, tmp_path, monkeypatch)
