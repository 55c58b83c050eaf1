"""The nearest neighbours that a compressed model keeps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_support import CommandLine, write_lines

from collab_hf.errors import DataError
from collab_hf.measure import retrieval
from collab_hf.measure.retrieval import measure_retrieval

COUNT, WIDTH = 40, 6


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Embeddings by a model's name, in place of what models make of examples; few rows at a time."""
    made: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(retrieval, "embeddings", lambda model, batches, progress: made[model])
    monkeypatch.setattr(retrieval, "_ROWS", 7)
    return made


def test_the_overlap_is_the_share_of_common_neighbours(rows: dict[str, Any]) -> None:
    """Against sets of neighbours that NumPy sorts, of unequal lengths of the embeddings."""
    random = np.random.default_rng(0)
    theirs = random.normal(size=(COUNT, WIDTH)) * random.uniform(0.1, 10, size=(COUNT, 1))
    ours = theirs + random.normal(size=(COUNT, WIDTH))
    rows |= {"ours": torch.from_numpy(ours), "theirs": torch.from_numpy(theirs)}

    def neighbours(values: Any) -> list[set[int]]:
        unit = values / np.linalg.norm(values, axis=1, keepdims=True)
        cosines = unit @ unit.T
        np.fill_diagonal(cosines, -2)
        return [set(map(int, np.argsort(-row)[:10])) for row in cosines]

    expected = [len(a & b) / 10 for a, b in zip(neighbours(ours), neighbours(theirs), strict=True)]
    found = measure_retrieval("ours", "theirs", None)
    assert found.mean_overlap == pytest.approx(np.mean(expected))
    assert found.min_overlap == pytest.approx(min(expected))
    assert 0.3 < found.mean_overlap < 0.9
    assert (found.neighbours, found.examples) == (10, COUNT)


def test_the_same_embeddings_have_the_same_neighbours(rows: dict[str, Any]) -> None:
    """And others, by chance, 10 of 39."""
    rows |= {name: torch.randn(COUNT, WIDTH) for name in ("one", "other")}
    assert measure_retrieval("one", "one", None).min_overlap == 1
    assert measure_retrieval("one", "other", None).mean_overlap == pytest.approx(10 / 39, abs=0.1)


def test_too_few_examples(rows: dict[str, Any]) -> None:
    rows["one"] = torch.randn(11, WIDTH)
    with pytest.raises(DataError, match="needs more than 11 examples, got 11"):
        measure_retrieval("one", "one", None)


def test_the_command(
    collab_hf: CommandLine, model: Path, tmp_path: Path, tiny_bert: Callable[..., Any]
) -> None:
    text = write_lines(
        tmp_path / "text.txt", [" ".join("abcdefgh"[i % 7 :]) + chr(97 + i) for i in range(20)]
    )
    compare = ["evaluate", model, "--task", "retrieval", "--data", text]
    values = collab_hf(*compare, "--against", model, "--json").values
    assert (values["mean_overlap"], values["neighbours"], values["examples"]) == (1, 10, 20)
    assert "task retrieval needs --against MODEL" in collab_hf(*compare).complaint
