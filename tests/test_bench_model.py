"""The comparison of whole models: what it embeds, counts and draws."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_support import SENTENCES, write_lines

from bench_model import Texts, draw, table
from collab_hf import load_model, load_processor
from collab_hf.checkpoint.onnx import export_onnx
from collab_hf.measure.bench import Case
from model_peers import GraphPeer, TorchPeer

ROWS: dict[str, dict[str, Any]] = {
    "original": {"weights (MB)": 90.86, "spearman": 0.8672},
    "operations 0.5": {"weights (MB)": 69.0, "spearman": 0.86, "cosine on the pairs": 0.95, "32 x 128": 0.5},
    "operations 0.5, int8": {"weights (MB)": 20.0, "spearman": 0.85, "32 x 128": 0.2},
    "model2vec": {"weights (MB)": 30.0, "spearman": 0.8},
}


@pytest.fixture
def peer(model: Path) -> TorchPeer:
    return TorchPeer(load_model(model), load_processor(model), 1000)


@pytest.fixture
def texts(peer: TorchPeer, tmp_path: Path) -> Texts:
    first, second, third = SENTENCES[:3]
    lines = [
        "sentence1\tsentence2\tscore",
        f"{first}\t{second}\t3",
        f"{first}\t{first}\t5",
        f"{second}\t{third}\t0",
    ]
    pairs = write_lines(tmp_path / "pairs.tsv", lines)
    return Texts.read(peer, pairs, write_lines(tmp_path / "others.tsv", [f"{s}\t1" for s in SENTENCES]), 4)


def test_embeddings_keep_the_order_of_the_texts(peer: TorchPeer) -> None:
    found = peer.embed(SENTENCES)
    for text, row in zip(SENTENCES, found, strict=True):
        np.testing.assert_allclose(peer.embed([text])[0], row, atol=1e-5)


def test_a_model_agrees_with_itself_and_not_with_another(peer: TorchPeer, texts: Texts) -> None:
    assert len(texts.others) == 4
    figures = texts.figures(peer)
    assert figures["cosine on the pairs"] == pytest.approx(1, abs=1e-6)
    with torch.no_grad():
        peer.model.encoder.layer[0].output.dense.weight.neg_()
    changed = texts.figures(peer)
    assert max(changed["cosine on the pairs"], changed["cosine on other text"]) < 0.999


def test_a_graph_gives_what_torch_gives(peer: TorchPeer, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    export_onnx(peer.model, file)
    graph = GraphPeer(file, peer.tokenizer, peer.model.config, threads=1)
    np.testing.assert_allclose(graph.embed(SENTENCES), peer.embed(SENTENCES), atol=1e-4)
    assert len(graph.call(Case(2, 8))()[0]) == 2


def test_the_table_has_a_cell_for_what_was_measured_alone() -> None:
    lines = table(ROWS).splitlines()
    assert lines[2].startswith("| original | 90.9 | 0.8672 |  |  |")
    assert lines[3].endswith("| 0.50 |")
    assert lines[5] == "| model2vec | 30.0 | 0.8000 |  |  |  |  |  |  |"


def test_the_plot_has_a_line_for_each_method_and_none_for_what_has_no_speed(tmp_path: Path) -> None:
    draw(ROWS, tmp_path / "a.svg")
    draw(ROWS, tmp_path / "b.svg")
    drawn = (tmp_path / "a.svg").read_text()
    assert drawn == (tmp_path / "b.svg").read_text()
    assert all(
        f">{label}<" in drawn for label in ("original", "all parts (--flops)", "all parts (--flops), int8")
    )
    assert "model2vec" not in drawn
