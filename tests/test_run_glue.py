"""The GLUE recipe runs from local files and reports each task's own metrics."""

import json
from pathlib import Path

import pytest
import typer
from cli_support import SENTENCES
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

import run_glue
from run_glue import TASKS, read_file

# What typer.run makes of main.
APP = typer.Typer()
APP.command()(run_glue.main)


def write_table(path: Path, header: list[str], rows: list[list[str]]) -> Path:
    path.write_text("".join("\t".join(row) + "\n" for row in [header, *rows]), encoding="utf-8")
    return path


def table_for(name: str, path: Path, count: int = 12) -> Path:
    """Sentences with labels that take every value."""
    task = TASKS[name]
    values = list(task.labels) or ["0.5", "2.5", "5.0"]
    rows = [
        [*(SENTENCES[(i + j) % len(SENTENCES)] for j in range(len(task.columns))), values[i % len(values)]]
        for i in range(count)
    ]
    return write_table(path, [*task.columns, "label" if task.labels else "score"], rows)


# Trainer of transformers 5.23 pins memory by default, which torch says is of no use on a CPU.
@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
@pytest.mark.parametrize("name", TASKS)
def test_every_task_runs_from_files(model, tmp_path, name) -> None:
    train, dev = table_for(name, tmp_path / "train.tsv"), table_for(name, tmp_path / "dev.tsv")
    options = [
        "--train",
        train,
        "--dev",
        dev,
        "--epochs",
        1,
        "--epochs-again",
        1,
        "--lr",
        1e-3,
        *(["--method", "cp", "--rank", 6, "--dims-per-head", 4] if name == "rte" else ["--budget", 0.5]),
    ]
    extra = ["--recover-steps", 2, "-o", tmp_path / "out"] if name == "stsb" else []
    result = CliRunner().invoke(APP, [str(a) for a in (model, "--task", name, *options, *extra)])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    stages = ("fine_tuned", "compressed", *(["recovered"] if extra else []), "fine_tuned_again")
    expected = {
        "cola": {"matthews"},
        "stsb": {"pearson", "spearman"},
        "mrpc": {"accuracy", "f1"},
        "qqp": {"accuracy", "f1"},
    }
    assert all(set(found[stage]) == expected.get(name, {"accuracy"}) for stage in stages)
    assert found["kept"] <= 0.5
    if extra:
        saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
        assert type(saved).__name__ == "CollabBertForSequenceClassification"


# As above.
@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
def test_fine_tuning_alone_leaves_an_ordinary_model(model, tmp_path) -> None:
    table = table_for("sst2", tmp_path / "table.tsv")
    words = [model, "--task", "sst2", "--train", table, "--dev", table, "--epochs", 1, "--method", "none"]
    result = CliRunner().invoke(APP, [str(word) for word in (*words, "-o", tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert set(json.loads(result.stdout.splitlines()[-1])) == {"model", "task", "examples", "fine_tuned"}
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert type(saved).__name__ == "BertForSequenceClassification"


def test_labels_are_numbers_or_names(tmp_path) -> None:
    header, rows = ["sentence", "label"], [["a cat", "positive"], ["a dog", "0"]]
    data = read_file(write_table(tmp_path / "a.tsv", header, rows), TASKS["sst2"])
    assert data["label"][:] == [1, 0]


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        (["sentence", "label"], [["a cat", "2"]], "has the label '2', the task's are negative, positive"),
        (["sentence", "label"], [["a cat", "-1"]], "has the label '-1'"),
        (["text", "label"], [["a cat", "1"]], "lacks the column sentence, it has text, label"),
        (["sentence", "label"], [], "holds no row"),
    ],
)
def test_other_files_are_refused(tmp_path, header, rows, message) -> None:
    with pytest.raises(typer.BadParameter, match=message):
        read_file(write_table(tmp_path / "a.tsv", header, rows), TASKS["sst2"])


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (["--method", "cp", "--rank", 6, "--budget", 0.5], "give a budget or ranks, not both"),
        (["--rank", 6], "rank belongs to method"),
        (["--method", "magic"], "method must be one of"),
    ],
)
def test_forms_that_contradict_themselves(model, form, message) -> None:
    result = CliRunner().invoke(APP, [str(word) for word in (model, "--task", "sst2", *form)])
    assert result.exit_code == 2
    assert message in result.stderr


def test_one_file_needs_the_other(model, tmp_path) -> None:
    train = table_for("sst2", tmp_path / "train.tsv")
    result = CliRunner().invoke(APP, [str(model), "--task", "sst2", "--train", str(train)])
    assert result.exit_code == 2
    assert "--train and --dev are given together" in result.stderr


def test_metrics_are_those_of_the_task() -> None:
    """Against values worked out by hand: 3 of 4 right, one false positive."""
    found, labels = [1, 1, 0, 0], [1, 0, 0, 0]
    assert TASKS["mrpc"].metrics(found, labels) == {"accuracy": 0.75, "f1": pytest.approx(2 / 3)}
    # (TP TN - FP FN) / sqrt((TP+FP)(TP+FN)(TN+FP)(TN+FN)) = 2 / sqrt(2 * 1 * 3 * 2)
    assert TASKS["cola"].metrics(found, labels) == {"matthews": pytest.approx(2 / 12**0.5)}
    assert TASKS["stsb"].metrics([1.0, 2.0, 4.0], [1.0, 2.0, 3.0])["spearman"] == pytest.approx(1.0)
