"""The papers' experiments: every script's run of seconds, what they go on from, and what they report."""

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import typer
import yaml
from cli_support import SENTENCES, VOCABULARY, save_with_tokenizer, write_lines
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

import experiments
from experiments import CONFIGS, Case, Experiment
from glue_table import keep_term_
from translation import END, FIRST_WORD, bleu, made_up_pairs

RUNS = {
    "translation": "translation",
    "translation_heads": "translation_heads",
    "vision": "vision",
    "head_size": "head_size",
    "glue_table": "glue_table",
    "mnli_curve": "glue_table",
    "score_terms": "glue_table",
}

# Of Trainer and accelerate, about a machine without a GPU.
pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")


def invoke(main: Any, *arguments: Any) -> str:
    app = typer.Typer()
    app.command()(main)
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def reader(tiny_bert: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the files that the smoke settings name."""
    monkeypatch.chdir(tmp_path)
    save_with_tokenizer(tiny_bert(vocab_size=len(VOCABULARY)), tmp_path / "MODEL")
    pixels = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    for name in ("train", "dev"):
        np.savez(tmp_path / f"{name}.npz", images=pixels, labels=np.arange(12) % 2)
        write_lines(tmp_path / f"{name}.txt", SENTENCES * 8)
    return tmp_path


def write_table(path: Path, columns: tuple[str, ...], labels: tuple[str, ...]) -> None:
    texts = [[SENTENCES[(i + j) % len(SENTENCES)] for j in range(len(columns))] for i in range(12)]
    rows = ["\t".join([*own, labels[i % len(labels)]]) for i, own in enumerate(texts)]
    write_lines(path, ["\t".join([*columns, "label"]), *rows])


@pytest.mark.parametrize("config", RUNS)
def test_smoke(config: str, reader: Path) -> None:
    """Every case is measured and shown; a second run measures nothing and shows the same."""
    task = importlib.import_module("run_glue").TASKS["mnli" if config == "mnli_curve" else "sst2"]
    for name in ("train.tsv", "dev.tsv"):
        write_table(reader / name, task.columns, task.labels)
    script = importlib.import_module(RUNS[config])
    arguments = ["--smoke", "-o", reader / "out", "--config", CONFIGS / f"{config}.yaml"]
    shown = invoke(script.main, *arguments)
    settings = yaml.safe_load((CONFIGS / f"{config}.yaml").read_text(encoding="utf-8"))["smoke"]
    whole = json.loads((reader / "out" / "results.json").read_text(encoding="utf-8"))
    assert [row["line"] for row in whole["results"]] == [c.line for c in script.cases(settings)]
    for row in whole["results"]:
        assert row["seeds"] == len(settings["seeds"])
        assert all(np.isfinite(value) for value in row["mean"].values())
    headings = [line for line in shown.splitlines() if line.startswith("**")]
    assert len(list((reader / "out").glob("*.svg"))) == len(headings) >= 1
    before = {path: path.stat().st_mtime_ns for path in reader.glob("out/runs/*/*/result.json")}
    assert len(before) == len(whole["results"]) * len(settings["seeds"])
    assert invoke(script.main, *arguments) == shown
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_table_beside_the_papers_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean and standard deviation by hand; a run that broke off goes on where it stopped."""
    measured = []

    def measure(settings: Any, case: Case, seed: int, directory: Path) -> dict[str, float]:
        measured.append((case.line, seed))
        if len(measured) == 3:
            raise KeyboardInterrupt
        return {"score": case.options["value"] + seed}

    def cases(settings: Any) -> list[Case]:
        return [Case(line, 8, {"value": value}) for line, value in (("ours", 1.0), ("theirs", 2.0))]

    config = tmp_path / "config.yaml"
    config.write_text(
        "smoke: {data: {}, seeds: [0, 2], metrics: [score]}\npaper_figures: {theirs: {8: 27.5}}\n"
    )
    main = experiments.command(Experiment("made-up", "rank", cases, measure))
    arguments = ["--smoke", "-o", tmp_path / "out", "--config", config]
    app = typer.Typer()
    app.command()(main)
    assert CliRunner().invoke(app, [str(a) for a in arguments]).exit_code != 0
    shown = invoke(main, *arguments)
    assert measured == [("ours", 0), ("ours", 2), ("theirs", 0), ("theirs", 0), ("theirs", 2)]
    assert shown.splitlines()[2:] == [
        "| rank | ours | theirs | theirs, the paper |",
        "| --- | --- | --- | --- |",
        "| 8 | 2.000 ± 1.414 | 3.000 ± 1.414 | 27.5 |",  # of 1 and 3, and of 2 and 4
    ]


def test_made_up_languages_agree_and_turn_around() -> None:
    data = made_up_pairs(50, words=6, classes=2, lengths=(3, 5), seed=1)
    stems = np.random.default_rng(0).permutation(6)
    for row in data:
        source = np.array(row["input_ids"][:-1]) - FIRST_WORD
        target = np.array(row["labels"][:-1][::-1]) - FIRST_WORD
        assert row["input_ids"][-1] == row["labels"][-1] == END
        assert 3 <= len(source) == len(target) <= 5
        assert (target // 2).tolist() == stems[source].tolist()
        assert (target % 2).tolist() == [0, *(source[:-1] % 2)]
    assert data["labels"] != made_up_pairs(50, words=6, classes=2, lengths=(3, 5), seed=2)["labels"]


@pytest.mark.parametrize("term", ["both", "context", "content"])
def test_one_term_stays_one_term(tiny_bert: Any, term: str) -> None:
    """Against the scores by hand: x W_Q W_K^T y^T and b_Q W_K^T y^T, before and after a step of training."""
    config = tiny_bert(vocab_size=50).config
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    layer = model.bert.encoder.layer[0].attention.self
    torch.nn.init.normal_(layer.query.bias)
    torch.nn.init.normal_(layer.query.weight, std=0.2)
    keep_term_(model, term)
    tokens = torch.arange(14).view(2, 7)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(tokens, labels=torch.tensor([0, 1])).loss.backward()
    optimizer.step()
    assert (layer.query.bias == 0).all() == (term == "context")
    assert (layer.query.weight == 0).all() == (term == "content")
    weights = model(tokens, output_attentions=True).attentions[0]
    # The content's term is the same for every query.
    assert torch.allclose(weights, weights[:, :, :1].expand_as(weights)) == (term == "content")


class Speller:
    """A tokenizer of four words, as far as `bleu` needs one."""

    pad_token_id = 0

    def batch_decode(self, ids: Any, skip_special_tokens: bool) -> list[str]:
        return [" ".join("abcd"[i - 1] for i in row if i) for row in ids.tolist()]


def test_bleu_of_padded_rows() -> None:
    """All words right is 100; one word exchanged in each sentence leaves no four in a row, and hardly any."""
    pytest.importorskip("sacrebleu")
    labels = np.array([[1, 2, 3, 4, -100], [4, 3, 2, 1, 1]])
    perfect = np.where(labels == -100, 0, labels)
    score = bleu(Speller())
    assert score(SimpleNamespace(predictions=perfect, label_ids=labels)) == {"BLEU": pytest.approx(100)}
    worse = np.array([[1, 2, 4, 4, 0], [4, 3, 1, 1, 1]])
    assert score(SimpleNamespace(predictions=worse, label_ids=labels))["BLEU"] < 50
