"""Measure what recovery brings back: checkpoint by checkpoint, at several budgets, before and after.

Each row goes to a file of JSON lines as soon as it is measured; `--write` puts all of them as a table into
docs/benchmarks/recovery.md.

Example:
    python scripts/bench_recovery.py minilm --checkpoints .cache/checkpoints --data DATA --budget 0.25
    python scripts/bench_recovery.py --write docs/benchmarks/recovery.md
"""

import copy
import csv
import datetime
import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from PIL import Image
from transformers import PreTrainedModel

from collab_hf import CollabConfig, RecoveryConfig, compress_, load_model, recover_
from collab_hf.calibration.examples import load_batches
from collab_hf.checkpoint.load import load_processor
from collab_hf.measure.evaluation import measure_similarity
from collab_hf.measure.tables import read_scores
from collab_hf.recovery.masking import mask_tokens
from reaction_smiles import reactions

RESULTS = Path("recovery.jsonl")
HEADER = (
    *("checkpoint", "Q/K kept", "metric", "original", "compressed", "recovered", "of the original"),
    *("recovery data", "steps x batch", "CPU time"),
)
START, END = "<!-- table: begin -->", "<!-- table: end -->"
PROBE = (4000, 1000)  # images that the probe trains on, and is scored on
IMAGE_SIZE = 98  # 7 x 7 patches: the 32 x 32 images hold no more detail


@dataclass(frozen=True)
class Task:
    """What a checkpoint is measured on.

    Attributes:
        metric: its name.
        data: what recovery reads, for the table.
        batches: for calibration and recovery.
        calibration: how many of the batches calibrate.
        measure: the metric of a model, in per cent.
    """

    metric: str
    data: str
    batches: list[dict[str, Any]]
    calibration: int
    measure: Callable[[PreTrainedModel], float]


def sentences_task(checkpoint: Path, data: Path, source: str, batch_size: int) -> Task:
    """STS-B: Spearman correlation on all of the dev set."""
    tokenizer = load_processor(checkpoint)
    pairs, scores = read_scores(data / "stsb_dev.tsv")
    texts: Any = "default"
    if source == "in-domain":
        with (data / "stsb_train.tsv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        texts = list(dict.fromkeys(row[name] for row in rows for name in ("sentence1", "sentence2")))
    batches = list(load_batches(texts, tokenizer, batch_size=batch_size, max_examples=20_000))

    def measure(model: PreTrainedModel) -> float:
        return 100 * measure_similarity(model, tokenizer, pairs, scores).spearman

    name = "STS-B train sentences" if source == "in-domain" else "shipped text"
    return Task("STS-B dev Spearman", name, batches, 512 // batch_size, measure)


def images_task(checkpoint: Path, data: Path, source: str, batch_size: int) -> Task:
    """CIFAR-10: accuracy of a logistic probe on the first token's features."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    processor = load_processor(checkpoint)
    sizes = {"size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE}, "do_center_crop": False}

    def prepared(pictures: list[Any]) -> torch.Tensor:
        pixels: torch.Tensor = processor(images=pictures, return_tensors="pt", **sizes)["pixel_values"]
        return pixels

    loaded = {part: np.load(data / f"cifar10_{part}.npz") for part in ("train", "dev")}
    used, labels = {}, {}
    for part, count in zip(loaded, PROBE, strict=True):
        total = len(loaded[part]["labels"])
        chosen = (
            np.linspace(0, total - 1, min(count, total)).round().astype(int)
        )  # files may be sorted by label
        used[part], labels[part] = loaded[part]["images"][chosen], loaded[part]["labels"][chosen]
    if source == "photographs":
        files = sorted((data / "images").glob("*.jpg"))
        pictures = [Image.open(file).convert("RGB") for file in files]
    else:
        # Not those that the probe is scored on.
        pictures = [Image.fromarray(image) for image in loaded["train"]["images"]]
    groups = [pictures[i : i + batch_size] for i in range(0, len(pictures), batch_size)]
    batches = [{"pixel_values": prepared(group)} for group in groups]

    @torch.no_grad()
    def features(model: PreTrainedModel, images: Any) -> Any:
        parts = [
            prepared([Image.fromarray(i) for i in images[k : k + 50]]) for k in range(0, len(images), 50)
        ]
        return torch.cat([model(pixel_values=part).last_hidden_state[:, 0] for part in parts]).numpy()

    def measure(model: PreTrainedModel) -> float:
        scaler = StandardScaler()
        train = scaler.fit_transform(features(model, used["train"]))
        probe = LogisticRegression(C=0.01, max_iter=500).fit(train, labels["train"])
        return 100 * float(probe.score(scaler.transform(features(model, used["dev"])), labels["dev"]))

    name = "500 photographs" if source == "photographs" else "CIFAR-10 train images"
    return Task("CIFAR-10 probe accuracy", name, batches, 256 // batch_size, measure)


def reactions_task(checkpoint: Path, batch_size: int) -> Task:
    """Accuracy at masked tokens of reactions that recovery does not see."""
    tokenizer = load_processor(checkpoint)
    strings = reactions(2400)
    plain = list(load_batches(strings[:2000], tokenizer, batch_size=batch_size, max_examples=2000))
    held_out = list(load_batches(strings[2000:], tokenizer, batch_size=50))
    asked = list(mask_tokens(held_out, tokenizer, seed=1))

    @torch.no_grad()
    def measure(model: PreTrainedModel) -> float:
        right = total = 0
        for question, answer in zip(asked, held_out, strict=True):
            masked = question["input_ids"] != answer["input_ids"]
            found = model(**question).logits.argmax(-1)
            right += int((found == answer["input_ids"])[masked].sum())
            total += int(masked.sum())
        return 100 * right / total

    batches = list(mask_tokens(plain, tokenizer))
    return Task("masked-token accuracy", "2,000 made reactions", batches, 512 // batch_size, measure)


def find_task(name: str, checkpoint: Path, data: Path, source: str, batch_size: int) -> Task:
    """The task of a checkpoint."""
    if name == "minilm":
        return sentences_task(checkpoint, data, source, batch_size)
    if name == "dinov2-small":
        return images_task(checkpoint, data, source, batch_size)
    if name in ("rxn-bert", "rxn-albert"):
        return reactions_task(checkpoint, batch_size)
    raise typer.BadParameter(
        f"no task is known for {name}; there are minilm, dinov2-small, rxn-bert, rxn-albert"
    )


def spread(batches: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Some of the batches, from all lengths."""
    step = max(1, len(batches) // max(1, count))
    return batches[::step][:count]


def measure_recovery(
    name: str, checkpoint: Path, task: Task, budget: float, config: RecoveryConfig
) -> dict[str, Any]:
    """Compress, measure, recover, measure.

    Args:
        name: of the checkpoint.
        checkpoint: its directory.
        task: data and metric.
        budget: share of the query/key parameters to keep.
        config: of the recovery.

    Returns:
        One row of the table.
    """
    teacher = load_model(checkpoint)
    student = copy.deepcopy(teacher)
    report = compress_(student, CollabConfig(budget=budget), spread(task.batches, task.calibration))
    before = task.measure(student)
    cpu = time.process_time()
    found = recover_(student, teacher, task.batches, config, progress=True)
    cpu = time.process_time() - cpu
    return {
        "checkpoint": name,
        "budget": budget,
        "kept": report.qk_parameters_after / report.qk_parameters_before,
        "data": task.data,
        "metric": task.metric,
        "original": task.measure(teacher),
        "before": before,
        "after": task.measure(student),
        "steps": found.steps,
        "batch_size": next(len(v) for v in task.batches[-2].values()),
        "seconds": found.seconds,
        "cpu_seconds": cpu,
        "loss_before": found.loss_before,
        "loss_after": found.loss_after,
        "cores": os.cpu_count(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def table(rows: Iterable[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["| " + " | ".join(HEADER) + " |", "|---" * len(HEADER) + "|"]
    for row in rows:
        cells = [
            row["checkpoint"],
            f"{row['kept']:.1%}",
            row["metric"],
            *(f"{row[name]:.2f}" for name in ("original", "before", "after")),
            f"{row['after'] / row['original']:.2%}",
            row["data"],
            f"{row['steps']} x {row['batch_size']}",
            f"{row['cpu_seconds'] / 60:.1f} min",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(
    name: Annotated[
        str | None, typer.Argument(metavar="CHECKPOINT", help="minilm, dinov2-small, rxn-bert, rxn-albert.")
    ] = None,
    checkpoints: Annotated[Path, typer.Option(metavar="DIR", help="Made by scripts/checkpoints.py.")] = Path(
        ".cache/checkpoints"
    ),
    data: Annotated[Path, typer.Option(metavar="DIR", help="stsb_*.tsv, cifar10_*.npz, images/.")] = Path(
        "data"
    ),
    source: Annotated[
        Literal["in-domain", "default", "photographs"], typer.Option(help="What recovery reads.")
    ] = "in-domain",
    budget: Annotated[list[float] | None, typer.Option(metavar="F", help="Repeat for several.")] = None,
    steps: Annotated[int, typer.Option(metavar="N")] = 400,
    learning_rate: Annotated[float, typer.Option(metavar="F")] = RecoveryConfig().learning_rate,
    batch_size: Annotated[int, typer.Option(metavar="N")] = 32,
    results: Annotated[Path, typer.Option(metavar="FILE", help="JSON lines.")] = RESULTS,
    write: Annotated[Path | None, typer.Option(metavar="FILE", help="Put the table into this page.")] = None,
) -> None:
    """Measure recovery, or write the table of what was measured."""
    if name is not None:
        checkpoint = checkpoints / name
        task = find_task(name, checkpoint, data, source, batch_size)
        for share in budget or [0.25]:
            config = RecoveryConfig(steps=steps, learning_rate=learning_rate)
            row = measure_recovery(name, checkpoint, task, share, config)
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            typer.echo(table([row]))
    if write is not None:
        rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
        page = write.read_text(encoding="utf-8")
        head, _, rest = page.partition(START)
        write.write_text(f"{head}{START}\n{table(rows)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
