"""From calibration examples to batches of model inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CalibrationError
from ..progress import stage
from .conventions import asks_questions, decoder_start, length_limit, with_padding
from .foreign_text import warn_of_foreign_text
from .picked import Picked
from .sources import DEFAULT, open_image, read_images, read_texts, read_texts_and_images


@dataclass(frozen=True)
class Examples:
    """What a model can read.

    Attributes:
        texts: none for a model of images.
        images: items for `open_image`; none for a model of text.
    """

    texts: Sequence[str] = ()
    images: Sequence[Any] = ()

    def __len__(self) -> int:
        """How many; of the side that has more, where there are both."""
        return max(len(self.texts), len(self.images))

    def at_most(self, count: int, seed: int) -> Examples:
        """A sample of them.

        Args:
            count: of each side, at most.
            seed: of the sampling.

        Returns:
            The same where there are no more.
        """
        texts, images = (Picked.some(side, count, seed) for side in (self.texts, self.images))
        return Examples(texts, images)


class ExampleBatches:
    """Model inputs, batch by batch; iterating again gives the same batches again.

    Texts are sorted by length, so that a batch holds little padding; they are tokenized, and images decoded,
    when their batch is reached. Where a model takes both (two towers), every batch holds texts and images,
    each spread evenly over the batches; their numbers may differ.

    Args:
        texts: examples for the tokenizer; none for a model of images.
        images: examples for the image processor, as `read_images` gives them; none for a model of text.
        tokenizer: as AutoTokenizer gives it; None without texts.
        image_processor: as AutoImageProcessor gives it; None without images.
        batch_size: texts (without texts: images) per batch, >= 1.
        max_length: tokens that a text is cut to, >= 1.
        decoder_start: token id that the decoder's input starts with; None for a model without decoder.
        as_questions: make each text a question with one choice, of shape (texts, 1, tokens).
    """

    def __init__(
        self,
        texts: Sequence[str],
        images: Sequence[Any],
        tokenizer: Any,
        image_processor: Any,
        *,
        batch_size: int,
        max_length: int,
        decoder_start: int | None = None,
        as_questions: bool = False,
    ) -> None:
        self.texts = list(texts)
        if self.texts:  # by tokens: by characters, a quarter of what the model reads would be padding
            tokens = tokenizer(self.texts, truncation=True, max_length=max_length)["input_ids"]
            order = sorted(range(len(tokens)), key=lambda index: len(tokens[index]))
            self.texts = [self.texts[index] for index in order]
        self.images = images
        self._tokenizer = tokenizer
        self._image_processor = image_processor
        self._max_length = max_length
        self._decoder_start = decoder_start
        self._as_questions = as_questions
        self._length = math.ceil((len(texts) or len(images)) / batch_size)

    def __len__(self) -> int:
        """Number of batches."""
        return self._length

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield the batches, on the CPU."""
        for number in range(self._length):
            batch: dict[str, Tensor] = {}
            if self.texts:
                batch.update(self._text_inputs(self._share(len(self.texts), number)))
            if len(self.images):
                pictures = [open_image(self.images, index) for index in self._share(len(self.images), number)]
                batch.update(self._image_inputs(pictures))
            yield batch

    def _image_inputs(self, pictures: list[Any]) -> dict[str, Tensor]:
        try:
            return dict(self._image_processor(images=pictures, return_tensors="pt"))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            sizes = sorted({picture.size for picture in pictures})
            if len(sizes) < 2 or not isinstance(error, ValueError):
                reason = str(error).strip().partition("\n")[0].partition(". ")[0] or type(error).__name__
                raise CalibrationError(
                    f"the image processor does not take what preprocessor_config.json says: {reason}"
                ) from error
            (w, h), (v, g) = sizes[0], sizes[-1]
            raise CalibrationError(
                f"the image processor leaves images as large as they are, and they differ, such as {w}x{h} "
                f"and {v}x{g}; give images of one size, or let preprocessor_config.json resize"
            ) from error

    def _share(self, count: int, number: int) -> range:
        """Indices of batch `number` when count examples are spread over all batches; at least one index."""
        start = count * number // self._length
        return range(start, max(start + 1, count * (number + 1) // self._length))

    def _text_inputs(self, indices: range) -> dict[str, Tensor]:
        # A model that is given no mask attends to its padding (SigLIP): it must see the padding that it was
        # trained with.
        masked = "attention_mask" in self._tokenizer.model_input_names
        inputs: dict[str, Tensor] = dict(
            self._tokenizer(
                self.texts[indices.start : indices.stop],
                padding=True if masked else "max_length",
                truncation=True,
                max_length=self._max_length,
                return_tensors="pt",
            )
        )
        if self._decoder_start is not None:
            # The decoder reads the same text, shifted right by its start token as in teacher forcing.
            inputs["decoder_input_ids"] = _shifted(inputs["input_ids"], self._decoder_start)
            inputs["decoder_attention_mask"] = _shifted(inputs["attention_mask"], 1)
        if self._as_questions:
            return {name: value.unsqueeze(1) for name, value in inputs.items()}
        return inputs


def load_batches(
    source: Any,
    processor: Any,
    *,
    config: Any = None,
    batch_size: int = 32,
    max_length: int = 128,
    max_examples: int = 1000,
    seed: int = 0,
) -> ExampleBatches:
    """Load calibration examples as batches that a model takes.

    Args:
        source: what `read_texts` or `read_images` takes, whichever the processor is for. A two-tower model
            (its processor has a tokenizer and an image processor) gets the default examples on the side that
            source is not for.
        processor: what AutoTokenizer, AutoImageProcessor or AutoProcessor gives for the model; it is not
            changed.
        config: the model's configuration, for its length limit and its decoder; None where neither matters.
        batch_size: examples per batch, >= 1.
        max_length: tokens per text, >= 1; less where the tokenizer or the model takes less.
        max_examples: examples used at most, >= 1; larger sources are sampled.
        seed: of the sampling.
    Returns:
        The batches; texts sorted by length.
    Raises:
        CalibrationError: a number out of its range, a processor that is neither for text nor for images, or a
            source that can't be read (see `read_texts` and `read_images`).
    Warns:
        UserWarning: the default text is not what the tokenizer was made for.
    """
    if max_examples < 1:
        raise CalibrationError(f"max_examples must be at least 1, got {max_examples}")
    if isinstance(source, str | Path):
        stage(f"Reading examples: {source}")
    tokenizer, image_processor = parts_of(processor)
    texts: Sequence[str] = []
    images: Sequence[Any] = []
    if tokenizer is not None and image_processor is not None:
        texts, images = _read_both(source, max_examples, seed)
    elif tokenizer is not None:
        texts = read_texts(source, max_examples, seed)
        if is_default(source):
            warn_of_foreign_text(tokenizer, texts)
    else:
        images = read_images(source, max_examples, seed)
    sizes = {"batch_size": batch_size, "max_length": max_length}
    return batches_of(Examples(texts, images), processor, config=config, **sizes)


def batches_of(
    examples: Examples, processor: Any, *, config: Any = None, batch_size: int = 32, max_length: int = 128
) -> ExampleBatches:
    """Batches of examples that are read already.

    Args:
        examples: at least one.
        processor: as for `load_batches`.
        config: likewise.
        batch_size: examples per batch, >= 1.
        max_length: tokens per text, >= 1; less where the tokenizer or the model takes less.

    Returns:
        The batches.

    Raises:
        CalibrationError: a number out of its range, or a processor that is neither for text nor for images.
    """
    for name, value in (("batch_size", batch_size), ("max_length", max_length)):
        if value < 1:
            raise CalibrationError(f"{name} must be at least 1, got {value}")
    tokenizer, image_processor = parts_of(processor)
    return ExampleBatches(
        examples.texts,
        examples.images,
        with_padding(tokenizer),
        image_processor,
        batch_size=batch_size,
        max_length=length_limit(max_length, tokenizer, config),
        decoder_start=decoder_start(config) if examples.texts else None,
        as_questions=asks_questions(config),
    )


def parts_of(processor: Any) -> tuple[Any, Any]:
    """Tokenizer and image processor inside a processor, None for what it lacks."""
    names = getattr(processor, "model_input_names", ())
    text, pictures = "input_ids" in names, "pixel_values" in names
    if not text and not pictures:
        raise CalibrationError(
            f"calibration data is made for text and images, but {type(processor).__name__} prepares "
            f"{', '.join(names) or 'neither'}; pass batches of model inputs instead"
        )
    return (
        getattr(processor, "tokenizer", processor) if text else None,
        getattr(processor, "image_processor", processor) if pictures else None,
    )


def _read_both(source: Any, max_examples: int, seed: int) -> tuple[Sequence[str], Sequence[Any]]:
    """Texts and images for a two-tower model; the default ones for the side that the source lacks."""
    texts, images = read_texts_and_images(source, max_examples, seed)
    return (
        read_texts(DEFAULT, max_examples, seed) if texts is None else texts,
        read_images(DEFAULT, max_examples, seed) if images is None else images,
    )


def is_default(source: Any) -> bool:
    """Whether a source is what ships with the package."""
    return isinstance(source, str) and source == DEFAULT


def _shifted(rows: Tensor, first: int) -> Tensor:
    """Rows (batch, tokens) moved right by one, with `first` put in front."""
    return torch.cat([rows.new_full((len(rows), 1), first), rows[:, :-1]], dim=1)
