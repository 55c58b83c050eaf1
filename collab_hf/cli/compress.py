"""`collab-hf compress`: a checkpoint goes in, a smaller one comes out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from collab_hf.cli import compress_options as asked
from collab_hf.cli import options
from collab_hf.cli.answers import Answer, start_reporting
from collab_hf.cli.describe import describe
from collab_hf.cli.heal import describe_recovery
from collab_hf.hub.source import Loading
from collab_hf.modeling.errors import ConfigError

if TYPE_CHECKING:
    from collab_hf.recipe import Recipe

EXAMPLE = (
    "Example: collab-hf compress bert-base-uncased -o bert-quarter --budget 0.25; "
    "collab-hf compress bert-base-uncased -o bert-fast --speedup 2 --calibration sentences.txt"
)


def compress(
    model: options.Model,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Directory for the result; if anything fails, it does not appear.",
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(metavar="METHOD", help="auto, cp, tucker, svd or copy.  [default: auto]"),
    ] = None,
    rank: asked.Rank = None,
    query_rank: asked.QueryRank = None,
    key_rank: asked.KeyRank = None,
    key_groups: asked.KeyGroups = None,
    head_rank: asked.HeadRank = None,
    tied: asked.Tied = False,
    score_width: asked.ScoreWidth = None,
    dims_per_head: asked.DimsPerHead = None,
    budget: asked.Budget = None,
    target_params: asked.TargetParams = None,
    target_flops: asked.TargetFlops = None,
    max_loss: asked.MaxLoss = None,
    speedup: asked.Speedup = None,
    flops: asked.Flops = None,
    params: asked.Params = None,
    size: asked.Size = None,
    parts: asked.PartNames = None,
    length: asked.Length = None,
    batch_size: asked.BatchSize = None,
    attention: asked.Attention = None,
    dry_run: asked.DryRun = False,
    content_bias: Annotated[
        Literal["auto", "exact", "folded"] | None,
        typer.Option(metavar="FORM", help="auto, exact or folded.  [default: auto]"),
    ] = None,
    calibration: asked.Calibration = None,
    calibration_examples: asked.CalibrationExamples = None,
    reconstruct_steps: asked.ReconstructSteps = None,
    heal_steps: asked.HealSteps = None,
    heal_minutes: asked.HealMinutes = None,
    recovery_data: asked.RecoveryData = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Seed of every random choice.  [default: 0]")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Recipe (YAML); options on the command line override it."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing checkpoint DIR.")
    ] = False,
    backbone: asked.Backbone = False,
    base_model: options.BaseModel = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Publish the result on the Hub as ID; `push` has more options."),
    ] = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    revision: options.Revision = None,
    subfolder: options.Subfolder = "",
    token: options.Token = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
) -> Answer:
    """Make a checkpoint smaller.

    --speedup, --flops, --params and --size make the whole model smaller: heads, values, queries and keys,
    neurons and embeddings, each where it costs the output least. Recovery without labels follows. --budget,
    or no target at all, makes only queries and keys smaller; each layer gets the form with the least measured
    loss. Losses are measured on the calibration examples. DIR gets the model, the original's tokenizer or
    image processor, the recipe, a report and a card.
    """
    from collab_hf.recipe import Recipe, current_versions, public_name

    given = {
        "method": method,
        "rank": rank,
        "query_rank": query_rank,
        "key_rank": key_rank,
        "key_groups": key_groups,
        "head_rank": head_rank,
        "tied": tied or None,
        "score_width": score_width,
        "dims_per_head": dims_per_head,
        "budget": budget,
        "target_params": target_params,
        "target_flops": target_flops,
        "max_loss": max_loss,
        "attention": attention,
        "content_bias": content_bias,
        "calibration": calibration,
        "calibration_examples": calibration_examples,
        "reconstruct_steps": reconstruct_steps,
        "seed": seed,
        "speedup": speedup,
        "flops": flops,
        "params": params,
        "size": size,
        "parts": None if parts is None else [part.strip() for part in parts.split(",")],
        "length": length,
        "batch_size": batch_size,
    }
    written = {} if config is None else Recipe.read(config)
    chosen = {name: value for name, value in given.items() if value is not None}
    made = {"model": public_name(model), "versions": current_versions()}
    recipe = Recipe.from_dict({**written, **chosen, **made})
    loading = Loading(dtype, device, revision, subfolder, token, trust_remote_code, backbone, base_model)
    if dry_run:
        return _dry_run(model, recipe, loading)
    if output is None:
        raise ConfigError("Missing option '--output' / '-o'; only --dry-run works without it")
    from collab_hf.recovery import RecoveryConfig
    from collab_hf.surgery.pipeline import compress_checkpoint

    recovery = None
    if heal_steps or heal_minutes is not None:
        recovery = RecoveryConfig(steps=heal_steps or None, minutes=heal_minutes, seed=recipe.config.seed)
    done = compress_checkpoint(
        model,
        output,
        recipe.config,
        calibration=recipe.calibration,
        calibration_examples=recipe.calibration_examples,
        recovery=recovery,
        recovery_data=recovery_data,
        recover=False if heal_steps == 0 and heal_minutes is None else None,
        loading=loading,
        overwrite=overwrite,
        progress=start_reporting(),
    )
    values = {"model": model, **done.to_dict()}
    lines = [describe(done.report, output, done.file_size)]
    if done.recovery is not None:
        lines.append(describe_recovery(done.recovery))
    if push_to_hub is not None:
        from collab_hf.hub.publish import push

        values["commit"] = push(output, push_to_hub, token=token)
        lines.append(f"published {values['commit']}")
    return Answer(values, "\n".join(lines))


def _dry_run(model: str, recipe: Recipe, loading: Loading) -> Answer:
    from collab_hf.calibration.examples import load_batches
    from collab_hf.cli.dry_run import describe
    from collab_hf.recipe import NO_CALIBRATION
    from collab_hf.surgery.preview import preview

    watched = start_reporting()
    loaded, batches = loading.model(model), None
    if recipe.calibration != NO_CALIBRATION and not recipe.config.exact:
        sizes = {"max_examples": recipe.calibration_examples, "seed": recipe.config.seed}
        batches = load_batches(recipe.calibration, loading.processor(model), config=loaded.config, **sizes)
    return describe(preview(loaded, recipe.config, batches, progress=watched))
