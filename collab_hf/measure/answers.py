"""A model's answers example by example, and metrics of some of them, for paired comparisons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from transformers import PreTrainedModel

from ..host.inputs import evaluating, move, pool, usual_pooling
from .evaluation import pair_cosines, right_answers
from .tables import read_scores, read_table

Answers = Callable[[PreTrainedModel], NDArray[Any]]
# Of answers (examples,) and numbers of examples (..., n), the metric of each row of numbers, (...).
Metric = Callable[[NDArray[Any], NDArray[np.intp]], NDArray[Any]]


def mean_metric(answers: NDArray[Any], rows: NDArray[np.intp]) -> NDArray[Any]:
    """Mean answer: accuracy of right and wrong ones, agreement of cosines."""
    found: NDArray[Any] = answers[rows].mean(-1)
    return found


def rank_metric(scores: Sequence[float]) -> Metric:
    """Spearman's correlation of the answers with scores, ties at their mean rank.

    Args:
        scores: one an example.

    Returns:
        The metric; 0 where all answers or all scores of a row are equal.
    """
    from scipy.stats import rankdata  # here, since it takes half a second to import

    wanted = np.asarray(scores, dtype=np.float64)

    def metric(answers: NDArray[Any], rows: NDArray[np.intp]) -> NDArray[Any]:
        found, expected = (rankdata(values[rows], axis=-1) for values in (answers, wanted))
        found, expected = (ranks - ranks.mean(-1, keepdims=True) for ranks in (found, expected))
        size = np.sqrt((found**2).sum(-1) * (expected**2).sum(-1))
        correlation: NDArray[Any] = (found * expected).sum(-1) / np.maximum(size, np.finfo(np.float64).tiny)
        return correlation

    return metric


def pair_answers(path: Path, max_examples: int | None, tokenizer: Any) -> tuple[Answers, list[float]]:
    """Cosines of sentence pairs, and the human scores to compare them with.

    Args:
        path: a tab-separated file with the columns sentence1, sentence2, score.
        max_examples: pairs at most.
        tokenizer: of the models.

    Returns:
        A function of the model, and the scores.

    Raises:
        DataError: a file that can't be read.
    """
    pairs, scores = read_scores(path, max_examples)
    return lambda model: pair_cosines(model, tokenizer, pairs), scores


def label_answers(path: Path, max_examples: int | None, tokenizer: Any) -> Answers:
    """Whether a classifier's best label is the right one, 1 or 0 for each sentence.

    Args:
        path: a tab-separated file with the columns sentence and label.
        max_examples: sentences at most.
        tokenizer: of the models.

    Returns:
        A function of the model.

    Raises:
        DataError: a file that can't be read.
    """
    rows = read_table(path, ("sentence", "label"), max_examples)
    sentences, labels = [row[0] for row in rows], [row[1] for row in rows]
    return lambda model: right_answers(model, tokenizer, sentences, labels)


def agreement_answers(model: PreTrainedModel, batches: Sequence[Any]) -> Answers:
    """Cosines of a model's embeddings with those that it gives now.

    Args:
        model: the model, as it is.
        batches: model inputs by name.

    Returns:
        A function of the changed model.
    """
    reference = _embeddings(model, batches)
    return lambda changed: F.cosine_similarity(_embeddings(changed, batches), reference).double().numpy()


@torch.no_grad()
def _embeddings(model: PreTrainedModel, batches: Sequence[Any]) -> torch.Tensor:
    pooling = usual_pooling(model.config)
    found = []
    with evaluating(model):
        for batch in batches:
            inputs = move(batch, model.device, model.dtype)
            states = model.base_model(**inputs)[0].float()
            found.append(pool(states, inputs.get("attention_mask"), pooling).cpu())
    return torch.cat(found)
