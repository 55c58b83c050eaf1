"""`collab-hf verify`: whether a compressed checkpoint is complete, and how far it is from its original."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from collab_hf.cli import options
from collab_hf.cli.answers import Answer, start_reporting
from collab_hf.cli.closeness import closeness
from collab_hf.hub.source import Loading

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel

    from collab_hf.checkpoint.verification import Verification

EXAMPLE = "Example: collab-hf verify bert-quarter --against bert-base-uncased"


def verify(
    directory: options.Directory,
    against: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The original to compare outputs with.")
    ] = None,
    data: Annotated[
        str,
        typer.Option(
            metavar="FILE|FOLDER", help="Text file with one a line, or a folder of images, to compare on."
        ),
    ] = "default",
    max_examples: Annotated[
        int, typer.Option(metavar="N", min=1, help="Number of examples to compare on.")
    ] = 32,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code", help="Run the code in DIR even if no version of collab_hf had it."
        ),
    ] = False,
    device: options.Device = "cpu",
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    as_json: options.AsJson = False,
) -> Answer:
    """Check every factor of DIR, and load it in fresh processes with and without collab_hf."""
    from collab_hf.checkpoint.verification import verify_checkpoint

    start_reporting()
    loading = Loading(device=device, trust_remote_code=trust_remote_code)
    # As a path: DIR is never looked up on the Hub.
    model = loading.model(directory)
    batches = _batches(directory, model, data, max_examples, loading)
    original = None
    if against is not None:
        processor = loading.find_processor(str(directory))
        original = Loading(device=device).reference(against, model, processor)
    found = verify_checkpoint(
        directory, batches, model=model, original=original, trust_remote_code=trust_remote_code
    )
    values = {"directory": str(directory), "against": against, **asdict(found)}
    return Answer(values, _describe(found, directory, against))


def _batches(
    directory: Path, model: PreTrainedModel, data: str, max_examples: int, loading: Loading
) -> Iterable[dict[str, Tensor]]:
    """What outputs are compared on; random inputs where DIR has nothing to prepare examples with."""
    from collab_hf.calibration.examples import load_batches
    from collab_hf.host.inputs import example_inputs

    if data == "default" and loading.find_processor(str(directory)) is None:
        return [example_inputs(model, batch=min(max_examples, 4), length=16)]
    processor = loading.processor(str(directory))
    return load_batches(data, processor, config=model.config, max_examples=max_examples)


def _certified(found: Verification) -> list[str]:
    if found.moved is None:
        return []
    return [f"outputs on fixed inputs: as its report certifies, within {found.moved:.1g} of their size"]


def _describe(found: Verification, directory: Path, against: str | None) -> str:
    first = (
        f"{directory} is complete: {found.factors} factors in {found.layers} layers, all finite, "
        f"{found.qk_parameters:,} parameters"
    )
    if found.portable:
        first = (
            f"{directory} is complete: an ordinary checkpoint of {found.qk_parameters:,} finite parameters"
        )
    lines = [
        first,
        *_certified(found),
        "fresh process with collab_hf: loads, same outputs",
        "fresh process without collab_hf: "
        + (
            f"loads{' with the code of a former version' if found.former_code else ''}, same outputs"
            if found.code_loads
            else "not tried, because no version of collab_hf had its code (see --trust-remote-code)"
        ),
    ]
    if found.difference is not None:
        difference = found.difference
        lines.append(
            f"outputs against {against}: max difference {difference.maximum:.3g}, "
            f"mean {difference.mean:.3g}, relative {difference.relative:.3g}, "
            f"cosine {difference.cosine:.4f}: {closeness(difference.cosine)}"
        )
    return "\n".join(lines)
