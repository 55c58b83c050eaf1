"""Options that the commands about heads share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable

Calibration = Annotated[
    str,
    typer.Option(
        metavar="FILE|FOLDER|DATASET|default",
        help="Unlabelled examples of what the model reads; `default` takes those of the package.",
    ),
]
Examples = Annotated[int, typer.Option(metavar="N", min=1, help="Use at most N examples.")]
Attention = Annotated[
    str,
    typer.Option(
        metavar="KINDS",
        help="Layers to use, with commas: self, cross, encoder, decoder, text, vision, or several joined by "
        "`-`, such as decoder-cross.  [default: all]",
    ),
]
Plot = Annotated[
    Path | None, typer.Option(metavar="FILE.png", help="Draw a map of all heads (needs matplotlib).")
]
Seed = Annotated[int, typer.Option(metavar="N", help="Seed of every random choice.")]


def example_batches(source: str, model: Any, processor: Any, examples: int, seed: int) -> Iterable[Any]:
    """Batches of what a user named.

    Args:
        source: as for `load_batches`.
        model: that reads them.
        processor: its tokenizer or image processor.
        examples: at most.
        seed: of the sampling.

    Returns:
        The batches.
    """
    from collab_hf.calibration.examples import load_batches

    return load_batches(source, processor, config=model.config, max_examples=examples, seed=seed)


def kinds(attention: str) -> tuple[str, ...]:
    """Kinds of attention as a user wrote them; none for the empty text."""
    from collab_hf.modeling.kinds import checked_kinds

    return checked_kinds(attention) if attention else ()
