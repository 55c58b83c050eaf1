"""Measure what calibration data does to a model: narrow or broad, alone or mixed with what ships.

One row a run goes to stdout as soon as it is measured; `--heal-steps` adds recovery on the same data.

Example:
    python scripts/bench_calibration.py .cache/checkpoints/minilm --data DATA --rows captions,captions-mixed
    python scripts/bench_calibration.py .cache/checkpoints/dinov2-small --data DATA --rows photographs,default
"""

import random
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor
from transformers import PreTrainedModel

from collab_hf import CollabConfig, RecoveryConfig, compress_checkpoint, load_batches, load_model
from collab_hf.checkpoint.load import load_processor
from collab_hf.measure.evaluation import measure_agreement, measure_similarity
from collab_hf.measure.tables import read_scores
from collab_hf.recipe import SHIPPED_SHARE
from quality_tasks import read_pictures

# Pairs at the head of the training file whose sentences are captions of videos and images.
CAPTION_PAIRS = 2000
# Pictures that the probe trains on, and is tested on, at most.
PROBE = (4000, 5000)

Figures = dict[str, str]


def sentences(path: Path, pairs: int | None = None) -> list[str]:
    """Each sentence of a file of pairs once."""
    lines = path.read_text(encoding="utf-8").splitlines()[1:][:pairs]
    return list(dict.fromkeys(text for line in lines for text in line.split("\t")[:2]))


def first_column(path: Path, count: int) -> list[str]:
    """The first lines of a table, each once."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return list(dict.fromkeys(line.split("\t")[0].strip() for line in lines))[1 : count + 1]


class Texts:
    """STS-B as a whole, and cosines with the original on it and on text of two other kinds.

    Args:
        checkpoint: of a sentence encoder.
        data: directory with stsb_train.tsv, stsb_dev.tsv, agnews_dev.tsv and sst2_dev.tsv.
        examples: for calibration.
    """

    def __init__(self, checkpoint: Path, data: Path, examples: int) -> None:
        self._original, self._tokenizer = load_model(checkpoint), load_processor(checkpoint)
        self._pairs, self._scores = read_scores(data / "stsb_dev.tsv")
        other = {name: first_column(data / f"{name}_dev.tsv", 1000) for name in ("agnews", "sst2")}
        self._texts = {"stsb": sentences(data / "stsb_dev.tsv"), **other}
        every = sentences(data / "stsb_train.tsv")
        draw = random.Random(0)
        captions = draw.sample(sentences(data / "stsb_train.tsv", CAPTION_PAIRS), examples)
        like = draw.sample(every, examples)
        self.rows: dict[str, tuple[Any, float]] = {
            "captions": (captions, 0.0),
            "captions-mixed": (captions, SHIPPED_SHARE),
            "few-captions": (captions[: examples // 10], 0.0),
            "few-captions-mixed": (captions[: examples // 10], SHIPPED_SHARE),
            "default": ("default", 0.0),
            "like-the-test": (like, 0.0),
            "like-the-test-mixed": (like, SHIPPED_SHARE),
            "all-like-the-test-mixed": (every, SHIPPED_SHARE),
        }
        self._spearman = self._measured(self._original)

    def _measured(self, model: PreTrainedModel) -> float:
        return measure_similarity(model, self._tokenizer, self._pairs, self._scores).spearman

    def __call__(self, model: PreTrainedModel) -> Figures:
        """Figures of a model."""
        found = self._measured(model)
        figures = {"spearman": f"{100 * found:.2f}", "relative": f"{found / self._spearman:.1%}"}
        for name, texts in self._texts.items():
            batches = load_batches(texts, self._tokenizer, config=model.config, max_examples=len(texts))
            figures[name] = f"{measure_agreement(model, self._original, batches).mean_cosine:.4f}"
        return figures


class Pictures:
    """A probe on small pictures of another size than those that calibrate, against the original's own probe.

    Args:
        checkpoint: of an image encoder.
        data: directory with images/, cifar10_train.npz and cifar10_dev.npz.
    """

    def __init__(self, checkpoint: Path, data: Path) -> None:
        folder = str(data / "images")
        self.rows: dict[str, tuple[Any, float]] = {"photographs": (folder, 0.0), "default": ("default", 0.0)}
        names = ("cifar10_train.npz", "cifar10_dev.npz")
        self._sets = [read_pictures(data / name, count) for name, count in zip(names, PROBE, strict=True)]
        self._right, self._states = self._probed(load_model(checkpoint))

    @torch.inference_mode()
    def _features(self, model: PreTrainedModel, pictures: Tensor) -> Tensor:
        states = [model.base_model(pixel_values=part).last_hidden_state for part in pictures.split(64)]
        return F.normalize(torch.cat([torch.cat([s[:, 0], s[:, 1:].mean(1)], dim=1) for s in states]))

    def _probed(self, model: PreTrainedModel) -> tuple[np.ndarray[Any, Any], Tensor]:
        from sklearn.linear_model import LogisticRegression

        (train, labels), (test, truth) = [(self._features(model, x), y) for x, y in self._sets]
        scale = train.std(0)
        probe = LogisticRegression(C=0.01, max_iter=300).fit((train / scale).numpy(), labels)
        return (probe.predict((test / scale).numpy()) == truth).astype(float), test

    def __call__(self, model: PreTrainedModel) -> Figures:
        """Figures of a model."""
        right, states = self._probed(model)
        difference = 100 * (right - self._right)
        return {
            "probe": f"{100 * right.mean():.2f}",
            "difference": f"{difference.mean():+.2f}",
            "standard error": f"{difference.std() / len(difference) ** 0.5:.2f}",
            "cosine": f"{F.cosine_similarity(states, self._states).mean():.4f}",
        }


def measured(
    checkpoint: Path, row: tuple[Any, float], config: CollabConfig, steps: int, examples: int
) -> tuple[PreTrainedModel, Figures]:
    """Compress as the command does, and load the result."""
    source, share = row
    healing: dict[str, Any] = {"recovery": RecoveryConfig(steps=steps)} if steps else {}
    with tempfile.TemporaryDirectory() as scratch:
        done = compress_checkpoint(
            str(checkpoint),
            Path(scratch) / "small",
            config,
            calibration=source,
            calibration_examples=examples,
            shipped_share=share,
            **healing,
        )
        model = load_model(done.directory)
    if done.recovery is None:
        return model, {}
    found = done.recovery
    loss = f"{found.loss_before:.4f} -> {found.loss_after:.4f}"
    return model, {"updates": f"{found.best_step} of {found.steps}", "held-out loss": loss}


def main(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="minilm or dinov2-small.")],
    data: Annotated[Path, typer.Option(metavar="DIR", help="Tables of sentences, or pictures.")],
    rows: Annotated[str, typer.Option(metavar="LIST", help="Names of rows, with commas.")],
    budget: Annotated[float, typer.Option(metavar="F")] = 0.25,
    method: Annotated[str, typer.Option(metavar="METHOD")] = "auto",
    reconstruct_steps: Annotated[int, typer.Option(metavar="N")] = CollabConfig().reconstruct_steps,
    heal_steps: Annotated[int, typer.Option(metavar="N")] = 0,
    examples: Annotated[int, typer.Option(metavar="N")] = 1000,
) -> None:
    """Measure some rows."""
    pictured = "pixel_values" in load_processor(checkpoint).model_input_names
    task = Pictures(checkpoint, data) if pictured else Texts(checkpoint, data, examples)
    config = CollabConfig(method=method, budget=budget, reconstruct_steps=reconstruct_steps)
    for name in rows.split(","):
        model, more = measured(checkpoint, task.rows[name], config, heal_steps, examples)
        figures = {"row": name, **task(model), **more}
        typer.echo("| " + " | ".join(f"{key} {value}" for key, value in figures.items()) + " |")


if __name__ == "__main__":
    typer.run(main)
