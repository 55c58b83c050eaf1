"""`collab-hf heads prune`: a checkpoint without some of its heads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from collab_hf.cli import options
from collab_hf.cli.answers import Answer, start_reporting
from collab_hf.cli.head_options import Attention, Calibration, Examples, Seed, kinds
from collab_hf.errors import ConfigError
from collab_hf.hub.source import Loading
from collab_hf.layout import table
from collab_hf.ranges import check_seed, check_share

if TYPE_CHECKING:
    from collab_hf.modeling.shrinking import HeadsPlan

EXAMPLE = "Example: collab-hf heads prune bert-base-uncased -o bert-pruned --share 0.3"


def prune(
    model: options.Model,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Directory for the result; if anything fails, it does not appear.",
        ),
    ],
    share: Annotated[float, typer.Option(metavar="F", help="Share of all heads to remove, between 0 and 1.")],
    by: Annotated[
        Literal["compensated", "importance", "random", "reverse", "oracle"],
        typer.Option(
            metavar="ORDER", help="Order of removal: compensated, importance, random, reverse or oracle."
        ),
    ] = "compensated",
    at_least: Annotated[
        int, typer.Option(metavar="N", min=1, help="Keep at least N heads in every layer.")
    ] = 1,
    attention: Attention = "",
    steps: Annotated[
        int,
        typer.Option(metavar="N", min=1, help="Choose in N steps, each from the heads that are left."),
    ] = 1,
    calibration: Calibration = "default",
    examples: Examples = 1000,
    shipped_share: options.ShippedShare = None,
    seed: Seed = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing checkpoint DIR.")
    ] = False,
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
    """Remove heads, and refit the output projections to those that stay."""
    from collab_hf.checkpoint.atomic import check_output
    from collab_hf.config import CollabConfig

    check_share(share)
    check_seed(seed)
    chosen = kinds(attention)
    check_output(output, original=Path(model) / subfolder, overwrite=overwrite)
    from collab_hf.heads import pruning_plan
    from collab_hf.recipe import SHIPPED_SHARE
    from collab_hf.surgery.pipeline import compress_checkpoint
    from collab_hf.surgery.reading import read_run

    watched = start_reporting()
    loading = Loading(dtype, device, revision, subfolder, token, trust_remote_code)
    loaded, processor = loading.model(model), loading.processor(model)
    if shipped_share is None:
        shipped_share = SHIPPED_SHARE
    sampling = {"examples": examples, "seed": seed, "shipped_share": shipped_share}
    batches = list(read_run(calibration, None, loaded, lambda: processor, sampling, None).calibration or ())
    plans = pruning_plan(
        loaded,
        batches,
        share,
        by=by,
        at_least=at_least,
        attention=chosen,
        steps=steps,
        seed=seed,
        progress=watched,
    )
    if not plans:
        raise ConfigError(f"a share of {share:g} of this model's heads is less than one head")
    del loaded
    settings = {"heads": {name: plan.to_dict() for name, plan in plans.items()}}
    done = compress_checkpoint(
        model,
        output,
        CollabConfig(plans=settings, parts=("heads",), reconstruct_steps=0, seed=seed),
        calibration=calibration,
        calibration_examples=examples,
        shipped_share=shipped_share,
        recover=False,
        loading=loading,
        overwrite=overwrite,
        progress=watched,
    )
    values = {"model": model, "by": by, "share": share, **done.to_dict()}
    return Answer(
        values, _describe(plans, done.report.parameters_before, done.report.parameters_after, output)
    )


def _describe(plans: dict[str, HeadsPlan], before: int, after: int, output: Path) -> str:
    cells = [[name, str(len(plan.kept)), ", ".join(map(str, plan.kept))] for name, plan in plans.items()]
    lines = [
        table(["layer", "heads", "kept"], cells),
        "",
        f"whole model: {before:,} -> {after:,} parameters",
        f"wrote {output}",
    ]
    return "\n".join(lines)
