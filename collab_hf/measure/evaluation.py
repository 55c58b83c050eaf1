"""How good a model is, and how close it is to another: similarity, accuracy and agreement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from ..calibration.examples import ExampleBatches
from ..errors import DataError
from ..host.inputs import Pooling, move, pool
from ..progress import Steps
from .texts import batches_of_texts, label_id


@dataclass(frozen=True)
class Similarity:
    """How well the cosines of sentence embeddings follow human scores.

    Attributes:
        spearman: rank correlation, in [-1, 1].
        pearson: linear correlation, in [-1, 1].
        examples: number of pairs.
    """

    spearman: float
    pearson: float
    examples: int


@dataclass(frozen=True)
class Accuracy:
    """How often a classifier is right.

    Attributes:
        accuracy: share of right answers, in [0, 1].
        examples: number of sentences.
    """

    accuracy: float
    examples: int


@dataclass(frozen=True)
class Agreement:
    """How close a model stays to a reference.

    Attributes:
        mean_cosine: mean over examples of the cosine between the two models' embeddings.
        min_cosine: the least of them.
        relative_error: ||H - H_ref||_F / ||H_ref||_F of the last hidden states, padding left out.
        examples: number of texts or images.
    """

    mean_cosine: float
    min_cosine: float
    relative_error: float
    examples: int


def measure_similarity(
    model: PreTrainedModel,
    tokenizer: Any,
    pairs: Sequence[tuple[str, str]],
    scores: Sequence[float],
    *,
    batch_size: int = 32,
    max_length: int = 128,
    progress: bool = False,
) -> Similarity:
    """Compare the cosines of mean-pooled sentence embeddings with human scores (STS-B and its kin).

    Args:
        model: a text encoder in eval mode, with or without a task head.
        tokenizer: as AutoTokenizer gives it.
        pairs: sentences to compare.
        scores: one per pair, on any scale.
        batch_size: sentences per batch.
        max_length: tokens that a sentence is cut to.
        progress: whether to draw a progress bar on stderr.

    Returns:
        Both correlations.

    Raises:
        DataError: fewer than two pairs, scores or cosines that are all equal, outputs that are not finite.
        CalibrationError: a tokenizer that does not take text.
    """
    from scipy.stats import pearsonr, spearmanr  # here, since it takes half a second to import

    if len(pairs) < 2 or len(set(scores)) < 2:
        raise DataError(f"similarity needs at least two pairs with different scores, got {len(pairs)} pairs")
    sizes = {"batch_size": batch_size, "max_length": max_length}
    cosines = pair_cosines(model, tokenizer, pairs, progress=progress, **sizes)
    if cosines.max() - cosines.min() < 1e-6:  # what is left is rounding in float32
        raise DataError("every pair has the same cosine, so there is no correlation to measure")
    return Similarity(
        float(spearmanr(cosines, scores).statistic), float(pearsonr(cosines, scores).statistic), len(pairs)
    )


def pair_cosines(
    model: PreTrainedModel,
    tokenizer: Any,
    pairs: Sequence[tuple[str, str]],
    *,
    batch_size: int = 32,
    max_length: int = 128,
    progress: bool = False,
) -> NDArray[Any]:
    """Cosines of mean-pooled sentence embeddings.

    Args:
        model: a text encoder in eval mode, with or without a task head.
        tokenizer: as AutoTokenizer gives it.
        pairs: sentences to compare.
        batch_size: sentences per batch.
        max_length: tokens that a sentence is cut to.
        progress: whether to draw a progress bar on stderr.

    Returns:
        One cosine a pair, (pairs,), float64.
    """
    unique = list(dict.fromkeys(sentence for pair in pairs for sentence in pair))
    batches, order = batches_of_texts(unique, tokenizer, model, batch_size, max_length)
    embedded = torch.cat([pool(*states) for states in _run(model, batches, progress)])
    rows = {unique[index]: embedding for index, embedding in zip(order, embedded, strict=True)}
    first, second = (torch.stack([rows[pair[side]] for pair in pairs]) for side in (0, 1))
    cosines: NDArray[Any] = F.cosine_similarity(first, second).double().numpy()
    return cosines


def measure_accuracy(
    model: PreTrainedModel,
    tokenizer: Any,
    sentences: Sequence[str],
    labels: Sequence[str],
    *,
    batch_size: int = 32,
    max_length: int = 128,
    progress: bool = False,
) -> Accuracy:
    """Count how often a sequence classifier's best label is the right one.

    Args:
        model: a model with a sequence classification head, in eval mode.
        tokenizer: as AutoTokenizer gives it.
        sentences: what to classify.
        labels: one per sentence, a name of the model's `config.label2id` or a number.
        batch_size: sentences per batch.
        max_length: tokens that a sentence is cut to.
        progress: whether to draw a progress bar on stderr.

    Returns:
        The accuracy.

    Raises:
        DataError: no classification head, no sentences, or a label that the model does not have.
        CalibrationError: a tokenizer that does not take text.
    """
    right = right_answers(
        model, tokenizer, sentences, labels, batch_size=batch_size, max_length=max_length, progress=progress
    )
    return Accuracy(float(right.mean()), len(sentences))


def right_answers(
    model: PreTrainedModel,
    tokenizer: Any,
    sentences: Sequence[str],
    labels: Sequence[str],
    *,
    batch_size: int = 32,
    max_length: int = 128,
    progress: bool = False,
) -> NDArray[Any]:
    """Whether a sequence classifier's best label is the right one.

    Args:
        model: as for `measure_accuracy`, and so on.
        tokenizer: as AutoTokenizer gives it.
        sentences: what to classify.
        labels: one per sentence.
        batch_size: sentences per batch.
        max_length: tokens that a sentence is cut to.
        progress: whether to draw a progress bar on stderr.

    Returns:
        1 or 0 for each sentence, (sentences,), float64.

    Raises:
        DataError: as for `measure_accuracy`.
    """
    if not sentences:
        raise DataError("accuracy needs at least one sentence, got none")
    if not type(model).__name__.endswith("ForSequenceClassification"):
        raise DataError(f"accuracy needs a sequence classifier, got a {type(model).__name__}")
    wanted = torch.tensor([label_id(label, model.config) for label in labels])
    batches, order = batches_of_texts(sentences, tokenizer, model, batch_size, max_length)
    with torch.inference_mode():
        guesses = torch.cat(
            [
                model(**move(batch, model.device, model.dtype)).logits.argmax(-1).cpu()
                for batch in Steps(batches, title="Evaluating", unit="batch", progress=progress)
            ]
        )
    right = torch.empty(len(sentences), dtype=torch.float64)
    right[torch.tensor(order)] = (guesses == wanted[order]).double()
    found: NDArray[Any] = right.numpy()
    return found


def measure_agreement(
    model: PreTrainedModel, reference: PreTrainedModel, batches: ExampleBatches, *, progress: bool = False
) -> Agreement:
    """Compare a model's embeddings and hidden states with a reference's, on the same inputs.

    Args:
        model: the model in question, in eval mode.
        reference: the model it should equal, in eval mode.
        batches: texts or images, as `load_batches` gives them.
        progress: whether to draw a progress bar on stderr.

    Returns:
        Cosines of embeddings (text: mean of the last hidden states; images: the CLS state) and the error of
        the hidden states.

    Raises:
        DataError: outputs of different shapes, or not finite.
    """
    cosines, error, norm = [], 0.0, 0.0
    for (states, mask), (expected, _) in zip(
        _run(model, batches, progress), _run(reference, batches, progress=False), strict=True
    ):
        if states.shape != expected.shape:
            raise DataError(
                f"the models' hidden states differ in shape: {list(states.shape)} and {list(expected.shape)}"
            )
        pooling: Pooling = "cls" if mask is None else "mean"
        pooled = pool(states, mask, pooling), pool(expected, mask, pooling)
        cosines.append(F.cosine_similarity(*pooled))
        weight = 1.0 if mask is None else mask.unsqueeze(-1)
        error += ((states - expected) * weight).double().square().sum().item()
        norm += (expected * weight).double().square().sum().item()
    found = torch.cat(cosines)
    return Agreement(found.mean().item(), found.min().item(), (error / norm) ** 0.5, len(found))


def embeddings(model: PreTrainedModel, batches: ExampleBatches, *, progress: bool = False) -> Tensor:
    """What a model makes of examples.

    Args:
        model: in eval mode.
        batches: texts or images.
        progress: whether to draw a progress bar on stderr.

    Returns:
        One row an example (text: mean of the last hidden states; images: the CLS state), float32.
    """
    found = [
        pool(states, mask, "cls" if mask is None else "mean")
        for states, mask in _run(model, batches, progress)
    ]
    return torch.cat(found)


def _run(
    model: PreTrainedModel, batches: ExampleBatches, progress: bool
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Last hidden states in float32 on the CPU, and the mask of real tokens (None for images)."""
    for batch in Steps(batches, title="Evaluating", unit="batch", progress=progress):
        if "input_ids" in batch:  # questions of several choices, as so many texts
            batch = {name: value.flatten(0, -2) for name, value in batch.items()}
        with torch.inference_mode():
            output = model.base_model(**move(batch, model.device, model.dtype))
        # A plain tuple where config.json says return_dict: false.
        last = output[0] if isinstance(output, tuple) else output.get("last_hidden_state")
        if not isinstance(last, Tensor):
            raise DataError(f"{type(model).__name__} gives no hidden states to compare, as a base model does")
        states = last.float().cpu()
        if not torch.isfinite(states).all():
            raise DataError(f"the hidden states of {type(model).__name__} are not finite")
        text = "input_ids" in batch
        yield states, batch.get("attention_mask", torch.ones(states.shape[:2])) if text else None
