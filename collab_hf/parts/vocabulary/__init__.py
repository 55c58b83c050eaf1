"""Rows of the token embedding that a corpus never uses dropped, and the tokenizer rebuilt without them."""

from .tokenizer import write_tokenizer
from .trim import TrimmedVocabulary, VocabularyReport, check_tokenizer, trim_like_, trim_vocabulary_

__all__ = [
    "TrimmedVocabulary",
    "VocabularyReport",
    "check_tokenizer",
    "trim_like_",
    "trim_vocabulary_",
    "write_tokenizer",
]
