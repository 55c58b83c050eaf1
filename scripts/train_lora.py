"""Fine-tune a compressed checkpoint with PEFT: LoRA on values and feed-forward, the shared factors whole.

The factors are small already, so they train as they are (`modules_to_save`); the large dense matrices get
LoRA. The adapter that is saved holds both, and the merged model is an ordinary compressed checkpoint.

Example:
    collab-hf compress bert-base-uncased -o quarter --budget 0.25
    python scripts/train_lora.py quarter --task sst2 --train train.tsv --dev dev.tsv -o tuned
"""

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer
from peft import LoraConfig, TaskType, get_peft_model
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, set_seed

from collab_hf.modeling.attention import CollabAttention
from run_glue import TASKS, Recipe, encoded, load_splits, some

# Names of feed-forward matrices and heads among the known families.
FEED_FORWARD = ("intermediate.dense", "output.dense", "fc1", "fc2", "ffn", "ffn_output")
HEADS = ("classifier", "score")


def lora_config(model: PreTrainedModel, rank: int) -> LoraConfig:
    """LoRA beside trainable factors.

    Args:
        model: a compressed model.
        rank: of the LoRA updates.

    Returns:
        The configuration; `modules_to_save` are the shared query and key, the mixing and the head.

    Raises:
        typer.BadParameter: the model is not compressed.
    """
    layers = [module for module in model.modules() if isinstance(module, CollabAttention)]
    if not layers:
        raise typer.BadParameter("the model has no compressed layer; run `collab-hf compress` on it first")
    family = layers[0].collab_family
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    targets = sorted(name for name in linear if name.endswith((f".{family.value}", *FEED_FORWARD)))
    heads = [name for name, _ in model.named_children() if name in HEADS]
    return LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=rank,
        lora_alpha=2 * rank,
        target_modules=targets,
        modules_to_save=[family.query, family.key, "mixing", *heads],
    )


def main(
    model: Annotated[str, typer.Argument(metavar="DIR", help="A compressed checkpoint.")],
    task: Annotated[str, typer.Option(help=f"One of {', '.join(TASKS)}.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Gets `adapter` and `merged`.")
    ],
    train: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TSV; the Hub's data where absent.")
    ] = None,
    dev: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TSV; the Hub's data where absent.")
    ] = None,
    rank: Annotated[int, typer.Option(metavar="N", help="Of the LoRA updates.")] = 8,
    epochs: Annotated[float, typer.Option(metavar="N")] = 3.0,
    learning_rate: Annotated[float, typer.Option("--lr", metavar="F")] = 5e-4,
    batch_size: Annotated[int, typer.Option(metavar="N")] = 32,
    max_train: Annotated[int | None, typer.Option(metavar="N", help="Training examples at most.")] = None,
    seed: Annotated[int, typer.Option(metavar="N")] = 0,
) -> None:
    """Print one JSON object: the metrics before and after, and how many parameters were trained."""
    if task not in TASKS:
        raise typer.BadParameter(f"the task must be one of {', '.join(TASKS)}, got {task!r}")
    set_seed(seed)
    chosen = TASKS[task]
    with redirect_stdout(sys.stderr):
        tokenizer = AutoTokenizer.from_pretrained(model)
        network: Any = AutoModelForSequenceClassification.from_pretrained(
            model, num_labels=len(chosen.labels) or 1
        )
        adapted = get_peft_model(network, lora_config(network, rank))
        data, splits = load_splits(task, train, dev)
        inputs = encoded(some(data, max_train, seed), chosen, tokenizer, 128)
        evaluated = {name: encoded(part, chosen, tokenizer, 128) for name, part in splits.items()}
        recipe = Recipe(
            adapted,
            chosen,
            tokenizer,
            inputs,
            evaluated,
            {"per_device_train_batch_size": batch_size, "seed": seed},
        )
        before = recipe.evaluate()
        recipe.fine_tune(epochs, learning_rate)
        result = {"before": before, "after": recipe.evaluate()}
        trained, total = adapted.get_nb_trainable_parameters()
        adapted.save_pretrained(str(output / "adapter"))
        merged: Any = adapted.merge_and_unload()
        merged.save_pretrained(output / "merged")
        tokenizer.save_pretrained(output / "merged")
    typer.echo(json.dumps({**result, "trained_parameters": trained, "parameters": total}))


if __name__ == "__main__":
    typer.run(main)
