"""A page in the browser that compresses a model of text or of images, and shows it beside the original.

Example:
    pip install '.[demo]'
    python scripts/gradio_demo.py --model sentence-transformers/all-MiniLM-L6-v2
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from collab_hf import CollabError
from side_by_side import LAYER_COLUMNS, Asked, compare

SENTENCES = [
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "The girl is carrying a baby.",
    "A man is riding a horse.",
    "Two men pushed carts through the woods.",
    "A cheetah is running behind its prey.",
]
# The command takes 1000 by default; so many take a minute or two of a laptop's time.
CALIBRATION_TEXTS = 128
# Seconds: how often gradio looks at its copies of the zip files, and how old one may be.
_DELETE_COPIES = (3600, 86400)


def build_page(model: str, folder: Path) -> Any:
    """Lay out the page.

    Args:
        model: what stands in the name field at first.
        folder: where checkpoints are written before gradio copies them.

    Returns:
        A gradio Blocks.
    """
    import gradio

    def answer(
        name: str, method: str, budget: float, examples: float, text: str, images: Sequence[str] | None
    ) -> tuple[Any, ...]:
        shown = gradio.Progress()

        def listener(title: str, done: float, total: float | None) -> None:
            words = title.partition(f" {folder}")[0]  # where scratch files lie says nothing to a reader
            shown(0.0 if total is None else (int(done), int(total)), desc=words)

        sentences = [line.strip() for line in text.splitlines() if line.strip()]
        try:
            asked = Asked(name, method, budget, int(examples))
            found = compare(asked, sentences, images or [], folder, listener)
        except CollabError as error:
            raise gradio.Error(str(error), print_exception=False) from error
        return (
            found.summary,
            str(found.archive),
            found.similarities,
            found.pictures,
            found.errors,
            found.layers,
        )

    with gradio.Blocks(title="collab_hf", delete_cache=_DELETE_COPIES) as page:
        gradio.Markdown("# collab_hf\nA smaller attention, beside the original.")
        with gradio.Row():
            name = gradio.Textbox(model, label="Model of text or of images: Hub id or directory")
            method = gradio.Dropdown(["auto", "tucker", "cp", "svd"], value="auto", label="Method")
            budget = gradio.Slider(0.05, 1.0, value=0.25, step=0.05, label="Query/key parameters to keep")
            examples = gradio.Slider(
                32, 1000, value=CALIBRATION_TEXTS, step=1, label="Calibration examples, of those that ship"
            )
        with gradio.Row():
            text = gradio.Textbox("\n".join(SENTENCES), lines=6, label="To compare: sentences, one a line")
            images = gradio.File(
                file_count="multiple", file_types=["image"], label="Or images; none for some that ship"
            )
        button = gradio.Button("Compress and compare", variant="primary")
        summary = gradio.Markdown()
        archive = gradio.File(label="The compressed checkpoint", interactive=False)
        similarities = gradio.Plot(label="Similarities")
        pictures = gradio.Gallery(label="The images", columns=6, height=180)
        with gradio.Row():
            errors = gradio.Plot(label="Errors")
            layers = gradio.Dataframe(headers=LAYER_COLUMNS, label="Layers")
        # One run at a time, gradio's default: its memory is that of two models.
        button.click(
            answer,
            [name, method, budget, examples, text, images],
            [summary, archive, similarities, pictures, errors, layers],
            api_name="compare",
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
    with TemporaryDirectory() as folder:
        build_page(model, Path(folder)).launch(server_name="127.0.0.1", server_port=port)


if __name__ == "__main__":
    typer.run(main)
