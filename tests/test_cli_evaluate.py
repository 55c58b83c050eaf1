"""`collab-hf evaluate` prints what `collab_hf.evaluation` measures, and refuses what does not fit a task."""

from pathlib import Path
from typing import Any

import pytest
from cli_support import (
    SENTENCES,
    VOCABULARY,
    CommandLine,
    save_with_image_processor,
    save_with_tokenizer,
    write_lines,
)
from random_models import PLANS, make_collab_
from transformers import BertForSequenceClassification, BertModel, ViTModel


@pytest.fixture
def compressed(tiny_bert: Any, tmp_path: Path) -> Path:
    model = make_collab_(tiny_bert(BertModel, vocab_size=len(VOCABULARY)), PLANS["cp"])
    return save_with_tokenizer(model, tmp_path / "compressed")


def test_similarity(collab_hf: CommandLine, compressed: Path, tmp_path: Path) -> None:
    rows = [f"{a}\t{b}\t{i}" for i, (a, b) in enumerate(zip(SENTENCES, SENTENCES[::-1], strict=True))]
    table = write_lines(tmp_path / "pairs.tsv", ["sentence1\tsentence2\tscore", *rows])
    result = collab_hf("evaluate", compressed, "--task", "stsb", "--data", table, "--json", "--quiet")
    assert result.err == ""
    assert set(result.values) == {"model", "task", "data", "against", "spearman", "pearson", "examples"}
    assert -1 <= result.values["spearman"] <= 1
    few = collab_hf("evaluate", compressed, "--task", "stsb", "--data", table, "--max-examples", 4)
    assert "examples: 4" in few.out


def test_agreement(collab_hf: CommandLine, model: Path, compressed: Path, text: Path) -> None:
    task = ["--task", "agreement", "--against", model, "--data", text]
    other = collab_hf("evaluate", compressed, *task, "--batch-size", 2, "--json").values
    assert other["mean_cosine"] < 0.999
    assert other["examples"] == len(SENTENCES)
    said = collab_hf("evaluate", model, *task).out
    assert "mean cosine: 1.0000" in said
    assert f"against {model}: the same for practical purposes" in said


def test_agreement_on_what_ships_with_the_package(
    collab_hf: CommandLine, model: Path, compressed: Path
) -> None:
    task = ["--task", "agreement", "--against", model, "--max-examples", 20]
    assert collab_hf("evaluate", compressed, *task, "--json").values["examples"] == 20


def test_agreement_is_on_what_calibration_did_not_read(
    collab_hf: CommandLine, model: Path, tmp_path: Path
) -> None:
    """A file that calibrated is known by its name; another is read as a whole."""
    lines = [f"{a} {b}" for a in SENTENCES for b in SENTENCES]
    text, other = (write_lines(tmp_path / name, lines) for name in ("mine.txt", "other.txt"))
    small = tmp_path / "small"
    made = ["--method", "cp", "--rank", 4, "--calibration", text, "--calibration-examples", 16, "--seed", 5]
    assert collab_hf("compress", model, "-o", small, *made, "--reconstruct-steps", 0).code == 0
    task = ["evaluate", small, "--task", "agreement", "--against", model]
    mine = collab_hf(*task, "--data", text, "--json").values
    assert (mine["examples"], mine["read"]) == (9, "mine.txt: those set aside from calibration")
    whole = collab_hf(*task, "--data", other)
    assert "examples: 36\nread: other.txt: calibration is not known to have read it" in whole.out
    shipped = collab_hf(*task, "--json").values
    assert shipped["read"] == "examples that ship with the package: those set aside from calibration"
    assert shipped["examples"] == 335


def test_agreement_of_image_models(collab_hf: CommandLine, tiny_vit: Any, tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "images").mkdir()
    for shade in (0, 90, 255):
        Image.new("RGB", (20, 20), (shade, 50, 50)).save(tmp_path / "images" / f"{shade}.png")
    save_with_image_processor(tiny_vit(ViTModel), tmp_path / "vit")
    small = make_collab_(tiny_vit(ViTModel), PLANS["tucker"])
    save_with_image_processor(small, tmp_path / "small")
    task = ["--task", "agreement", "--against", tmp_path / "vit", "--data", tmp_path / "images", "--json"]
    values = collab_hf("evaluate", tmp_path / "small", *task).values
    assert values["examples"] == 3
    assert values["relative_error"] > 0.01


def test_accuracy(collab_hf: CommandLine, tiny_bert: Any, tmp_path: Path) -> None:
    classifier = tiny_bert(BertForSequenceClassification, vocab_size=len(VOCABULARY))
    directory = save_with_tokenizer(classifier, tmp_path / "classifier")
    labels = [f"{s}\t{label}" for s in SENTENCES for label in (0, 1, 2)]
    table = write_lines(tmp_path / "labels.tsv", ["sentence\tlabel", *labels])
    values = collab_hf("evaluate", directory, "--task", "accuracy", "--data", table, "--json").values
    assert values["accuracy"] == pytest.approx(1 / 3)  # every sentence has every label once


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "agreement"], "task agreement needs --against MODEL"),
        (["--task", "stsb"], "task stsb needs --data FILE"),
        (
            ["--task", "stsb", "--data", "t.tsv", "--against", "model"],
            "--against belongs to tasks",
        ),
        (["--task", "stsb", "--data", "absent.tsv"], "absent.tsv can't be read: No such file"),
        (
            ["--task", "stsb", "--data", "text.txt"],
            "must have the tab-separated columns sentence1, sentence2",
        ),
        (["--task", "accuracy", "--data", "text.txt"], "must have the tab-separated columns sentence, label"),
        (["--task", "agreement", "--against", "/absent/model"], "/absent/model is not a directory"),
        (["--task", "agreement", "--against", "model", "--data", "absent.txt"], "absent.txt does not exist"),
        (
            ["--task", "agreement", "--against", "model", "--batch-size", 0],
            "Invalid value for '--batch-size'",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    collab_hf: CommandLine,
    model: Path,
    text: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[object],
    message: str,
) -> None:
    monkeypatch.chdir(text.parent)
    assert message in collab_hf("evaluate", model, *options).complaint


def test_a_model_without_tokenizer_is_refused(
    collab_hf: CommandLine, tiny_bert: Any, model: Path, tmp_path: Path
) -> None:
    tiny_bert(BertModel, vocab_size=len(VOCABULARY)).save_pretrained(tmp_path / "bare")
    result = collab_hf("evaluate", tmp_path / "bare", "--task", "agreement", "--against", model)
    assert "has no tokenizer or image processor" in result.complaint
