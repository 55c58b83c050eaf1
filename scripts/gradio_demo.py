"""A page in the browser that compresses a text encoder, plots it, and compares it with the original.

Example:
    pip install '.[demo]'
    python scripts/gradio_demo.py --model sentence-transformers/all-MiniLM-L6-v2
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from collab_hf import CollabConfig, CollabError, CompressionReport, compress_, load_model
from collab_hf.calibration.examples import load_batches
from collab_hf.checkpoint.load import load_processor
from collab_hf.host.inputs import pool

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SENTENCES = [
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "The girl is carrying a baby.",
    "A man is riding a horse.",
    "Two men pushed carts through the woods.",
    "A cheetah is running behind its prey.",
]
LAYER_COLUMNS = ["layer", "method", "rank", "relative error", "Q/K before", "Q/K after"]
CALIBRATION_TEXTS = 128


@dataclass(frozen=True, eq=False)
class Comparison:
    """What the page shows.

    Attributes:
        summary: one paragraph of Markdown.
        layers: one row a layer, under `LAYER_COLUMNS`.
        errors: relative error by layer.
        similarities: cosines between the sentences, original and compressed side by side.
    """

    summary: str
    layers: list[list[Any]]
    errors: Figure
    similarities: Figure


@lru_cache(maxsize=2)
def load(name: str) -> tuple[PreTrainedModel, Any]:
    """Load a model and its tokenizer, once.

    Args:
        name: Hub id or local directory.

    Returns:
        The original, not to be changed, and the tokenizer.

    Raises:
        CollabError: the checkpoint can't be loaded or has no tokenizer.
    """
    model, tokenizer = load_model(name, dtype=torch.float32), load_processor(name)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise CollabError(f"{name} has no tokenizer; the page compares text encoders")
    return model, tokenizer


def compare(name: str, method: str, budget: float, sentences: list[str]) -> Comparison:
    """Compress a model and compare it with itself on sentences.

    Args:
        name: Hub id or local directory of a text encoder.
        method: `auto`, `cp`, `tucker` or `svd`.
        budget: share of the query/key parameters to keep at most.
        sentences: at least two.

    Returns:
        Tables and figures.

    Raises:
        CollabError: settings or a model that can't be compressed, or fewer than two sentences.
    """
    if len(sentences) < 2:
        raise CollabError(f"a comparison needs at least two sentences, got {len(sentences)}")
    original, tokenizer = load(name)
    batches = load_batches("default", tokenizer, config=original.config, max_examples=CALIBRATION_TEXTS)
    compressed = copy.deepcopy(original)
    settings: Any = {"method": method, "budget": budget}
    report = compress_(compressed, CollabConfig(**settings), batches)
    before, after = (embed(model, tokenizer, sentences) for model in (original, compressed))
    agreement = torch.cosine_similarity(before, after).mean().item()
    rows = [
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
    summary = (
        f"**{report.qk_parameters_after / report.qk_parameters_before:.1%}** of the query/key parameters "
        f"kept ({report.qk_parameters_before:,} → {report.qk_parameters_after:,}); the whole model went from "
        f"{report.parameters_before:,} to {report.parameters_after:,}. Mean cosine of these sentences' "
        f"embeddings to the original's: **{agreement:.4f}**."
    )
    return Comparison(summary, rows, plot_errors(report), plot_similarities(before, after))


def embed(model: PreTrainedModel, tokenizer: Any, sentences: list[str]) -> Tensor:
    """Mean of the last hidden states.

    Args:
        model: a text encoder, with or without a head.
        tokenizer: its tokenizer.
        sentences: what to embed.

    Returns:
        One row a sentence.
    """
    batch = tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        states = model.base_model(**batch).last_hidden_state
    return pool(states, batch["attention_mask"])


def plot_errors(report: CompressionReport) -> Figure:
    """Relative error by layer.

    Args:
        report: what `compress_` returned.

    Returns:
        A figure that belongs to no window.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3), layout="tight")
    axes = figure.subplots()
    axes.bar(range(len(report.layers)), [layer.relative_error for layer in report.layers])
    axes.set(xlabel="layer", ylabel="relative error", title="Score tensors on calibration data")
    return figure


def plot_similarities(before: Tensor, after: Tensor) -> Figure:
    """Cosines between sentences, for two models.

    Args:
        before: embeddings of the original, one row a sentence.
        after: embeddings of the compressed model.

    Returns:
        A figure with two heat maps.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="tight")
    for axes, title, vectors in zip(
        figure.subplots(1, 2), ("original", "compressed"), (before, after), strict=True
    ):
        cosines = torch.nn.functional.cosine_similarity(vectors[:, None], vectors[None], dim=-1)
        axes.imshow(cosines.numpy(), vmin=-0.2, vmax=1, cmap="viridis")
        axes.set(title=title, xlabel="sentence", ylabel="sentence")
        for row, values in enumerate(cosines.tolist()):
            for column, value in enumerate(values):
                color = "black" if value > 0.6 else "white"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=color)
    return figure


def build_page(model: str) -> Any:
    """Lay out the page.

    Args:
        model: what stands in the name field at first.

    Returns:
        A gradio Blocks.
    """
    import gradio

    def answer(name: str, method: str, budget: float, text: str) -> tuple[Any, ...]:
        try:
            found = compare(name, method, budget, [line for line in text.splitlines() if line.strip()])
        except CollabError as error:
            raise gradio.Error(str(error)) from error
        return found.summary, found.layers, found.errors, found.similarities

    with gradio.Blocks(title="collab_hf") as page:
        gradio.Markdown("# collab_hf\nA smaller attention, beside the original.")
        with gradio.Row():
            name = gradio.Textbox(model, label="Model: Hub id or directory")
            method = gradio.Dropdown(["auto", "tucker", "cp", "svd"], value="auto", label="Method")
            budget = gradio.Slider(0.05, 1.0, value=0.25, step=0.05, label="Query/key parameters to keep")
        text = gradio.Textbox("\n".join(SENTENCES), lines=6, label="Sentences, one a line")
        button = gradio.Button("Compress and compare", variant="primary")
        summary = gradio.Markdown()
        similarities = gradio.Plot(label="Similarities")
        with gradio.Row():
            errors = gradio.Plot(label="Errors")
            layers = gradio.Dataframe(headers=LAYER_COLUMNS, label="Layers")
        button.click(
            answer, [name, method, budget, text], [summary, layers, errors, similarities], api_name="compare"
        )
    return page


def main(
    model: Annotated[
        str, typer.Option(help="Model to start with.")
    ] = "sentence-transformers/all-MiniLM-L6-v2",
    port: Annotated[int, typer.Option(help="Port on this machine.")] = 7860,
) -> None:
    """Serve the page on this machine.

    Args:
        model: what stands in the name field at first.
        port: where to listen.
    """
    build_page(model).launch(server_name="127.0.0.1", server_port=port)


if __name__ == "__main__":
    typer.run(main)
