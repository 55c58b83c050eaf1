"""The low-rank bottleneck: language models whose heads have a size of their own, against the usual ones.

Usual heads share the embedding out, so more of them are smaller. Three sweeps: over the number of heads, over
the size of a head, and over the size of the embedding. The text is files of one example a line, read as bytes
or through a tokenizer of the Hub; without files it is the Hub's.

Example:
    python scripts/head_size.py -o head-size --size small --train train.txt --dev dev.txt

Source:
    Bhojanapalli et al. 2020, arXiv:2002.07028.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import typer
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, default_data_collator

from experiments import Case, Experiment, Settings, command, train_and_evaluate

_BYTES = 256


def cases(settings: Settings) -> list[Case]:
    """The sweeps that the settings have values for."""
    usual, fixed = settings["model"], settings["head_dim"]
    width, heads = usual["hidden_size"], usual["num_attention_heads"]

    def case(table: str, line: str, x: int, width: int, heads: int, size: int) -> Case:
        options = {"hidden_size": width, "num_attention_heads": heads, "head_dim": size}
        return Case(line, x, options, table)

    made = []
    for count in settings["num_heads"]:
        made.append(case("number of heads", "hidden_size / heads", count, width, count, width // count))
        made.append(case("number of heads", "fixed", count, width, count, fixed))
    made += [case("head size", "fixed", size, width, heads, size) for size in settings["head_dims"]]
    for size in settings["hidden_sizes"]:
        made.append(case("embedding size", "hidden_size / heads", size, size, heads, size // heads))
        made.append(case("embedding size", "fixed", size, size, heads, fixed))
    return made


def load_data(data: Settings, length: int) -> tuple[Dataset, Dataset, int]:
    """Text in blocks of one length.

    Args:
        data: `train` and `dev`, text files, or `name`, `config`, `dev_split` and `column` of the Hub's; and
            `tokenizer`, None for bytes.
        length: tokens of a block.

    Returns:
        Blocks to train and to evaluate on, and the size of the vocabulary.
    """
    tokenizer = AutoTokenizer.from_pretrained(data["tokenizer"]) if data.get("tokenizer") else None
    if data.get("train"):
        files = {"train": data["train"], "dev": data["dev"]}
        loaded, column = load_dataset("text", data_files=files), "text"
        splits = loaded["train"], loaded["dev"]
    else:
        splits = tuple(
            load_dataset(data["name"], data["config"], split=s) for s in ("train", data["dev_split"])
        )
        column = data["column"]

    def blocks(rows: dict[str, list[str]]) -> dict[str, Any]:
        text = "\n".join(rows[column])
        ids = (
            list(text.encode())
            if tokenizer is None
            else tokenizer(text, add_special_tokens=False)["input_ids"]
        )
        cut = [ids[i : i + length] for i in range(0, len(ids) - length + 1, length)]
        return {"input_ids": cut, "labels": cut}

    train, dev = (s.map(blocks, batched=True, remove_columns=s.column_names) for s in splits)
    return train, dev, _BYTES if tokenizer is None else len(tokenizer)


def measure(settings: Settings, case: Case, seed: int, directory: Path) -> dict[str, float]:
    """Train one language model; its perplexity is per token."""
    train, dev, vocabulary = load_data(settings["data"], settings["length"])
    sizes = {**settings["model"], **case.options, "vocab_size": vocabulary}
    sizes["intermediate_size"] = settings["intermediate_ratio"] * sizes["hidden_size"]
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(max_position_embeddings=settings["length"], use_cache=False, **sizes)
    )
    found = train_and_evaluate(
        model, (train, dev), settings["training"], seed, directory, data_collator=default_data_collator
    )
    found["perplexity"] = float(torch.tensor(found["loss"]).exp())
    found["parameters"] = sum(p.numel() for p in model.parameters())
    return found


main = command(Experiment("head_size", "size", cases, measure))

if __name__ == "__main__":
    typer.run(main)
