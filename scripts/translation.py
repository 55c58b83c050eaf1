"""Translation from scratch: concatenated against collaborative attention at equal key dimensions.

At size `paper` it is WMT14 English to German with transformer-base and BLEU; at size `small` a made-up
language pair that two CPU cores learn in minutes.

Example:
    python scripts/translation.py -o translation --size small

Source:
    Cordonnier et al. 2020, arXiv:2006.16362, section 4, for the experiment; Vaswani et al. 2017,
    arXiv:1706.03762, for transformer-base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import typer
from datasets import Dataset, load_dataset
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    MarianConfig,
    PreTrainedModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from collab_hf import collaborative
from experiments import Case, Experiment, Settings, command, key_dimension_cases, train_and_evaluate

PAD, END, FIRST_WORD = 0, 1, 2
_IGNORED = -100  # a label that no loss counts


def made_up_pairs(count: int, words: int, classes: int, lengths: tuple[int, int], seed: int) -> Dataset:
    """Sentences of a made-up language and their translations.

    The translation has the words in reverse, each with a stem from a dictionary and an ending that agrees
    with the class of the word before it in the source. So two places of the source decide every word.

    Args:
        count: number of pairs.
        words: in the source's dictionary, a multiple of `classes`.
        classes: of words, and endings.
        lengths: least and greatest number of words.
        seed: of the sentences; the languages are always the same.

    Returns:
        Columns `input_ids`, `attention_mask` and `labels`.
    """
    stems = np.random.default_rng(0).permutation(words)
    draw = np.random.default_rng(seed)
    sources, targets = [], []
    for length in draw.integers(lengths[0], lengths[1], count, endpoint=True):
        source = draw.integers(0, words, length)
        endings = np.concatenate([[0], source[:-1] % classes])
        sources.append([*(FIRST_WORD + source).tolist(), END])
        targets.append([*(FIRST_WORD + stems[source] * classes + endings)[::-1].tolist(), END])
    return Dataset.from_dict(
        {"input_ids": sources, "attention_mask": [[1] * len(s) for s in sources], "labels": targets}
    )


def load_data(data: Settings) -> tuple[Dataset, Dataset, Any]:
    """Pairs to train and to evaluate on.

    Args:
        data: `made_up` with the arguments of `made_up_pairs`, or `name`, `config`, `source`, `target`,
            `dev_split`, `tokenizer` and `max_length` for a data set of the Hub.

    Returns:
        Both, and the tokenizer, which made-up languages have none of.
    """
    if "made_up" in data:
        sizes = dict(data["made_up"])
        counts = sizes.pop("train"), sizes.pop("dev")
        train, dev = (made_up_pairs(count, seed=seed, **sizes) for seed, count in enumerate(counts, start=1))
        return train, dev, None
    tokenizer = AutoTokenizer.from_pretrained(data["tokenizer"])

    def encode(rows: dict[str, list[Any]]) -> dict[str, Any]:
        source, target = ([pair[data[side]] for pair in rows["translation"]] for side in ("source", "target"))
        encoded: dict[str, Any] = tokenizer(
            source, text_target=target, truncation=True, max_length=data["max_length"]
        )
        return encoded

    splits = [load_dataset(data["name"], data["config"], split=s) for s in ("train", data["dev_split"])]
    train, dev = (s.map(encode, batched=True, remove_columns=s.column_names) for s in splits)
    return train, dev, tokenizer


class PairCollator:
    """Pads token ids; what DataCollatorForSeq2Seq does for a tokenizer."""

    def __call__(self, rows: Sequence[Mapping[str, list[int]]]) -> dict[str, Any]:
        """A batch of tensors."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        fill = {"input_ids": PAD, "attention_mask": 0, "labels": _IGNORED}
        return {
            name: pad_sequence([torch.tensor(row[name]) for row in rows], True, value)
            for name, value in fill.items()
        }


def accuracies(prediction: Any) -> dict[str, float]:
    """Shares of words right after the right words, and of sentences right, which greedy decoding has too."""
    found, labels = prediction.predictions, prediction.label_ids
    counted = labels != _IGNORED
    right = (found == labels) | ~counted
    return {
        "word accuracy": float(right[counted].mean()),
        "sentence accuracy": float(right.all(-1).mean()),
    }


def bleu(tokenizer: Any) -> Any:
    """Metric function of a Trainer that generates."""
    from sacrebleu import corpus_bleu

    def compute(prediction: Any) -> dict[str, float]:
        sides = (
            np.where(ids == _IGNORED, tokenizer.pad_token_id, ids)
            for ids in (prediction.predictions, prediction.label_ids)
        )
        found, labels = (tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in sides)
        return {"BLEU": float(corpus_bleu(found, [labels]).score)}

    return compute


def best_words(outputs: Any, _: Any) -> Any:
    """The likeliest word everywhere, which is all that `accuracies` reads."""
    logits = outputs[0] if isinstance(outputs, tuple) else outputs
    return logits.argmax(-1)


def new_model(settings: Settings, tokenizer: Any, **options: Any) -> Any:
    """A Marian model with random weights.

    Args:
        settings: for MarianConfig, without the ids of special tokens.
        tokenizer: of the data, or None for a made-up language.
        **options: for `collaborative`; without any, attention is Marian's own.

    Returns:
        The model.
    """
    pad, end = (PAD, END) if tokenizer is None else (tokenizer.pad_token_id, tokenizer.eos_token_id)
    ids: dict[str, Any] = {"pad_token_id": pad, "decoder_start_token_id": pad, "eos_token_id": end}
    if tokenizer is not None:
        ids["vocab_size"] = len(tokenizer)
    config = MarianConfig(**ids, forced_eos_token_id=end, **settings)
    return AutoModelForSeq2SeqLM.from_config(collaborative(config, **options) if options else config)


def trainer_options(model: PreTrainedModel, tokenizer: Any) -> dict[str, Any]:
    """What a Trainer needs to read the data and to score a model.

    Args:
        model: to train or to evaluate.
        tokenizer: of the data, or None for a made-up language.

    Returns:
        Arguments by name.
    """
    if tokenizer is None:
        return {
            "data_collator": PairCollator(),
            "compute_metrics": accuracies,
            "preprocess_logits_for_metrics": best_words,
        }
    return {
        "data_collator": DataCollatorForSeq2Seq(tokenizer, model),
        "compute_metrics": bleu(tokenizer),
        "processing_class": tokenizer,
    }


def trained(
    model: PreTrainedModel, read: tuple[Dataset, Dataset, Any], training: Settings, seed: int, directory: Path
) -> dict[str, float]:
    """Train a translation model, and evaluate it.

    Args:
        model: to train.
        read: what `load_data` gave.
        training: for Seq2SeqTrainingArguments; with neither steps nor epochs the model is evaluated alone.
        seed: of the order of the data and of dropout.
        directory: for checkpoints.

    Returns:
        The metrics.
    """
    train, dev, tokenizer = read
    return train_and_evaluate(
        model,
        (train, dev),
        {"predict_with_generate": tokenizer is not None, **training},
        seed,
        directory,
        trainer=Seq2SeqTrainer,
        arguments=Seq2SeqTrainingArguments,
        **trainer_options(model, tokenizer),
    )


def measure(settings: Settings, case: Case, seed: int, directory: Path) -> dict[str, float]:
    """Train one model and evaluate it."""
    read = load_data(settings["data"])
    model = new_model(settings["model"], read[-1], **case.options)
    return trained(model, read, settings["training"], seed, directory)


def cases(settings: Settings) -> list[Case]:
    """Concatenated and collaborative at every key dimension."""
    return key_dimension_cases(settings, settings["model"]["encoder_attention_heads"])


main = command(Experiment("translation", "key dimension", cases, measure))

if __name__ == "__main__":
    typer.run(main)
