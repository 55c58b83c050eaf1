"""Compare one plan for all parts with the best plan for each part alone, at equal operations.

Models are not recovered afterwards. With --speedups, models are also planned for a speed, and the speed that
planning expected stands beside the one that was measured.

Example:
    python scripts/bench_parts.py .cache/checkpoints/minilm --evaluation texts.txt --shares 0.5 --speedups 2
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from bench_planning import embeddings
from collab_hf import CollabConfig, compress_, load_batches, load_model, load_processor
from collab_hf.asked_parts import PART_NAMES
from collab_hf.errors import ConfigError

# Token embeddings are looked up, so that they can't meet a target for operations alone.
SINGLE = tuple(part for part in PART_NAMES if part != "embeddings")


@dataclass(frozen=True, eq=False)
class Task:
    """A model, what it is calibrated on, and what results are compared on."""

    original: Any
    seen: Sequence[Any]
    held: Sequence[Any]
    pooling: str
    reference: Tensor

    def cosine(self, config: CollabConfig) -> tuple[float, Any]:
        """Mean cosine of a smaller copy's embeddings to the original's, and its report."""
        model = copy.deepcopy(self.original)
        report = compress_(model, config, self.seen, progress=True)
        found = torch.cosine_similarity(embeddings(model, self.held, self.pooling), self.reference)
        return float(found.mean()), report


def by_part(task: Task, shares: Sequence[float], settings: dict[str, Any]) -> str:
    """A row for each share of the operations, and the table of them in Markdown."""
    lines = [f"| operations kept | all parts | {' | '.join(SINGLE)} |", "|---" * (len(SINGLE) + 2) + "|"]
    for share in shares:
        cells = []
        for parts in (None, *((part,) for part in SINGLE)):
            config = CollabConfig(flops=share, parts=parts, **settings)
            try:
                cosine, report = task.cosine(config)
            except ConfigError:  # the part alone can't become that small
                cells.append("-")
                continue
            cells.append(f"{cosine:.4f}")
            values = {"share": share, "parts": parts or "all", "cosine": round(cosine, 5)}
            values |= {"predicted": report.predicted_loss, "measured": report.measured_loss}
            typer.echo(json.dumps(values))
        lines.append(f"| {share} | {' | '.join(cells)} |")
    return "\n".join(lines)


def by_speed(task: Task, speedups: Sequence[float], settings: dict[str, Any]) -> str:
    """A row for each speed that is asked for, as a table in Markdown."""
    lines = ["| asked for | expected | measured | cosine |", "|---|---|---|---|"]
    for wanted in speedups:
        cosine, report = task.cosine(CollabConfig(speedup=wanted, **settings))
        expected, measured = report.whole.predicted_speedup, report.whole.measured_speedup
        lines.append(f"| {wanted} | {expected:.2f} | {measured:.2f} | {cosine:.4f} |")
    return "\n".join(lines)


def main(
    checkpoint: str,
    evaluation: Annotated[str, typer.Option(help="Text file or image folder that planning does not see.")],
    calibration: Annotated[str, typer.Option(help="As for collab-hf compress.")] = "default",
    examples: Annotated[int, typer.Option(help="Calibration examples at most.")] = 256,
    evaluated: Annotated[int, typer.Option(help="Evaluation examples at most.")] = 500,
    pooling: Annotated[str, typer.Option(help="mean or first.")] = "mean",
    shares: Annotated[list[float] | None, typer.Option(help="Of the operations; repeatable.")] = None,
    speedups: Annotated[list[float] | None, typer.Option(help="Speeds to plan for; repeatable.")] = None,
    reconstruct_steps: Annotated[int | None, typer.Option(help="0 for no reconstruction.")] = None,
    threads: Annotated[int, typer.Option(help="torch threads.")] = 1,
) -> None:
    """Print one JSON line for each model, and tables at the end."""
    torch.set_num_threads(threads)
    original, processor = load_model(checkpoint), load_processor(checkpoint)
    seen = list(load_batches(calibration, processor, config=original.config, max_examples=examples))
    held = list(load_batches(evaluation, processor, config=original.config, max_examples=evaluated, seed=1))
    task = Task(original, seen, held, pooling, embeddings(original, held, pooling))
    settings = {} if reconstruct_steps is None else {"reconstruct_steps": reconstruct_steps}
    tables = [by_part(task, shares, settings)] if shares else []
    tables += [by_speed(task, speedups, settings)] if speedups else []
    typer.echo("\n\n".join(tables))


if __name__ == "__main__":
    typer.run(main)
