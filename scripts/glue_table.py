"""GLUE after re-parametrisation: every model, task and rank, with and without a second fine-tuning.

A model is fine-tuned once for a task and a seed. From there each rank replaces queries and keys by shared
ones, is evaluated, fine-tuned again and evaluated again. With `terms` in the YAML, models are fine-tuned
instead whose scores have one of their two terms alone. Tasks and training are those of run_glue.py.

Example:
    python scripts/glue_table.py -o glue
    python scripts/glue_table.py -o mnli --config configs/experiments/mnli_curve.yaml

Source:
    Cordonnier et al. 2020, arXiv:2006.16362, section 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import typer
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from collab_hf import CollabConfig, compress_, load_batches
from collab_hf.modeling.families import attention_layers
from experiments import Case, Experiment, Settings, command
from run_glue import TASKS, Recipe, encoded, load_splits, some

ORIGINAL = "original"


def cases(settings: Settings) -> list[Case]:
    """The original first, which the others start from."""
    return [
        Case(task, rank, {"model": model, "task": task}, model)
        for model, ranks in settings["models"].items()
        for task in settings["tasks"]
        for rank in [*([] if "terms" in settings else [ORIGINAL]), *ranks]
    ]


def measure(settings: Settings, case: Case, seed: int, directory: Path) -> Mapping[str, float]:
    """One model on one task, at one rank."""
    name, task = case.options["model"], TASKS[case.options["task"]]
    data, length = settings["data"], settings["max_length"]
    files = (data.get(split) for split in ("train", "dev"))
    train, splits = load_splits(case.options["task"], *(None if f is None else Path(f) for f in files))
    train = some(train, data.get("max_train"), seed)
    dev = {split: some(part, data.get("max_dev"), seed) for split, part in splits.items()}
    tokenizer = AutoTokenizer.from_pretrained(name)
    original = Case(case.line, ORIGINAL, table=case.table).name
    start = directory.parents[1] / original / directory.name / "model"
    fresh = "terms" in settings or case.x == ORIGINAL
    labels: dict[str, Any] = {"num_labels": len(task.labels) or 1}
    network = AutoModelForSequenceClassification.from_pretrained(name if fresh else start, **labels)
    recipe = Recipe(
        network,
        task,
        tokenizer,
        encoded(train, task, tokenizer, length),
        {split: encoded(part, task, tokenizer, length) for split, part in dev.items()},
        {**settings["training"], "seed": seed},
    )
    found = {}
    if "terms" in settings:
        keep_term_(network, str(case.x))
    elif case.x != ORIGINAL:
        texts = [text for column in task.columns for text in train[column] if text.strip()]
        batches = load_batches(texts, tokenizer, config=network.config, max_length=length)
        compress_(network, CollabConfig(**settings["compression"], rank=int(case.x), seed=seed), batches)
        found["not fine-tuned again"] = fmean(recipe.evaluate().values())
    recipe.fine_tune(settings["epochs"], settings["learning_rate"])
    scores = recipe.evaluate()
    if case.x == ORIGINAL:
        network.save_pretrained(start)
        found["not fine-tuned again"] = fmean(scores.values())
    return {**found, "score": fmean(scores.values()), **scores}


@torch.no_grad()
def keep_term_(model: PreTrainedModel, term: str) -> None:
    """Leave the scores of a dense model one of their terms, for good: what is zero here no training changes.

    Args:
        model: a host's model, in place.
        term: `context`: x W_Q W_K^T y^T, without the query's bias; `content`: b_Q W_K^T y^T, without its
            weights; `both`: as it is.
    """
    for _, module, family in attention_layers(model):
        query = family.projection(module, "query")
        gone = {"context": query.bias, "content": query.weight, "both": None}[term]
        if gone is not None:
            gone.zero_().requires_grad_(False)


main = command(Experiment("glue_table", "rank", cases, measure))

if __name__ == "__main__":
    typer.run(main)
