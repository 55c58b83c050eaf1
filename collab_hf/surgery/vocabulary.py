"""The part that goes before all others: rows of the token embedding that a corpus never uses."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..calibration.sources import read_texts
from ..config import CollabConfig
from ..errors import ConfigError
from ..parts.vocabulary import VocabularyReport, check_tokenizer, trim_vocabulary_, write_tokenizer
from ..recipe import public_source
from .report import CompressionReport


@dataclass(frozen=True)
class Trimming:
    """A vocabulary that is to be trimmed: tokenizer and corpus are known to do.

    Attributes:
        processor: the original's tokenizer, or a processor that holds one.
        texts: the corpus.
    """

    processor: Any
    texts: list[str]

    @classmethod
    def prepare(cls, config: CollabConfig, read_processor: Callable[[], Any]) -> Trimming:
        """Read the corpus and look at the tokenizer, before any work.

        Args:
            config: settings with the part vocabulary.
            read_processor: loads the model's tokenizer.

        Returns:
            What is to be done.

        Raises:
            ConfigError: a tokenizer that can't be trimmed.
            CalibrationError: a corpus that can't be read or is empty.
        """
        processor = read_processor()
        check_tokenizer(_tokenizer(processor))
        # All of it: a token that a sample lacks would be gone.
        return cls(processor, read_texts(config.vocabulary_from, sys.maxsize, config.seed))

    def trim_(self, model: PreTrainedModel) -> Trimmed:
        """Drop the rows, in place.

        Args:
            model: the dense model.

        Returns:
            The new processor, and what was done.
        """
        found = trim_vocabulary_(model, _tokenizer(self.processor), self.texts)
        if _tokenizer(self.processor) is self.processor:
            return Trimmed(found.tokenizer, found.report)
        processor = copy.copy(self.processor)
        processor.tokenizer = found.tokenizer
        return Trimmed(processor, found.report)


@dataclass(frozen=True)
class Trimmed:
    """A vocabulary that was trimmed.

    Attributes:
        processor: what reads for the model from now on.
        report: what was done.
    """

    processor: Any
    report: VocabularyReport

    def write(self, directory: Path) -> None:
        """Save the new tokenizer over the original's files.

        Args:
            directory: of the checkpoint.
        """
        write_tokenizer(_tokenizer(self.processor), directory)


def _tokenizer(processor: Any) -> Any:
    return getattr(processor, "tokenizer", processor)


def check_no_recovery(asked: Any) -> None:
    """Refuse recovery where there is nothing to recover.

    Args:
        asked: whether recovery was asked for.

    Raises:
        ConfigError: it was.
    """
    if asked:
        raise ConfigError(
            "recovery has nothing to train where the vocabulary alone becomes smaller: leave it out"
        )


def without_vocabulary(config: CollabConfig) -> CollabConfig:
    """Settings for what comes after trimming.

    Args:
        config: settings that may have the part vocabulary.

    Returns:
        The same without it.
    """
    if config.vocabulary_from is None:
        return config
    return replace(config, parts=config.planned_parts or None, vocabulary_from=None)


def trimmed_alone(
    model: PreTrainedModel, config: CollabConfig, report: VocabularyReport
) -> CompressionReport:
    """The report on a model whose vocabulary was trimmed and nothing else.

    Args:
        model: the trimmed model.
        config: the settings.
        report: on the vocabulary.

    Returns:
        The report.
    """
    after = sum(p.numel() for p in model.parameters())
    return CompressionReport((), report.parameters_before, after, False, config)


def completed(
    report: CompressionReport, model: PreTrainedModel, config: CollabConfig, trimmed: Trimmed | None
) -> CompressionReport:
    """A report that also says what was trimmed, and whether the checkpoint is of the host's own class.

    Args:
        report: on what came after trimming.
        model: the model as it is to be saved.
        config: the settings that were asked for.
        trimmed: the vocabulary, where it was trimmed.

    Returns:
        The report; its settings give the same again, and name no local path.
    """
    plans = {} if report.whole is None else report.whole.plans
    ours = getattr(model.config, "collab", None) or (any(plans.values()) and not config.portable)
    values: Mapping[str, Any] = {"portable": not ours}
    if trimmed is None:
        return replace(report, **values)
    named = public_source(str(config.vocabulary_from))
    return replace(
        report,
        parameters_before=trimmed.report.parameters_before,
        config=replace(report.config, parts=config.parts, vocabulary_from=named),
        vocabulary=trimmed.report,
        **values,
    )
