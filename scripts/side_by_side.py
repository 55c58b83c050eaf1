"""A compressed checkpoint beside its original, on a few sentences or images: what `gradio_demo.py` shows."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from collab_hf import CollabConfig, CollabError, CompressionReport, compress_checkpoint
from collab_hf.calibration.default_images import default_images
from collab_hf.calibration.examples import Examples, batches_of, parts_of
from collab_hf.calibration.sources import open_image
from collab_hf.host.inputs import pool, usual_pooling
from collab_hf.host.states import last_hidden_states
from collab_hf.hub.source import Loading
from collab_hf.progress import Listener, heard_by, stage
from collab_hf.recipe import DEFAULT_EXAMPLES, public_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LAYER_COLUMNS = ["layer", "method", "rank", "relative error", "Q/K before", "Q/K after"]
SHIPPED_IMAGES = 6
# Characters of a sentence on an axis; longer ones leave no room for the maps.
_LABEL_WIDTH = 30


@dataclass(frozen=True)
class Asked:
    """What is to be done.

    Attributes:
        name: Hub id or local directory of a model of text or of images.
        method: `auto`, `cp`, `tucker` or `svd`.
        budget: share of the query/key parameters to keep at most, in (0, 1].
        calibration_examples: examples, of those that ship with the package, that are used at most.
    """

    name: str
    method: str = "auto"
    budget: float = 0.25
    calibration_examples: int = DEFAULT_EXAMPLES

    @property
    def title(self) -> str:
        """Name of the directory that is made."""
        return f"{public_name(self.name).rpartition('/')[2]}-collab"

    @property
    def command(self) -> str:
        """The command that makes the same directory."""
        options = ["-o", self.title, "--method", self.method, "--budget", f"{self.budget:g}"]
        examples = ["--calibration-examples", str(self.calibration_examples)]
        return shlex.join(["collab-hf", "compress", self.name, *options, *examples])


@dataclass(frozen=True, eq=False)
class Comparison:
    """What the page shows.

    Attributes:
        summary: Markdown.
        layers: one row a layer, under `LAYER_COLUMNS`.
        errors: relative error by layer.
        similarities: cosines between the examples, original and compressed side by side.
        pictures: the images with their names; none for a model of text.
        archive: the compressed checkpoint, a zip file with one directory in it.
    """

    summary: str
    layers: list[list[Any]]
    errors: Figure
    similarities: Figure
    pictures: list[tuple[Any, str]]
    archive: Path


@dataclass(frozen=True, eq=False)
class _Compared:
    """The examples that both models read: a name and a batch of one for each."""

    names: list[str]
    inputs: list[dict[str, Tensor]]
    pictures: list[tuple[Any, str]]


@lru_cache(maxsize=2)
def load(name: str) -> tuple[PreTrainedModel, Any]:
    """Load a model and its tokenizer or image processor, once.

    Args:
        name: Hub id or local directory.

    Returns:
        The original in float32, not to be changed, and what prepares its inputs.

    Raises:
        CollabError: the checkpoint can't be loaded, has no tokenizer or image processor, or reads both texts
            and images.
    """
    loading = Loading("float32")
    processor, model = loading.processor(name), loading.model(name)
    if all(getattr(model.config, f"{tower}_config", None) is not None for tower in ("text", "vision")):
        raise CollabError(f"{name} reads both texts and images; the page compares models of one of them")
    return model, processor


def compare(
    asked: Asked, sentences: Sequence[str], images: Sequence[str], folder: Path, listener: Listener
) -> Comparison:
    """Compress a checkpoint and compare it with its original.

    Args:
        asked: what to do.
        sentences: at least two, for a model of text.
        images: files, at least two, for a model of images; none for `SHIPPED_IMAGES` of those that ship.
        folder: where the zip file is written.
        listener: is told what goes on.

    Returns:
        Text, tables, figures and the checkpoint.

    Raises:
        CollabError: settings or a model that can't be compressed, an image that can't be read, or fewer than
            two examples.
    """
    with heard_by(listener), TemporaryDirectory(dir=folder) as scratch:
        original, processor = load(asked.name)
        compared = _read(processor, original.config, sentences, images)
        settings: Any = {"method": asked.method, "budget": asked.budget}
        done = compress_checkpoint(
            asked.name,
            Path(scratch) / asked.title,
            CollabConfig(**settings),
            calibration_examples=asked.calibration_examples,
            progress=True,
        )
        stage("Comparing")
        compressed = Loading("float32").model(done.directory)
        before, after = (embed(model, compared.inputs) for model in (original, compressed))
        stage("Packing")
        archive = shutil.make_archive(str(folder / asked.title), "zip", scratch, asked.title)
    return Comparison(
        _summary(asked, done.report, torch.cosine_similarity(before, after).mean().item()),
        _rows(done.report),
        plot_errors(done.report),
        plot_similarities(before, after, compared.names),
        compared.pictures,
        Path(archive),
    )


def _read(processor: Any, config: Any, sentences: Sequence[str], images: Sequence[str]) -> _Compared:
    tokenizer, _ = parts_of(processor)
    pictures: list[tuple[Any, str]] = []
    if tokenizer is not None:
        kind, names, examples = "sentences", list(sentences), [Examples(texts=[text]) for text in sentences]
    else:
        kind, names = "images", [Path(file).stem for file in images]
        opened = [open_image([Path(file) for file in images], index) for index in range(len(images))]
        if not images:
            names = [f"image {number}" for number in range(1, SHIPPED_IMAGES + 1)]
            opened = list(default_images(SHIPPED_IMAGES))
        pictures = list(zip(opened, names, strict=True))
        examples = [Examples(images=[picture]) for picture in opened]
    if len(names) < 2:
        raise CollabError(f"a comparison needs at least two {kind}, got {len(names)}")
    # One by one: batches would sort texts by length.
    inputs = [next(iter(batches_of(example, processor, config=config))) for example in examples]
    return _Compared(names, inputs, pictures)


@torch.inference_mode()
def embed(model: PreTrainedModel, inputs: Sequence[dict[str, Tensor]]) -> Tensor:
    """Embeddings as models without a head are used: the mean over tokens, of images the first state.

    Args:
        model: with or without a head, in eval mode.
        inputs: batches of one example each.

    Returns:
        One row an example, (num_examples, hidden_size).
    """
    pooling = usual_pooling(model.config)
    return torch.cat([pool(*last_hidden_states(model, batch)[0], pooling) for batch in inputs])


def _rows(report: CompressionReport) -> list[list[Any]]:
    return [
        [
            layer.name,
            layer.method,
            layer.rank,
            round(layer.relative_error, 4),
            layer.qk_parameters_before,
            layer.qk_parameters_after,
        ]
        for layer in report.layers
    ]


def _summary(asked: Asked, report: CompressionReport, agreement: float) -> str:
    before, after = report.qk_parameters_before, report.qk_parameters_after
    return (
        f"**{after / before:.1%}** of the query/key parameters kept ({before:,} → {after:,}); all parameters "
        f"went from {report.parameters_before:,} to {report.parameters_after:,}. Mean cosine of these "
        f"embeddings to the original's: **{agreement:.4f}**.\n\n"
        f"The same checkpoint by the command:\n\n    {asked.command}\n"
    )


def plot_errors(report: CompressionReport) -> Figure:
    """Relative error by layer.

    Args:
        report: what compression returned.

    Returns:
        A figure that belongs to no window.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3), layout="tight")
    axes = figure.subplots()
    axes.bar(range(len(report.layers)), [layer.relative_error for layer in report.layers])
    axes.set(xlabel="layer", ylabel="relative error", title="Score tensors on calibration data")
    return figure


def plot_similarities(before: Tensor, after: Tensor, names: Sequence[str]) -> Figure:
    """Cosines between examples, for two models.

    Args:
        before: embeddings of the original, one row an example.
        after: embeddings of the compressed model.
        names: of the examples, for the axes; the ends of long ones are left out.

    Returns:
        A figure with two heat maps.
    """
    from matplotlib.figure import Figure

    labels = [n if len(n) <= _LABEL_WIDTH else f"{n[: _LABEL_WIDTH - 1]}…" for n in names]
    figure = Figure(figsize=(10, 5), layout="constrained")
    maps = figure.subplots(1, 2, sharey=True)
    for axes, title, vectors in zip(maps, ("original", "compressed"), (before, after), strict=True):
        cosines = torch.nn.functional.cosine_similarity(vectors[:, None], vectors[None], dim=-1)
        axes.imshow(cosines.numpy(), vmin=-0.2, vmax=1, cmap="viridis")
        axes.set_title(title)
        # Sentences with prices are no formulas.
        as_text: dict[str, Any] = {"labels": labels, "fontsize": 8, "parse_math": False}
        axes.set_xticks(range(len(labels)), rotation=40, ha="right", rotation_mode="anchor", **as_text)
        axes.set_yticks(range(len(labels)), **as_text)
        for row, values in enumerate(cosines.tolist()):
            for column, value in enumerate(values):
                color = "black" if value > 0.6 else "white"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=color)
    return figure
