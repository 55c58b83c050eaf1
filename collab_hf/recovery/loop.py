"""`recover_`: train a compressed model's factors against the original, without labels."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import ConfigError, RecoveryError
from ..processes import Processes
from .config import RecoveryConfig, RecoveryReport, launched_precision
from .log import RunLog, check_drawing, draw_curve, read_log
from .losses import Loss, loss_of
from .optimizer import Adam, one_cycle
from .outputs import Wanted
from .pool import BatchPool, TargetSource
from .state import fingerprint, load_state, save_state
from .trainable import attention_backend, check_teacher, only_training, trainable_parameters

# What is left of the learning rate once patience ran out before anything was gained.
_SLOWDOWN = 0.1


def recover_(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    batches: Iterable[Mapping[str, Any]],
    config: RecoveryConfig | None = None,
    *,
    held_out: Iterable[Mapping[str, Any]] | None = None,
    progress: bool = False,
) -> RecoveryReport:
    """Train a compressed model in place until it does what the original does, without labels.

    The loss compares the hidden states after every layer, and what the model is used for: its pooled
    embeddings and their similarities, or its head's predictions. Padding counts nowhere. The state with the
    least loss on the held-out batches is kept, the one it came with included, so on that data the model never
    gets worse. Training mode and requires_grad are as they were afterwards.

    Started by `accelerate launch`, each process takes its share of the rows of every batch: the same batches
    give the same result, but for rounding, on any number of processes.

    Args:
        student: a model that `compress_` compressed, or any of the teacher's depth where all of it trains.
        teacher: the original, with the same head; left as it is.
        batches: model inputs (dicts of tensors), read once and kept in memory. The similarities are those
            within a batch; batches of texts of one length spare padding.
        config: how long, how fast, and what to train.
        held_out: batches to choose the best state by, which nothing was fitted to, compression included;
            None to hold a share of `batches` out.
        progress: whether to draw a progress bar on stderr.

    Returns:
        Held-out loss and agreement before and after.

    Raises:
        FamilyError: the student has no compressed layer, and `trainable` is `factors` or `attention`.
        RecoveryError: no batches, batches that a model refuses, a teacher that does not fit the student, a
            loss that is not finite, or a state of another run in config.checkpoint_dir.
        ConfigError: a mixed precision that recovery does not run in, a plot without matplotlib, or a loss
            that nothing which trains has a part in.
    """
    config = config or RecoveryConfig()
    if config.plot is not None:
        check_drawing()
    parameters = trainable_parameters(student, config.trainable)
    check_teacher(student, teacher, config)
    pool = BatchPool(batches, config.held_out, config.seed, held_out)
    processes = Processes.launched(student.device)
    if processes.count > 1:
        student.to(processes.device)  # type: ignore[arg-type]
    teacher_device = teacher.device
    teacher.to(processes.device)  # type: ignore[arg-type]
    try:
        with (
            only_training([student, teacher], parameters),
            attention_backend([student, teacher], eager=config.weights.attention > 0),
        ):
            return _Run(student, teacher, parameters, pool, processes, config).run(progress)
    finally:
        teacher.to(teacher_device)  # type: ignore[arg-type]


class _Run:
    """One run: its weights, its data and its clock."""

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel,
        parameters: dict[str, nn.Parameter],
        pool: BatchPool,
        processes: Processes,
        config: RecoveryConfig,
    ) -> None:
        self._student, self._config, self._pool, self._processes = student, config, pool, processes
        self._parameters = parameters
        self._wanted = Wanted.by(config.weights, config.pooling, student.config, config.teacher_blocks)
        cache = config.cache_gigabytes * 1e9
        self._source = TargetSource(pool, teacher, student.dtype, self._wanted, processes, cache)
        asked = launched_precision() if config.mixed_precision == "auto" else config.mixed_precision
        self._bf16 = asked == "bf16"
        self._optimizer = Adam(parameters)
        self._step, self._seconds, self._looks, self._slowdown = 0, 0.0, 0, 1.0
        self._best: dict[str, Tensor] = {}
        self._scores: dict[str, float] = {}
        self._fingerprint = fingerprint(config, parameters, teacher, pool.batches)

    def run(self, progress: bool) -> RecoveryReport:
        """Train, and keep the best weights."""
        config, main = self._config, self._processes.is_main
        resumed = self._resume()
        total = config.total_steps
        log = RunLog(
            Path(config.log) if config.log and main else None,
            progress=progress and main,
            total=(config.minutes or 0) * 60 if total is None else total,
            unit="s" if total is None else "step",
            done=self._step,
        )
        with log.open():
            self._started = time.perf_counter() - self._seconds
            if not resumed:
                self._look(log)
            try:
                stopped = self._train(log)
            finally:  # after an error or an interruption too
                self._optimizer.set_values(self._best)
        if config.plot is not None and config.log is not None and main:
            draw_curve(read_log(Path(config.log)), Path(config.plot))
        return self._report(stopped)

    def _train(self, log: RunLog) -> Literal["finished", "early"]:
        while self._progress() < 1:
            self._update(log)
            if self._progress() * self._config.evaluations >= self._looks:
                self._look(log)
                if self._out_of_patience() and not self._slow_down():
                    return "early"
            if self._step % self._config.checkpoint_every == 0:
                self._save()
        return "finished"

    def _progress(self) -> float:
        """Share of the run that is done."""
        total = self._config.total_steps
        if total is not None:
            return self._step / total
        return min(1.0, self._seconds / (60 * (self._config.minutes or 1)))

    def _update(self, log: RunLog) -> None:
        """One update of the weights."""
        config = self._config
        rate = self._slowdown * config.learning_rate * one_cycle(self._progress(), config.warmup)
        sums: dict[str, float] = {}
        for piece in range(config.gradient_accumulation):
            loss = self._loss(self._pool.draw(self._step * config.gradient_accumulation + piece))
            if not loss.total.requires_grad:
                raise ConfigError(
                    f"nothing that trains with trainable {config.trainable!r} has a part in the loss; choose "
                    "other parameters to train or other weights of the loss"
                )
            (loss.total / config.gradient_accumulation).backward()
            for name, value in loss.terms.items():
                sums[name] = sums.get(name, 0.0) + float(value) / config.gradient_accumulation
        terms = self._sum_over_processes(sums)
        total = sum(terms.values())
        if not total < float("inf"):
            raise RecoveryError(
                f"the loss is {total} at update {self._step + 1}; "
                f"lower the learning rate of {config.learning_rate}"
            )
        self._scores["trained_loss"] = self._scores.get("trained_loss", 0.0) + total
        self._scores["trained_updates"] = self._scores.get("trained_updates", 0.0) + 1
        self._processes.sum_gradients(list(self._parameters.values()))
        self._optimizer.step(rate)
        self._step += 1
        self._seconds = self._processes.agree(time.perf_counter() - self._started)
        log.step(self._step, total, rate, self._seconds, terms)

    def _loss(self, index: int) -> Loss:
        rows, targets, length = self._source.get(index)
        with torch.autocast(self._processes.device.type, torch.bfloat16, enabled=self._bf16):
            return loss_of(
                self._student,
                rows,
                targets,
                self._wanted,
                self._config.weights,
                lambda mine: self._processes.join(mine, targets.first, length),
            )

    @torch.no_grad()
    def _look(self, log: RunLog) -> None:
        """Score the weights on the held-out batches; keep them if they are the best so far."""
        losses = [self._loss(index) for index in self._pool.held_out]
        sums = {
            "loss": sum(float(x.total) for x in losses),
            "agreement": sum(float(x.agreement) for x in losses),
        }
        found = {name: value / len(losses) for name, value in self._sum_over_processes(sums).items()}
        scores = self._scores
        if updates := scores.pop("trained_updates", 0.0):
            scores["loss_training"] = scores.pop("trained_loss") / updates
            scores["loss_last"] = found["loss"]
        if not scores:
            scores.update(loss_before=found["loss"], agreement_before=found["agreement"])
        best = not self._best or found["loss"] < scores["loss_after"]
        if best:
            self._best = self._optimizer.values()
            scores.update(
                loss_after=found["loss"],
                agreement_after=found["agreement"],
                best_step=self._step,
                best_look=self._looks,
            )
        self._looks += 1
        log.evaluation(self._step, found["loss"], found["agreement"], best)

    def _out_of_patience(self) -> bool:
        patience = self._config.patience
        return patience is not None and self._looks - 1 - self._scores["best_look"] >= patience

    def _slow_down(self) -> bool:
        """Begin again with a lower rate, once, where nothing was gained; whether that was done."""
        if self._scores["best_step"] or self._slowdown < 1:
            return False
        self._optimizer.set_values(self._best)
        self._optimizer = Adam(self._parameters)
        self._slowdown = _SLOWDOWN
        self._scores["best_look"] = self._looks - 1
        return True

    def _sum_over_processes(self, values: dict[str, float]) -> dict[str, float]:
        summed = self._processes.total(
            torch.tensor(list(values.values()), dtype=torch.float64, device=self._processes.device)
        )
        return dict(zip(values, summed.tolist(), strict=True))

    def _save(self) -> None:
        if self._config.checkpoint_dir is None:
            return
        if self._processes.is_main:
            tensors = {**self._optimizer.state(), **{f"best.{n}": t for n, t in self._best.items()}}
            where = {"step": self._step, "seconds": self._seconds, "looks": self._looks}
            values = {**where, "slowdown": self._slowdown, "scores": self._scores}
            values |= {"fingerprint": self._fingerprint, "updates": self._optimizer.updates}
            save_state(Path(self._config.checkpoint_dir), self._step, tensors, values)
        self._processes.wait()

    def _resume(self) -> bool:
        """Go on from the newest state, if there is one."""
        if self._config.checkpoint_dir is None or not self._config.resume:
            return False
        found = load_state(Path(self._config.checkpoint_dir), self._fingerprint)
        if found is None:
            return False
        tensors, values = found
        self._step, self._seconds = values["step"], values["seconds"]
        self._looks, self._scores = values["looks"], values["scores"]
        self._slowdown = values["slowdown"]
        self._optimizer.set_state(tensors, values["updates"])
        device = self._processes.device
        self._best = {name: tensors[f"best.{name}"].to(device) for name in self._parameters}
        return True

    def _report(self, stopped: Literal["finished", "early"]) -> RecoveryReport:
        scores = self._scores
        return RecoveryReport(
            steps=self._step,
            seconds=self._seconds,
            best_step=int(scores["best_step"]),
            loss_before=scores["loss_before"],
            loss_after=scores["loss_after"],
            agreement_before=scores["agreement_before"],
            agreement_after=scores["agreement_after"],
            loss_training=scores.get("loss_training"),
            loss_last=scores.get("loss_last"),
            examples=self._pool.examples(self._pool.training),
            held_out_examples=self._pool.examples(self._pool.held_out),
            trained_parameters=sum(p.numel() for p in self._parameters.values()),
            stopped=stopped,
            config=self._config,
        )
