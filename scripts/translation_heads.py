"""Which attention breaks first when heads go: the encoder's, the decoder's, or that between them.

A translation model is trained as scripts/translation.py does, with the usual attention. Then heads of one
kind of attention alone are switched off, the least important first, as in figure 4 of the paper.

Example:
    python scripts/translation_heads.py -o translation-heads --size small

Source:
    Michel, Levy, Neubig 2019, arXiv:1905.10650, section 5.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
from transformers import AutoModelForSeq2SeqLM

from collab_hf import heads
from experiments import Case, Experiment, Settings, command
from translation import load_data, new_model, trained, trainer_options

KINDS = ("encoder-self", "decoder-self", "decoder-cross")


def kept_model(settings: Settings, read: tuple[Any, Any, Any], seed: int, directory: Path) -> Any:
    """The translation model of a seed, trained once and kept.

    Args:
        settings: a section of the YAML.
        read: what `load_data` gave.
        seed: of training.
        directory: where the model is kept.

    Returns:
        The model.
    """
    kept = directory / "model"
    if not (kept / "config.json").exists():
        model = new_model(settings["model"], read[-1])
        trained(model, read, settings["training"], seed, directory)
        model.save_pretrained(kept)
    return AutoModelForSeq2SeqLM.from_pretrained(kept).eval()


def measure(settings: Settings, case: Case, seed: int, directory: Path) -> dict[str, float]:
    """Evaluate a model without a share of the heads of one kind."""
    train, _, tokenizer = read = load_data(settings["data"])
    model = kept_model(settings, read, seed, directory.parents[1] / f"model-{seed}")
    collate = trainer_options(model, tokenizer)["data_collator"]
    rows = [train[number] for number in range(settings["scored"])]
    batches = [collate(rows[at : at + 32]) for at in range(0, len(rows), 32)]
    kind = (case.line,)
    counts = heads.head_counts(heads.head_sites(model), kind)
    order = heads.pruning_order(model, batches, by="importance", attention=kind, seed=seed)
    gone = heads.first_to_go(order, round(float(case.x) * sum(counts.values())), counts)
    evaluation = {**settings["training"], "max_steps": 0, "num_train_epochs": 0}
    with heads.gated(model, heads.without(model, gone)):
        return trained(model, read, evaluation, seed, directory)


def cases(settings: Settings) -> list[Case]:
    """Every kind of attention at every share."""
    return [Case(kind, share) for share in settings["shares"] for kind in KINDS]


main = command(Experiment("translation_heads", "share of heads off", cases, measure))

if __name__ == "__main__":
    typer.run(main)
