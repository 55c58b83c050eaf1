"""`collab-hf inspect`: what there is to gain, before anything is compressed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from collab_hf.asked_parts import PART_NAMES
from collab_hf.cli import options
from collab_hf.cli.answers import Answer, start_reporting
from collab_hf.hub.source import Loading
from collab_hf.layout import table
from collab_hf.modeling.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from collab_hf.measure.inspection import Inspection, LayerInspection
    from collab_hf.planning.redundancy import SiteRedundancy

EXAMPLE = "Example: collab-hf inspect bert-base-uncased --html bert.html"


def inspect(
    model: options.Model,
    calibration: Annotated[
        str,
        typer.Option(
            metavar="FILE|FOLDER|DATASET|none",
            help="Examples of what the model reads. `default` takes those that ship with the package; `none` "
            "uses the weights alone.",
        ),
    ] = "default",
    calibration_examples: Annotated[
        int, typer.Option(metavar="N", min=1, help="Use at most N calibration examples.")
    ] = 256,
    parts: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Also measure what the output loses by part and layer: all, or some of "
            f"{', '.join(PART_NAMES)}, with commas. This takes as long as planning.",
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a report with plots, as one file that opens offline."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing FILE.")] = False,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    revision: options.Revision = None,
    subfolder: options.Subfolder = "",
    token: options.Token = None,
    trust_remote_code: options.TrustRemoteCode = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    as_json: options.AsJson = False,
) -> Answer:
    """Show what every attention layer could give up: spectra, similar heads, errors by rank, and costs."""
    asked = _asked_parts(parts, calibration)
    if html is not None and html.exists() and not overwrite:
        raise ConfigError(f"{html} exists; choose another file or pass --overwrite")
    if html is not None:
        from collab_hf.measure.inspection_html import require_plots

        require_plots()
    from collab_hf.calibration.examples import load_batches
    from collab_hf.measure.inspection import inspect_model
    from collab_hf.recipe import NO_CALIBRATION, public_name

    watched = start_reporting()
    loading = Loading(dtype, device, revision, subfolder, token, trust_remote_code)
    loaded = loading.model(model)
    batches = None
    if calibration != NO_CALIBRATION:
        processor = loading.processor(model)
        batches = load_batches(
            calibration, processor, config=loaded.config, max_examples=calibration_examples
        )
    found = inspect_model(loaded, batches, name=public_name(model), progress=watched)
    values, text = found.to_dict(), describe(found)
    by_part: dict[str, list[float | None]] | None = None
    if asked is not None and batches is not None:
        from collab_hf.planning.redundancy import inspect_parts

        rows = inspect_parts(loaded, batches, asked, progress=watched)
        values["parts"] = [row.to_dict() for row in rows]
        text += f"\n\n{describe_parts(rows)}"
        by_part = {row.part: [] for row in rows}
        for row in rows:
            by_part[row.part].append(row.losses.get(0.5))
    if html is not None:
        from collab_hf.measure.inspection_html import render

        html.write_text(render(found, by_part), encoding="utf-8")
        text += f"\nwrote {html}"
    return Answer(values, text)


def _asked_parts(parts: str | None, calibration: str) -> list[str] | None:
    if parts is None:
        return None
    if calibration == "none":
        raise ConfigError("--parts measures on examples: leave out --calibration none")
    names = list(PART_NAMES) if parts == "all" else [part.strip() for part in parts.split(",")]
    if unknown := [name for name in names if name not in PART_NAMES]:
        raise ConfigError(f"--parts must be all or some of {', '.join(PART_NAMES)}, got {unknown[0]!r}")
    return names


def describe_parts(rows: Sequence[SiteRedundancy]) -> str:
    """A table for people of what each part of each layer could give up.

    Args:
        rows: part by part.

    Returns:
        Lines without a newline at the end.
    """
    from collab_hf.planning.redundancy import SHARES

    header = ["part", "layer", "parameters", *(f"keep {share:g}" for share in SHARES)]
    cells = [
        [row.part, row.name, f"{row.parameters:,}"]
        + [f"{row.losses[share]:.5f}" if share in row.losses else "-" for share in SHARES]
        for row in rows
    ]
    note = "keep: divergence of the output with that share of one part in one layer, before any recovery"
    return "\n".join([table(header, cells), "", note])


def describe(found: Inspection) -> str:
    """A table for people.

    Args:
        found: the layers.

    Returns:
        Lines without a newline at the end.
    """
    header = [
        "layer",
        "heads",
        "95% of a head",
        "of all, shared",
        "most similar heads",
        "1/2",
        "1/4",
        "1/8",
        "1/16",
    ]
    metric = "calibration data" if found.layers[0].data is not None else "weights"
    return "\n".join(
        [
            table(header, [_row(layer) for layer in found.layers]),
            "",
            f"95%: directions that hold it, in {metric}: for one head (mean), for all heads in one key basis",
            "1/2 to 1/16: least relative error at that share of the query/key parameters, and its form",
            f"query/key: {found.qk_parameters:,} of {found.parameters:,} parameters",
        ]
    )


def _row(layer: LayerInspection) -> list[str]:
    spectra = layer.data or layer.weights
    alone, together = spectra.dimensions()
    pairs = [abs(v) for i, row in enumerate(spectra.similarity) for j, v in enumerate(row) if i != j]
    cells = {s: f"{offer.error:.3f} {offer.plan.form.label(offer.plan)}" for s, offer in layer.offers.items()}
    return [
        layer.name,
        str(layer.shape.num_heads),
        f"{alone:.1f}",
        str(together),
        f"{max(pairs, default=0.0):.2f}",
        *(cells.get(share, "-") for share in (0.5, 0.25, 0.125, 0.0625)),
    ]
