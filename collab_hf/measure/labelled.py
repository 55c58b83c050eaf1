"""Batches with labels, for gradients: of a classifier's loss, or of how far cosines are from human scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import DataError
from ..host.inputs import pool, usual_pooling
from .tables import read_scores, read_table
from .texts import batches_of_texts, label_id

# Under this name a batch of pairs has their scores; its sentences are all first ones, then all second ones.
SCORES = "pair_scores"


def labelled_batches(
    path: Path, max_examples: int | None, tokenizer: Any, model: PreTrainedModel, *, batch_size: int = 32
) -> list[dict[str, Any]]:
    """Sentences with the labels that a sequence classifier takes.

    Args:
        path: a tab-separated file with the columns sentence and label.
        max_examples: sentences at most.
        tokenizer: of the model.
        model: a sequence classifier.
        batch_size: sentences per batch.

    Returns:
        Model inputs with labels.

    Raises:
        DataError: a file that can't be read, no classifier, or a label that it does not have.
    """
    rows = read_table(path, ("sentence", "label"), max_examples)
    if not type(model).__name__.endswith("ForSequenceClassification"):
        raise DataError(f"task accuracy needs a sequence classifier, got a {type(model).__name__}")
    labels = torch.tensor([label_id(label, model.config) for _, label in rows])
    batches, order = batches_of_texts([text for text, _ in rows], tokenizer, model, batch_size, 128)
    found, done = [], 0
    for batch in batches:
        size = len(next(iter(batch.values())))
        found.append({**batch, "labels": labels[order[done : done + size]]})
        done += size
    return found


def pair_batches(
    path: Path, max_examples: int | None, tokenizer: Any, *, batch_size: int = 16
) -> list[dict[str, Any]]:
    """Sentence pairs with human scores.

    Args:
        path: a tab-separated file with the columns sentence1, sentence2, score.
        max_examples: pairs at most.
        tokenizer: of the model.
        batch_size: pairs per batch.

    Returns:
        Model inputs of both sentences, and scores from 0 to 1.

    Raises:
        DataError: a file that can't be read, or scores that are all equal.
    """
    pairs, given = read_scores(path, max_examples)
    scores = torch.tensor(given)
    if scores.max() == scores.min():
        raise DataError(f"the scores in {path} are all equal")
    scores = (scores - scores.min()) / (scores.max() - scores.min())
    found = []
    for start in range(0, len(pairs), batch_size):
        some = pairs[start : start + batch_size]
        texts = [first for first, _ in some] + [second for _, second in some]
        inputs = tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="pt")
        found.append({**inputs, SCORES: scores[start : start + batch_size]})
    return found


def pair_loss(model: PreTrainedModel, inputs: Mapping[str, Any], number: int) -> Tensor:
    """Mean squared difference of the cosines of a batch of `pair_batches` to its scores.

    Args:
        model: a text encoder.
        inputs: the batch.
        number: of the batch.

    Returns:
        The loss.
    """
    given = {name: value for name, value in inputs.items() if name != SCORES}
    states = model.base_model(**given)[0].float()
    embedded = pool(states, given.get("attention_mask"), usual_pooling(model.config))
    first, second = embedded.chunk(2)
    wanted: Tensor = inputs[SCORES]
    return F.mse_loss(F.cosine_similarity(first, second), wanted.to(first))
