"""From calibration examples to batches of model inputs."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CalibrationError
from ..progress import stage
from .sources import DEFAULT, open_image, read_images, read_texts

# Of the default text's characters, the tokenizer of minilm keeps all, one for reactions (SMILES) 0.29, one
# for proteins 0.02.
_KEPT_BY_TEXT_TOKENIZERS = 0.5
# Enough to tell: the first 64 of the default texts give the same share within 0.02.
_TEXTS_LOOKED_AT = 64


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
        except ValueError as error:
            sizes = sorted({picture.size for picture in pictures})
            if len(sizes) < 2:
                raise
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
    for name, value in (
        ("batch_size", batch_size),
        ("max_length", max_length),
        ("max_examples", max_examples),
    ):
        if value < 1:
            raise CalibrationError(f"{name} must be at least 1, got {value}")
    if isinstance(source, str | Path):
        stage(f"Reading examples: {source}")
    tokenizer, image_processor = _parts(processor)
    texts: Sequence[str] = []
    images: Sequence[Any] = []
    if tokenizer is not None and image_processor is not None:
        texts, images = _read_both(source, max_examples, seed)
    elif tokenizer is not None:
        texts = read_texts(source, max_examples, seed)
        if isinstance(source, str) and source == DEFAULT:
            _warn_of_foreign_text(tokenizer, texts[:_TEXTS_LOOKED_AT])
    else:
        images = read_images(source, max_examples, seed)
    return ExampleBatches(
        texts,
        images,
        _with_padding(tokenizer),
        image_processor,
        batch_size=batch_size,
        max_length=_length_limit(max_length, tokenizer, config),
        decoder_start=_decoder_start(config) if texts else None,
        as_questions=_asks_questions(config),
    )


def _parts(processor: Any) -> tuple[Any, Any]:
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
    try:
        texts = read_texts(source, max_examples, seed)
    except CalibrationError:
        return read_texts(DEFAULT, max_examples, seed), read_images(source, max_examples, seed)
    try:
        return texts, read_images(source, max_examples, seed)
    except CalibrationError:
        return texts, read_images(DEFAULT, max_examples, seed)


def _warn_of_foreign_text(tokenizer: Any, texts: Sequence[str]) -> None:
    """Warn where the tokens do not spell the texts.

    Neither unknown tokens nor characters per token would tell: a SMILES tokenizer drops what it doesn't know.
    """
    ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    kept = sum(_letters(tokenizer.decode(row, skip_special_tokens=True)) for row in ids)
    share = kept / sum(map(_letters, texts))
    if share < _KEPT_BY_TEXT_TOKENIZERS:
        warnings.warn(
            f"the default text does not suit this model: its tokenizer keeps {share:.0%} of the "
            "characters; give examples of your own, with --calibration or --data on the command line",
            stacklevel=3,
        )


def _letters(text: str) -> int:
    return len("".join(text.split()))


def _with_padding(tokenizer: Any) -> Any:
    """The tokenizer, or where it has no padding token (GPT-2) a copy that pads with its end-of-text token."""
    if tokenizer is None or tokenizer.pad_token is not None:
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token  # masked, so any token will do
    return tokenizer


def _length_limit(max_length: int, tokenizer: Any, config: Any) -> int:
    """max_length, or less where the tokenizer or the position embeddings end earlier."""
    limits = [max_length, getattr(tokenizer, "model_max_length", max_length)]
    if config is not None:
        positions = getattr(config.get_text_config(), "max_position_embeddings", None)
        if positions is not None:
            limits.append(positions - 2)  # RoBERTa and its kin number positions from padding_idx + 1 = 2
    return max(1, min(limits))


def _asks_questions(config: Any) -> bool:
    """Whether the model is for multiple choice, and reads several texts for each example."""
    names = getattr(config, "architectures", None) or [""]
    return str(names[0]).endswith("ForMultipleChoice")


def _decoder_start(config: Any) -> int | None:
    """First token of the decoder's input, None for a model without decoder."""
    if not getattr(config, "is_encoder_decoder", False):
        return None
    start = getattr(config, "decoder_start_token_id", None)
    if start is None:
        raise CalibrationError(
            "an encoder-decoder model needs decoder_start_token_id in its configuration to be calibrated on "
            "plain text; set it, or pass batches of model inputs"
        )
    return int(start)


def _shifted(rows: Tensor, first: int) -> Tensor:
    """Rows (batch, tokens) moved right by one, with `first` put in front."""
    return torch.cat([rows.new_full((len(rows), 1), first), rows[:, :-1]], dim=1)
