"""A tokenizer with fewer pieces, made from its own files."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from ...errors import ConfigError
from .pieces import always_kept, check_kind, pieces_of_unknown, trimmed_model, vocabulary, with_parts

# Texts encoded at a time.
_CHUNK = 4096
# Vocabularies in forms that tokenizer.json makes needless; beside a trimmed one they would have old ids.
_OLD_FORMS = (
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "added_tokens.json",
)


class Pieces:
    """What a tokenizer's pieces are, and which of them a corpus needs.

    Args:
        tokenizer: a transformers tokenizer with a tokenizer.json.

    Raises:
        ConfigError: it has none, or its model is unknown here.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not isinstance(tokenizer, PreTrainedTokenizerBase) or not getattr(tokenizer, "is_fast", False):
            raise ConfigError(
                "trimming a vocabulary needs a tokenizer with a tokenizer.json (a fast one), "
                f"got {type(tokenizer).__name__}"
            )
        self.tokenizer = tokenizer
        self.backend = plain_backend(tokenizer)
        self.spec: dict[str, Any] = json.loads(self.backend.to_str())
        check_kind(self.spec["model"])

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return 1 + max([*vocabulary(self.spec["model"]).values(), *self._added()])

    def of_texts(self, texts: Sequence[str]) -> set[int]:
        """Ids that texts give, with those that words unknown as a whole begin with.

        Args:
            texts: the corpus.

        Returns:
            Ids.
        """
        model = self.spec["model"]
        unknown = vocabulary(model).get(model.get("unk_token") or "")
        found: set[int] = set()
        for text, encoding in zip(texts, encodings(self.backend, texts), strict=True):
            found.update(encoding.ids)
            if model["type"] != "WordPiece" or unknown not in encoding.ids:
                continue
            for number, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
                if number == unknown:
                    found.update(pieces_of_unknown(self._normalised(text[start:end]), model))
        return found

    def kept(self, used: set[int]) -> list[int]:
        """Ids that stay.

        Args:
            used: by a corpus.

        Returns:
            Them, those that always stay, and those that others are built from; ascending.
        """
        byte_level = '"ByteLevel"' in json.dumps([self.spec["pre_tokenizer"], self.spec["normalizer"]])
        fixed = always_kept(self.spec["model"], byte_level)
        specials = {number for number in self.tokenizer.all_special_ids if number is not None}
        return sorted(with_parts(self.spec["model"], used | fixed) | self._added() | specials)

    def trimmed(self, new_ids: Mapping[int, int]) -> PreTrainedTokenizerBase:
        """The tokenizer without the pieces that go.

        Args:
            new_ids: the new id of every id that stays, in the order of the old ones.

        Returns:
            A new tokenizer of the same class, with the same settings.

        Raises:
            ConfigError: the new tokenizer numbers its pieces otherwise.
        """
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            self.tokenizer.save_pretrained(folder)
            for name in _OLD_FORMS:
                (folder / name).unlink(missing_ok=True)
            file = folder / "tokenizer.json"
            spec = _renumbered(json.loads(file.read_text(encoding="utf-8")), new_ids)
            file.write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")
            _renumber_settings(folder / "tokenizer_config.json", new_ids)
            made: PreTrainedTokenizerBase = type(self.tokenizer).from_pretrained(folder)
        for name in ("name_or_path", "padding_side", "truncation_side", "model_max_length"):
            setattr(made, name, getattr(self.tokenizer, name))  # may have been set since it was loaded
        names = {number: piece for piece, number in self.backend.get_vocab(with_added_tokens=True).items()}
        found = made.get_vocab()
        wrong = [names[old] for old, new in new_ids.items() if old in names and found.get(names[old]) != new]
        if wrong or len(found) > len(new_ids):
            raise ConfigError(
                f"{type(self.tokenizer).__name__} numbers its pieces in an order of its own, so that its "
                f"vocabulary can't be trimmed ({wrong[0] if wrong else 'it adds pieces when it loads'})"
            )
        return made

    def _added(self) -> set[int]:
        return {entry["id"] for entry in self.spec["added_tokens"]}

    def _normalised(self, text: str) -> str:
        normalizer = self.backend.normalizer
        return text if normalizer is None else str(normalizer.normalize_str(text))


def plain_backend(tokenizer: Any) -> Tokenizer:
    """A copy of the tokenizer underneath that neither truncates nor pads.

    Args:
        tokenizer: a fast transformers tokenizer.

    Returns:
        The copy.
    """
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    return backend


def encodings(backend: Tokenizer, texts: Sequence[str]) -> Iterator[Any]:
    """Encode texts, some thousand at a time.

    Args:
        backend: a tokenizer.
        texts: any number of them.

    Yields:
        Encodings, special tokens included.
    """
    for start in range(0, len(texts), _CHUNK):
        yield from backend.encode_batch(list(texts[start : start + _CHUNK]))


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Save a trimmed tokenizer, and remove files beside it that still have the old vocabulary.

    Args:
        tokenizer: as `trim_vocabulary_` gave it.
        directory: a checkpoint, such as a sentence-transformers directory.
    """
    written = {Path(file).name for file in tokenizer.save_pretrained(directory)}
    for name in _OLD_FORMS:
        if name not in written:
            (directory / name).unlink(missing_ok=True)


def _renumbered(spec: dict[str, Any], new_ids: Mapping[int, int]) -> dict[str, Any]:
    spec = {**spec, "model": trimmed_model(spec["model"], new_ids)}
    spec["added_tokens"] = [{**entry, "id": new_ids[entry["id"]]} for entry in spec["added_tokens"]]
    if spec.get("padding"):
        spec["padding"] = {**spec["padding"], "pad_id": new_ids[spec["padding"]["pad_id"]]}
    _renumber_post_processor_(spec["post_processor"] or {}, new_ids)
    return spec


def _renumber_post_processor_(processor: dict[str, Any], new_ids: Mapping[int, int]) -> None:
    """Special tokens that are put around a text: of a template, of BERT's or RoBERTa's form, or in a list."""
    for inner in processor.get("processors", ()):
        _renumber_post_processor_(inner, new_ids)
    for token in processor.get("special_tokens", {}).values():
        token["ids"] = [new_ids[number] for number in token["ids"]]
    for name in ("sep", "cls"):
        if name in processor:
            piece, number = processor[name]
            processor[name] = [piece, new_ids[number]]


def _renumber_settings(file: Path, new_ids: Mapping[int, int]) -> None:
    settings = json.loads(file.read_text(encoding="utf-8"))
    added = settings.get("added_tokens_decoder")
    if added:
        settings["added_tokens_decoder"] = {str(new_ids[int(old)]): entry for old, entry in added.items()}
        file.write_text(json.dumps(settings, indent=2, ensure_ascii=False), encoding="utf-8")
