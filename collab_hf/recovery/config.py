"""What recovery is asked to do, and what it reports."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from ..layout import changed_repr
from ..modeling.errors import ConfigError
from ..ranges import check_above, check_kind, check_seed, check_whole, is_number, is_whole

Trainable = Literal["factors", "attention", "blocks", "all"]
Pooling = Literal["auto", "mean", "cls", "none"]
Precision = Literal["auto", "no", "bf16"]

# Steps where neither steps nor minutes are given.
DEFAULT_STEPS = 400


def states_beside(output: Path) -> Path:
    """Where the states of a recovery are kept until its output is written."""
    output = output.absolute()
    return output.parent / f".{output.name}.recovery"


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms of the loss; a term of weight 0 is not computed.

    Attributes:
        hidden: relative squared error of the hidden states, mean over layers.
        embedding: 1 - cosine between the pooled embeddings of student and teacher (models without a head).
        similarity: mean squared error of the cosines between all pairs of a batch (models without a head).
        logits: Kullback-Leibler divergence of the student's predictions (models with a head).
        attention: Kullback-Leibler divergence of the attention weights; needs the eager backend, which is
            slower, and is used for the time of the recovery.
    """

    hidden: float = 1.0
    embedding: float = 1.0
    similarity: float = 10.0
    logits: float = 1.0
    attention: float = 0.0

    __repr__ = changed_repr

    def __post_init__(self) -> None:
        """Refuse weights that leave nothing to learn from."""
        for item in fields(self):
            weight = getattr(self, item.name)
            if not is_number(weight) or weight < 0:
                raise ConfigError(f"the loss weight {item.name} must be at least 0, got {weight!r}")
        if not any(asdict(self).values()):
            raise ConfigError("at least one loss weight must be above 0")


@dataclass(frozen=True)
class RecoveryConfig:
    """How `recover_` trains.

    Attributes:
        steps: updates of the weights; 400 where minutes is not given either.
        minutes: time to train for instead of steps; the learning rate follows the clock.
        learning_rate: peak of the one-cycle schedule, relative to the root mean square that each tensor has
            at the start. Where patience runs out before anything was gained, training begins again, once,
            with a tenth of the rate.
        warmup: share of the run until the peak, in [0, 1).
        trainable: `factors` (shared query/key weights, mixing and biases), `attention` (everything in the
            compressed attention modules), `blocks` (everything in the layers around them), or `all`.
        weights: of the terms of the loss.
        teacher_blocks: where the student has fewer layers, for each of them the number of the teacher's layer
            whose output it is to give; none for all, in order.
        pooling: how a model without a head is used: `mean` of its last hidden states, its first token
            (`cls`), `none`, or `auto`: the first token of images, else the mean.
        held_out: share of the batches that are kept back to choose the best state by, in (0, 1), where none
            are given for that.
        evaluations: how often the held-out batches are looked at, spread evenly over the run, >= 1.
        patience: stop after this many evaluations in a row without a better held-out loss, by default half
            of them; None to train to the end.
        gradient_accumulation: batches per update, >= 1.
        mixed_precision: `no`, `bf16`, or `auto`: what accelerate was launched with.
        cache_gigabytes: memory for the teacher's outputs, so that it runs once per batch, >= 0.
        seed: of the order of the batches.
        checkpoint_dir: where to keep states to resume from; None to keep none.
        checkpoint_every: updates between two states.
        resume: whether to continue from a state in checkpoint_dir, if there is one.
        log: file for one JSON object per update and evaluation; None for none.
        plot: PNG for the curve of the losses, drawn at the end (needs matplotlib); None for none.

    Raises:
        ConfigError: a value out of its range, or both steps and minutes.
    """

    steps: int | None = None
    minutes: float | None = None
    learning_rate: float = 0.01
    warmup: float = 0.1
    trainable: Trainable = "factors"
    weights: LossWeights = field(default_factory=LossWeights)
    teacher_blocks: tuple[int, ...] = ()
    pooling: Pooling = "auto"
    held_out: float = 0.03
    evaluations: int = 8
    patience: int | None = 4
    gradient_accumulation: int = 1
    mixed_precision: Precision = "auto"
    cache_gigabytes: float = 2.0
    seed: int = 0
    checkpoint_dir: Path | str | None = None
    checkpoint_every: int = 100
    resume: bool = True
    log: Path | str | None = None
    plot: Path | str | None = None

    __repr__ = changed_repr

    def __post_init__(self) -> None:
        """Refuse values out of their range."""
        if self.steps is not None and self.minutes is not None:
            raise ConfigError("give recovery steps or minutes, not both")
        if self.plot is not None and self.log is None:
            raise ConfigError("plot draws the curve from the log, so it needs log too")
        self._check_kinds()
        self._check_ranges()
        if self.teacher_blocks and self.weights.attention:
            raise ConfigError("attention weights can't be compared where layers were dropped; leave them out")
        for name, allowed in (
            ("trainable", get_args(Trainable)),
            ("pooling", get_args(Pooling)),
            ("mixed_precision", get_args(Precision)),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")

    def _check_kinds(self) -> None:
        if not isinstance(self.weights, LossWeights):
            raise ConfigError(f"weights must be LossWeights, got {self.weights!r}")
        blocks = self.teacher_blocks
        if not isinstance(blocks, list | tuple) or not all(is_whole(number, 0) for number in blocks):
            raise ConfigError(f"teacher_blocks must be whole numbers of at least 0, got {blocks!r}")
        check_kind("resume", self.resume, bool)
        for name in ("checkpoint_dir", "log", "plot"):
            if not isinstance(getattr(self, name), str | Path | None):
                raise ConfigError(f"{name} must be a path, got {getattr(self, name)!r}")

    def _check_ranges(self) -> None:
        for name in ("steps", "evaluations", "gradient_accumulation", "checkpoint_every", "patience"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name))
        for name in ("minutes", "learning_rate"):
            if getattr(self, name) is not None:
                check_above(name, getattr(self, name))
        check_seed(self.seed)
        if not is_number(self.warmup) or not 0 <= self.warmup < 1:
            raise ConfigError(f"warmup must be in [0, 1), the share of the run, got {self.warmup!r}")
        if not is_number(self.held_out) or not 0 < self.held_out < 1:
            raise ConfigError(f"held_out must be in (0, 1), the share of the batches, got {self.held_out!r}")
        if not is_number(self.cache_gigabytes) or self.cache_gigabytes < 0:
            raise ConfigError(f"cache_gigabytes must be at least 0, got {self.cache_gigabytes!r}")

    @property
    def total_steps(self) -> int | None:
        """Updates of the run, or None where the clock ends it."""
        return (self.steps or DEFAULT_STEPS) if self.minutes is None else None

    def to_dict(self) -> dict[str, Any]:
        """What decides about the result, as plain values."""
        local = ("checkpoint_dir", "checkpoint_every", "resume", "log", "plot", "cache_gigabytes")
        return {name: value for name, value in asdict(self).items() if name not in local}


@dataclass(frozen=True)
class RecoveryReport:
    """What `recover_` did.

    Attributes:
        steps: updates that were made.
        seconds: training time, evaluations included.
        best_step: the update whose weights were kept; 0 where the model was left as it came.
        loss_before: held-out loss at the start.
        loss_after: held-out loss of the weights that were kept; never more than before.
        agreement_before: with the teacher on the held-out batches, 1 for equal: the mean cosine of the
            embeddings, or the share of equal predictions of a head.
        agreement_after: the same at the end.
        loss_training: on what trained, mean of the updates before the last evaluation; None without any.
        loss_last: held-out loss at the last evaluation; likewise.
        examples: that trained.
        held_out_examples: that judged.
        trained_parameters: numbers that were trained.
        stopped: `finished`, or `early` where patience ran out.
        config: the settings.
    """

    steps: int
    seconds: float
    best_step: int
    loss_before: float
    loss_after: float
    agreement_before: float
    agreement_after: float
    loss_training: float | None
    loss_last: float | None
    examples: int
    held_out_examples: int
    trained_parameters: int
    stopped: Literal["finished", "early"]
    config: RecoveryConfig = field(default_factory=RecoveryConfig)

    @property
    def memorised(self) -> bool:
        """Whether the last weights did better on what trained than on what was held out."""
        if self.loss_training is None or self.loss_last is None:
            return False
        return self.loss_training < self.loss_last

    @property
    def examples_wanted(self) -> int | None:
        """How many examples would have to train for the last held-out loss to fall below that at the start.

        The loss is L - c / n on the n examples that train, and L + c / n on others, as of a least squares fit
        with few parameters; None where even endless examples would not do, or where it fell.
        """
        if not self.memorised or self.loss_training is None or self.loss_last is None:
            return None
        best, memory = (self.loss_last + self.loss_training) / 2, (self.loss_last - self.loss_training) / 2
        if not best < self.loss_before < self.loss_last:
            return None
        return math.ceil(self.examples * memory / (self.loss_before - best))

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON."""
        return {**{f.name: getattr(self, f.name) for f in fields(self)}, "config": self.config.to_dict()}


def launched_precision() -> str:
    """The mixed precision that `accelerate launch` asks for.

    Returns:
        `no` or `bf16`.

    Raises:
        ConfigError: it asks for another one.
    """
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("no", "bf16"):
        raise ConfigError(
            f"recovery runs in mixed precision no or bf16, accelerate was launched with {asked}"
        )
    return asked
