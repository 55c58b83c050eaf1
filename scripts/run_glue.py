"""The paper's recipe on GLUE: fine-tune, compress the attention, fine-tune again.

Training is transformers' own Trainer. The data are local tab-separated files with GLUE's columns (`--train`,
`--dev`), or the Hub's `nyu-mll/glue`.

Example:
    python scripts/run_glue.py bert-base-uncased --task sst2 --budget 0.25
    python scripts/run_glue.py bert-base-uncased --task sst2 --method cp --rank 384
    python scripts/run_glue.py DIR --task stsb --train stsb_train.tsv --dev stsb_dev.tsv --max-train 2000

Source:
    Cordonnier et al. 2020, arXiv:2006.16362, section 4.2; Wang et al. 2018, arXiv:1804.07461, for the tasks.
"""

import csv
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
from datasets import Dataset, load_dataset
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

from collab_hf import CollabConfig, CollabError, RecoveryConfig, compress_, load_model, recover_
from collab_hf.calibration.examples import load_batches
from collab_hf.cli import compress_options as asked

Metrics = Callable[[Any, Any], dict[str, float]]


def _accuracy(found: Any, labels: Any) -> dict[str, float]:
    return {"accuracy": float(accuracy_score(labels, found))}


def _accuracy_and_f1(found: Any, labels: Any) -> dict[str, float]:
    return {**_accuracy(found, labels), "f1": float(f1_score(labels, found))}


def _matthews(found: Any, labels: Any) -> dict[str, float]:
    return {"matthews": float(matthews_corrcoef(labels, found))}


def _correlations(found: Any, labels: Any) -> dict[str, float]:
    return {"pearson": float(pearsonr(found, labels)[0]), "spearman": float(spearmanr(found, labels)[0])}


@dataclass(frozen=True)
class Task:
    """One task of GLUE.

    Attributes:
        columns: of the text, one or two.
        metrics: of predictions and labels, as GLUE reports them.
        labels: names in the order of the Hub's numbers; none for a score.
        dev: the Hub's splits to evaluate on.
    """

    columns: tuple[str, ...]
    metrics: Metrics
    labels: tuple[str, ...]
    dev: tuple[str, ...] = ("validation",)


TASKS = {
    "cola": Task(("sentence",), _matthews, ("unacceptable", "acceptable")),
    "sst2": Task(("sentence",), _accuracy, ("negative", "positive")),
    "mrpc": Task(("sentence1", "sentence2"), _accuracy_and_f1, ("not_equivalent", "equivalent")),
    "stsb": Task(("sentence1", "sentence2"), _correlations, ()),
    "qqp": Task(("question1", "question2"), _accuracy_and_f1, ("not_duplicate", "duplicate")),
    "mnli": Task(
        ("premise", "hypothesis"),
        _accuracy,
        ("entailment", "neutral", "contradiction"),
        ("validation_matched", "validation_mismatched"),
    ),
    "qnli": Task(("question", "sentence"), _accuracy, ("entailment", "not_entailment")),
    "rte": Task(("sentence1", "sentence2"), _accuracy, ("entailment", "not_entailment")),
}


def read_file(path: Path, task: Task) -> Dataset:
    """Read a tab-separated file with a header.

    Args:
        path: the file; the label's column is `label` or `score`, with numbers or the labels' names.
        task: whose columns it has.

    Returns:
        The text columns, and `label`.

    Raises:
        typer.BadParameter: the file can't be read, or lacks a column or a known label.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{path} can't be read: {error}") from error
    if not rows:
        raise typer.BadParameter(f"{path} holds no row below its header")
    label = "score" if "score" in rows[0] else "label"
    missing = [name for name in (*task.columns, label) if name not in rows[0]]
    if missing:
        raise typer.BadParameter(f"{path} lacks the column {missing[0]}, it has {', '.join(rows[0])}")
    columns: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in task.columns}
    columns["label"] = [_label(row[label], task, path) for row in rows]
    return Dataset.from_dict(columns)


def _label(value: str, task: Task, path: Path) -> float | int:
    try:
        if not task.labels:
            return float(value)
        number = task.labels.index(value) if value in task.labels else int(value)
    except (TypeError, ValueError):
        number = -1
    if not 0 <= number < len(task.labels):
        raise typer.BadParameter(f"{path} has the label {value!r}, the task's are {', '.join(task.labels)}")
    return number


def load_splits(name: str, train: Path | None, dev: Path | None) -> tuple[Dataset, dict[str, Dataset]]:
    """The data of a task.

    Args:
        name: of the task.
        train: file to train on; None for the Hub.
        dev: file to evaluate on; None for the Hub.

    Returns:
        Training data, and evaluation data by the split's name.

    Raises:
        typer.BadParameter: one file without the other, or one that can't be read.
    """
    task = TASKS[name]
    if (train is None) != (dev is None):
        raise typer.BadParameter("--train and --dev are given together or not at all")
    if train is not None and dev is not None:
        return read_file(train, task), {"dev": read_file(dev, task)}
    loaded = load_dataset("nyu-mll/glue", name)
    return loaded["train"], {split: loaded[split] for split in task.dev}


def some(data: Dataset, count: int | None, seed: int) -> Dataset:
    """At most `count` rows of the data, by chance."""
    return data if count is None or count >= len(data) else data.shuffle(seed=seed).select(range(count))


def encoded(data: Dataset, task: Task, tokenizer: Any, max_length: int) -> Dataset:
    """The data as model inputs, with `labels`."""

    def encode(rows: dict[str, list[Any]]) -> dict[str, Any]:
        texts = [rows[name] for name in task.columns]
        return {**tokenizer(*texts, truncation=True, max_length=max_length), "labels": rows["label"]}

    return data.map(encode, batched=True, remove_columns=data.column_names)


class Recipe:
    """Fine-tuning and evaluation of one model on one task.

    Args:
        model: with a classification head.
        task: of GLUE.
        tokenizer: the model's.
        train: encoded training data.
        dev: encoded evaluation data by split.
        settings: for TrainingArguments.
    """

    def __init__(
        self,
        model: Any,
        task: Task,
        tokenizer: Any,
        train: Dataset,
        dev: dict[str, Dataset],
        settings: dict[str, Any],
    ) -> None:
        self._model, self._task, self._tokenizer = model, task, tokenizer
        self._train, self._dev, self._settings = train, dev, settings

    def fine_tune(self, epochs: float, learning_rate: float) -> None:
        """Train the whole model with transformers' Trainer."""
        if epochs:
            self._trainer(num_train_epochs=epochs, learning_rate=learning_rate).train()

    def evaluate(self) -> dict[str, float]:
        """The task's metrics, in per cent."""
        trainer, found = self._trainer(), {}
        for split, data in self._dev.items():
            prediction = trainer.predict(data)
            values = np.asarray(prediction.predictions)
            answers = values.argmax(-1) if self._task.labels else values.squeeze(-1)
            prefix = "" if len(self._dev) == 1 else f"{split.removeprefix('validation_')}_"
            for name, value in self._task.metrics(answers, prediction.label_ids).items():
                found[prefix + name] = round(100 * value, 2)
        return found

    def _trainer(self, **settings: Any) -> Trainer:
        arguments = TrainingArguments(
            output_dir=tempfile.gettempdir(),
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=not sys.stderr.isatty(),
            **{**self._settings, **settings},
        )
        return Trainer(
            model=self._model,
            args=arguments,
            train_dataset=self._train,
            processing_class=self._tokenizer,
            data_collator=DataCollatorWithPadding(self._tokenizer),
        )


def run(
    model: str,
    name: str,
    data: tuple[Dataset, dict[str, Dataset]],
    config: CollabConfig | None,
    epochs: tuple[float, float],
    learning_rates: tuple[float, float],
    recover_steps: int,
    settings: dict[str, Any],
    max_length: int,
    output: Path | None,
) -> dict[str, Any]:
    """Fine-tune, compress, fine-tune again.

    Args:
        model: Hub id or directory of a pretrained encoder.
        name: of the task.
        data: training data, and evaluation data by split.
        config: how to compress; None to fine-tune alone.
        epochs: before and after the compression.
        learning_rates: before and after.
        recover_steps: updates of label-free recovery between compression and fine-tuning; 0 for none.
        settings: for TrainingArguments.
        max_length: tokens of an example.
        output: where to save the model; None for nowhere.

    Returns:
        The metrics after each stage.
    """
    task = TASKS[name]
    tokenizer = AutoTokenizer.from_pretrained(model)
    head: dict[str, Any] = {"num_labels": len(task.labels) or 1}
    if task.labels:
        head["id2label"] = dict(enumerate(task.labels))
    network = AutoModelForSequenceClassification.from_pretrained(model, **head)
    train, dev = (data[0], data[1])
    inputs = encoded(train, task, tokenizer, max_length)
    recipe = Recipe(
        network,
        task,
        tokenizer,
        inputs,
        {s: encoded(d, task, tokenizer, max_length) for s, d in dev.items()},
        settings,
    )
    result: dict[str, Any] = {"model": Path(model).name, "task": name, "examples": len(train)}
    recipe.fine_tune(epochs[0], learning_rates[0])
    result["fine_tuned"] = recipe.evaluate()
    if config is not None:
        texts = [text for column in task.columns for text in train[column] if text.strip()]
        batches = load_batches(texts, tokenizer, config=network.config, max_length=max_length)
        result |= compressed(network, config, batches, recover_steps, recipe)
        recipe.fine_tune(epochs[1], learning_rates[1])
        result["fine_tuned_again"] = recipe.evaluate()
    if output is not None:
        network.save_pretrained(output)
        tokenizer.save_pretrained(output)
    return result


def compressed(
    network: Any, config: CollabConfig, batches: Any, recover_steps: int, recipe: Recipe
) -> dict[str, Any]:
    """Compress a model in place, and recover it without labels.

    Args:
        network: fine-tuned.
        config: how to compress.
        batches: model inputs to calibrate and recover with.
        recover_steps: updates of recovery; 0 for none.
        recipe: evaluates the model.

    Returns:
        The share of query/key parameters kept, and the metrics after each stage.
    """
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        if recover_steps:
            network.save_pretrained(directory)
        report = compress_(network, config, batches)
        result["kept"] = report.qk_parameters_after / report.qk_parameters_before
        result["compressed"] = recipe.evaluate()
        if recover_steps:
            recover_(
                network,
                load_model(directory, device=network.device),
                batches,
                RecoveryConfig(steps=recover_steps),
            )
            result["recovered"] = recipe.evaluate()
    return result


@contextmanager
def one_sentence() -> Iterator[None]:
    """End with exit code 2 and one sentence where the input can't be used."""
    try:
        yield
    except CollabError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


def main(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Hub id or directory of a pretrained encoder.")
    ],
    task: Annotated[
        Literal["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte"], typer.Option(help="Of GLUE.")
    ],
    train: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TSV; the Hub's data where absent.")
    ] = None,
    dev: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TSV; the Hub's data where absent.")
    ] = None,
    method: Annotated[
        str,
        typer.Option(metavar="METHOD", help="auto, cp, tucker, svd or copy; none to fine-tune alone."),
    ] = "auto",
    budget: Annotated[
        float | None,
        typer.Option(
            metavar="F", help="Query/key parameters to keep.  [default: 0.25, or what the ranks say]"
        ),
    ] = None,
    rank: asked.Rank = None,
    query_rank: asked.QueryRank = None,
    key_rank: asked.KeyRank = None,
    key_groups: asked.KeyGroups = None,
    head_rank: asked.HeadRank = None,
    tied: asked.Tied = False,
    score_width: asked.ScoreWidth = None,
    dims_per_head: asked.DimsPerHead = None,
    epochs: Annotated[float, typer.Option(metavar="N", help="Before the compression.")] = 3.0,
    epochs_again: Annotated[float, typer.Option(metavar="N", help="After it.")] = 3.0,
    learning_rate: Annotated[float, typer.Option("--lr", metavar="F")] = 2e-5,
    learning_rate_again: Annotated[float, typer.Option("--lr-again", metavar="F")] = 2e-5,
    recover_steps: Annotated[int, typer.Option(metavar="N", help="Label-free updates in between.")] = 0,
    batch_size: Annotated[int, typer.Option(metavar="N")] = 32,
    max_length: Annotated[int, typer.Option(metavar="N")] = 128,
    max_train: Annotated[int | None, typer.Option(metavar="N", help="Training examples at most.")] = None,
    max_dev: Annotated[int | None, typer.Option(metavar="N", help="Evaluation examples at most.")] = None,
    seed: Annotated[int, typer.Option(metavar="N")] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Save the model.")
    ] = None,
) -> None:
    """Print one JSON object: the task's metrics after each stage."""
    forms = {
        "rank": rank,
        "query_rank": query_rank,
        "key_rank": key_rank,
        "key_groups": key_groups,
        "head_rank": head_rank,
        "tied": tied or None,
        "score_width": score_width,
        "dims_per_head": dims_per_head,
    }
    given: dict[str, Any] = {name: value for name, value in forms.items() if value is not None}
    if method != "copy" and not given.keys() & {"rank", "query_rank", "key_rank"}:
        given["budget"] = 0.25 if budget is None else budget
    elif budget is not None:
        given["budget"] = budget  # which a rank, or a copy, contradicts
    config = None
    if method != "none":
        with one_sentence():
            config = CollabConfig(method=method, seed=seed, **given)
    set_seed(seed)
    loaded, splits = load_splits(task, train, dev)
    data = some(loaded, max_train, seed), {name: some(part, max_dev, seed) for name, part in splits.items()}
    settings = {
        "per_device_train_batch_size": batch_size,
        "per_device_eval_batch_size": 2 * batch_size,
        "seed": seed,
    }
    rates, times = (learning_rate, learning_rate_again), (epochs, epochs_again)
    with one_sentence(), redirect_stdout(sys.stderr):
        result = run(model, task, data, config, times, rates, recover_steps, settings, max_length, output)
    typer.echo(json.dumps(result))


if __name__ == "__main__":
    typer.run(main)
