"""Texts and labels as a model takes them, for measuring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from ..calibration.examples import ExampleBatches, load_batches
from ..errors import DataError


def batches_of_texts(
    texts: Sequence[str], tokenizer: Any, model: PreTrainedModel, batch_size: int, max_length: int
) -> tuple[ExampleBatches, list[int]]:
    """Batches of texts, shortest first, and which text each of their rows is.

    Args:
        texts: as many as there are.
        tokenizer: as AutoTokenizer gives it.
        model: that reads them.
        batch_size: texts per batch.
        max_length: tokens that a text is cut to.

    Returns:
        Batches, and numbers of texts in the order of the rows.
    """
    batches = load_batches(
        texts,
        tokenizer,
        config=model.config,
        batch_size=batch_size,
        max_length=max_length,
        max_examples=len(texts),
    )
    # The batches sort in their own way; which of two equal texts comes first does not matter.
    places: dict[str, list[int]] = {}
    for index, text in enumerate(texts):
        places.setdefault(text.strip(), []).append(index)
    return batches, [places[text].pop() for text in batches.texts]


def label_id(label: str, config: Any) -> int:
    """A label's number.

    Args:
        label: a name of the config's `label2id`, or a number.
        config: of a classifier.

    Returns:
        The number.

    Raises:
        DataError: the classifier has no such label.
    """
    known = {str(name): int(index) for name, index in (config.label2id or {}).items()}
    index = known.get(label, int(label) if label.isdecimal() else -1)
    if not 0 <= index < config.num_labels:
        raise DataError(
            f"label {label!r} is none of the model's {config.num_labels}: {', '.join(list(known)[:5])}, ..."
        )
    return index
