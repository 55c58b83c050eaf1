"""Rows of the token embedding that a corpus never uses dropped, and the tokenizer rebuilt without them."""

from .tokenizer import write_tokenizer
from .trim import TrimmedVocabulary, VocabularyReport, trim_vocabulary_

__all__ = ["TrimmedVocabulary", "VocabularyReport", "trim_vocabulary_", "write_tokenizer"]
