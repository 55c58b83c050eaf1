r"""Compare whole-model compression of a sentence encoder with other ways to make it faster or smaller.

Every model that is trained at all gets the same updates on the same unlabelled text. Quality is Spearman's
correlation on pairs with scores and the mean cosine of embeddings to the original's, on those pairs and on
other text. Times are taken in turns with the original. Peers whose packages are missing are left out:
`pip install torch-pruning 'model2vec[distill]' onnx onnxruntime onnxscript` brings them all.

Example:
    python scripts/bench_model.py .cache/checkpoints/minilm --out runs --calibration sentences.txt \
        --pairs stsb_dev.tsv --texts other.txt
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from safetensors.torch import load_model as load_weights
from safetensors.torch import save_model

from collab_hf import (
    CollabConfig,
    RecoveryConfig,
    compress_checkpoint,
    load_model,
    load_processor,
    recover_,
)
from collab_hf.calibration.pools import Pools, read_pools
from collab_hf.checkpoint.onnx import export_onnx
from collab_hf.errors import ConfigError
from collab_hf.measure.bench import Case, compare_all
from collab_hf.measure.tables import read_scores
from collab_hf.surgery.reading import recovery_batches
from model_peers import GraphPeer, Peer, TorchPeer, magnitude_pruned, static_model

CASES = tuple((batch, length) for batch in (1, 32) for length in (32, 128))
# Recovery of models that other methods made: all weights, at the rate that whole models of ours are given.
RATE = 0.004


@dataclass(frozen=True)
class Run:
    """What is asked for.

    Attributes:
        checkpoint: the original.
        out: where models are kept; those that are there are not made again.
        calibration: text without labels.
        steps: updates of every recovery.
        threads: of torch and of ONNX Runtime.
    """

    checkpoint: Path
    out: Path
    calibration: str
    steps: int
    threads: int

    @cached_property
    def original(self) -> Any:
        """The dense model."""
        return load_model(self.checkpoint)

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return load_processor(self.checkpoint)

    def compressed(self, name: str, **target: Any) -> Peer | None:
        """A checkpoint by `compress_checkpoint`; None where its parts can't meet the target."""
        place = self.out / name
        try:
            if not place.exists():
                compress_checkpoint(
                    str(self.checkpoint),
                    place,
                    CollabConfig(**target),
                    calibration=self.calibration,
                    recovery=RecoveryConfig(steps=self.steps),
                )
        except ConfigError as error:
            typer.echo(f"{name} is left out: {error}", err=True)
            return None
        return self._torch(place)

    def trained(self, name: str, model: Any) -> Peer:
        """A model that another method made smaller, recovered on the same text."""
        file = self.out / f"{name}.safetensors"
        if not file.exists():
            settings = RecoveryConfig(steps=self.steps, learning_rate=RATE, trainable="all")
            training, held_out = recovery_batches(self._pools, model, self.tokenizer)
            recover_(model, self.original, training, settings, held_out=held_out)
            save_model(model, str(file))
        load_weights(model, str(file))
        return TorchPeer(model, self.tokenizer, file.stat().st_size)

    def graph(self, name: str, model: Any) -> Peer:
        """A model as an int8 graph."""
        file = self.out / f"{name}.onnx"
        if not file.exists():
            export_onnx(model, file, int8=True)
        return GraphPeer(file, self.tokenizer, self.original.config, self.threads)

    def _torch(self, place: Path) -> TorchPeer:
        size = sum(file.stat().st_size for file in place.glob("*.safetensors"))
        return TorchPeer(load_model(place), self.tokenizer, size)

    @cached_property
    def _pools(self) -> Pools:
        """What `compress_checkpoint` reads, so that all train on the same text and are judged by the same."""
        return read_pools(self.calibration, self.tokenizer)


def peers(run: Run, shares: Sequence[float], sizes: Sequence[str]) -> Iterator[tuple[str, Peer]]:
    """Models by name, made as they are asked for; those whose packages are missing are left out."""
    yield "original", TorchPeer(run.original, run.tokenizer, _bytes(run.original))
    targets: dict[str, dict[str, Any]] = {f"operations {share:g}": {"flops": share} for share in shares}
    targets |= {f"size {size}": {"size": size} for size in sizes}
    others: dict[str, dict[str, Any]] = {}
    for share in shares:
        others[f"portable {share:g}"] = {"flops": share, "portable": True}
        others[f"layers dropped {share:g}"] = {"flops": share, "portable": True, "parts": ("blocks",)}
    for name, target in {**targets, **others}.items():
        if (made := run.compressed(name, **target)) is not None:
            yield name, made
    for share in shares:
        if (pruned := magnitude_pruned(run.original, share)) is not None:
            name = f"Torch-Pruning by magnitude {share:g}"
            yield name, run.trained(name, pruned)
    yield "original, int8", run.graph("original", run.original)
    for name in targets:
        yield f"{name}, int8", run.graph(name, load_model(run.out / name))
    if (static := static_model(run.original, run.tokenizer)) is not None:
        yield "model2vec", static


def _bytes(model: Any) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


@dataclass(frozen=True)
class Texts:
    """What quality is measured on, with the original's embeddings of it.

    Attributes:
        pairs: sentence pairs.
        scores: what people gave them.
        others: other text.
        references: the original's embeddings of the sentences of the pairs, and of the other text.
    """

    pairs: Sequence[tuple[str, str]]
    scores: Sequence[float]
    others: Sequence[str]
    references: tuple[Any, Any]

    @classmethod
    def read(cls, original: Peer, pairs: Path, others: Path, count: int) -> Texts:
        """From files."""
        given, scores = read_scores(pairs)
        lines = [line.split("\t")[0].strip() for line in others.read_text(encoding="utf-8").splitlines()]
        lines = list(dict.fromkeys(line for line in lines if line))
        # Spread over the file, which may be sorted.
        chosen = np.linspace(0, len(lines) - 1, min(count, len(lines))).round().astype(int)
        few = [lines[i] for i in chosen]
        return cls(given, scores, few, (original.embed(_sentences(given)), original.embed(few)))

    def figures(self, peer: Peer) -> dict[str, float]:
        """Spearman's correlation with the scores, and mean cosines to the original's embeddings."""
        from scipy.stats import spearmanr

        sentences = _sentences(self.pairs)
        found, others = peer.embed(sentences), peer.embed(self.others)
        row = {text: number for number, text in enumerate(sentences)}
        first, second = (found[[row[pair[side].strip()] for pair in self.pairs]] for side in (0, 1))
        values = {"spearman": float(spearmanr(_cosines(first, second), self.scores).statistic)}
        if found.shape == self.references[0].shape:  # a static model has a space of its own
            values["cosine on the pairs"] = float(_cosines(found, self.references[0]).mean())
            values["cosine on other text"] = float(_cosines(others, self.references[1]).mean())
        return values


def _sentences(pairs: Sequence[tuple[str, str]]) -> list[str]:
    return sorted({text.strip() for pair in pairs for text in pair})


def _cosines(first: Any, second: Any) -> Any:
    sizes = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    return (first * second).sum(-1) / np.maximum(sizes, 1e-12)


def times(found: Mapping[str, Peer], seconds: float, threads: int) -> dict[str, dict[str, float]]:
    """Time of every model over the original's, by batch size and length."""
    ratios: dict[str, dict[str, float]] = {name: {} for name in found}
    for batch, length in CASES:
        case = Case(batch, length, threads=threads)
        calls = {name: call for name, peer in found.items() if (call := peer.call(case)) is not None}
        before = calls.pop("original")
        for name, timing in compare_all(before, calls, seconds=seconds).items():
            ratios[name][f"{batch} x {length}"] = timing.latency.median
            typer.echo(
                json.dumps({"model": name, "case": f"{batch} x {length}", "time": str(timing.latency)})
            )
    return ratios


def table(rows: Mapping[str, dict[str, Any]]) -> str:
    """All figures in Markdown."""
    cases = [f"{batch} x {length}" for batch, length in CASES]
    columns = ["weights (MB)", "spearman", "cosine on the pairs", "cosine on other text", *cases]
    lines = ["| model | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        cells = [
            "" if row.get(column) is None else f"{row[column]:.{_DIGITS.get(column, 2)}f}"
            for column in columns
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


_LABELS = {"operations": "all parts (--flops)", "size": "all parts (--size)"}

_DIGITS = {"weights (MB)": 1, "spearman": 4, "cosine on the pairs": 3, "cosine on other text": 3}


def draw(rows: Mapping[str, dict[str, Any]], file: Path) -> None:
    """Quality over measured speed, at the last case; the same rows give the same file."""
    import matplotlib
    from matplotlib.figure import Figure

    batch, length = CASES[-1]
    case = f"{batch} x {length}"
    figure = Figure(figsize=(7.0, 4.0), layout="constrained")
    axes = figure.add_subplot()
    groups: dict[str, list[tuple[float, float]]] = {}
    best = rows["original"]["spearman"]
    for name, row in rows.items():
        time_over = 1.0 if name == "original" else row.get(case)
        if time_over is not None:
            label = "original" if name.startswith("original") else name.rstrip("0123456789.MBint, ")
            label = _LABELS.get(label, label) + ", int8" * name.endswith("int8")
            groups.setdefault(label, []).append((1 / time_over, 100 * row["spearman"] / best))
    for label, points in groups.items():
        speeds, worths = zip(*sorted(points), strict=True)
        axes.plot(speeds, worths, marker="o", label=label)
    axes.set_xlabel(f"times as fast as the original (batch of {batch}, {length} tokens)")
    axes.set_ylabel("Spearman (% of the original)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    with matplotlib.rc_context({"svg.hashsalt": "collab_hf", "svg.fonttype": "none"}):
        figure.savefig(file, metadata={"Date": None})


def main(
    checkpoint: Path,
    pairs: Annotated[Path, typer.Option(help="Pairs with scores: sentence1, sentence2, score.")],
    texts: Annotated[Path, typer.Option(help="Other text, one a line; what follows a tab is not read.")],
    out: Annotated[Path, typer.Option(help="Where models are kept, and results.json and model.svg go.")],
    calibration: Annotated[str, typer.Option(help="Text without labels, one a line.")] = "default",
    shares: Annotated[list[float], typer.Option(help="Of the operations; repeatable.")] = [0.5, 1 / 3, 0.2],  # noqa: B006
    sizes: Annotated[list[str], typer.Option(help="Of the weights, such as 31MB; repeatable.")] = [],  # noqa: B006
    steps: Annotated[int, typer.Option(help="Updates of every recovery.")] = 600,
    seconds: Annotated[
        float, typer.Option(help="About how long each model is timed a case; 0 for no times.")
    ] = 3.0,
    threads: Annotated[int, typer.Option(help="Of torch and of ONNX Runtime.")] = 2,
    count: Annotated[int, typer.Option(help="Lines of other text at most.")] = 1000,
) -> None:
    """Make the models, and print their figures as JSON lines and as a table."""
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    run = Run(checkpoint, out, calibration, steps, threads)
    found: dict[str, Peer] = {}
    rows: dict[str, dict[str, Any]] = {}
    quality: Texts | None = None
    for name, peer in peers(run, shares, sizes):
        quality = quality or Texts.read(peer, pairs, texts, count)
        found[name] = peer
        rows[name] = {"weights (MB)": peer.size / 1e6, **quality.figures(peer)}
        typer.echo(json.dumps({"model": name, "cpu_seconds": round(time.process_time()), **rows[name]}))
    if seconds:
        for name, ratios in times(found, seconds, threads).items():
            rows[name].update(ratios)
    (out / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    typer.echo(table(rows))
    if seconds:
        draw(rows, out / "model.svg")


if __name__ == "__main__":
    typer.run(main)
