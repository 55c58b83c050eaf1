"""`collab-hf compress`: a checkpoint goes in, a smaller one comes out."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from collab_hf.cli import compress_options as asked
from collab_hf.cli import options
from collab_hf.cli.answers import Answer, start_reporting
from collab_hf.cli.heal import describe_recovery
from collab_hf.hub.names import check_id
from collab_hf.hub.source import Loading, find_device
from collab_hf.modeling.errors import ConfigError

if TYPE_CHECKING:
    from collab_hf.recipe import Recipe
    from collab_hf.surgery.pipeline import CompressedCheckpoint

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
    vocabulary_from: asked.VocabularyFrom = None,
    portable: asked.Portable = False,
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
    shipped_share: options.ShippedShare = None,
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
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    as_json: options.AsJson = False,
) -> Answer:
    """Make a checkpoint smaller.

    --speedup, --flops, --params and --size make the whole model smaller: heads, values, queries and keys,
    neurons and embeddings, each where it costs the output least. Recovery without labels follows. --budget,
    or no target at all, makes only queries and keys smaller; each layer gets the form with the least measured
    loss. Losses are measured on the calibration examples. DIR gets the model, the original's tokenizer or
    image processor, the recipe, a report and a card. `accelerate launch -m collab_hf compress ...` shares the
    work among processes.
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
        "attention": None if attention is None else attention.split(","),
        "content_bias": content_bias,
        "calibration": calibration,
        "calibration_examples": calibration_examples,
        "shipped_share": shipped_share,
        "reconstruct_steps": reconstruct_steps,
        "seed": seed,
        "speedup": speedup,
        "flops": flops,
        "params": params,
        "size": size,
        "parts": None if parts is None else [part.strip() for part in parts.split(",")],
        "vocabulary_from": vocabulary_from,
        "portable": portable or None,
        "length": length,
        "batch_size": batch_size,
    }
    written = {} if config is None else Recipe.read(config)
    chosen = {name: value for name, value in given.items() if value is not None}
    made = {"model": public_name(model), "versions": current_versions()}
    recipe = Recipe.from_dict({**written, **chosen, **made})
    loading = Loading(dtype, device, revision, subfolder, token, trust_remote_code, backbone, base_model)
    if dry_run:
        from collab_hf.processes import Processes

        processes = Processes.launched(find_device(device))
        return processes.from_main(lambda: _dry_run(model, recipe, loading))
    if output is None:
        raise ConfigError("Missing option '--output' / '-o'; only --dry-run works without it")
    from collab_hf.checkpoint.atomic import check_output
    from collab_hf.recovery.config import RecoveryConfig

    # What can be wrong with the options comes out before torch and transformers are imported.
    check_output(output, original=Path(model) / subfolder, overwrite=overwrite)
    if push_to_hub is not None:
        check_id("--push-to-hub", push_to_hub)
    recovery = None
    if heal_steps or heal_minutes is not None:
        recovery = RecoveryConfig(steps=heal_steps or None, minutes=heal_minutes, seed=recipe.config.seed)
    from collab_hf.surgery.pipeline import compress_checkpoint

    done = compress_checkpoint(
        model,
        output,
        recipe.config,
        calibration=recipe.calibration,
        calibration_examples=recipe.calibration_examples,
        shipped_share=recipe.shipped_share,
        recovery=recovery,
        recovery_data=recovery_data,
        recover=False if heal_steps == 0 and heal_minutes is None else None,
        loading=loading,
        overwrite=overwrite,
        progress=start_reporting(),
    )
    values = {"model": model, **done.to_dict()}
    lines = [*_calibrated(done), str(done.report), _written(done)]
    if done.recovery is not None:
        lines.append(describe_recovery(done.recovery))
    if push_to_hub is not None:
        from collab_hf.hub.publish import push
        from collab_hf.processes import Processes

        published = partial(push, output, push_to_hub, token=token)
        values["commit"] = Processes.launched(find_device(device)).from_main(published)
        lines.append(f"published {values['commit']}")
    return Answer(values, "\n".join(lines))


def _dry_run(model: str, recipe: Recipe, loading: Loading) -> Answer:
    from collab_hf.cli import dry_run
    from collab_hf.recipe import NO_CALIBRATION
    from collab_hf.surgery.preview import preview
    from collab_hf.surgery.reading import read_run
    from collab_hf.surgery.vocabulary import Trimming, completed, trimmed_alone, without_vocabulary
    from collab_hf.surgery.whole_preview import preview_whole

    watched, config = start_reporting(), recipe.config
    processor = cache(lambda: loading.processor(model))
    trimming = Trimming.prepare(config, processor) if config.vocabulary_from else None
    loaded = loading.model(model)
    trimmed = None if trimming is None else trimming.trim_(loaded)
    rest = without_vocabulary(config)
    if trimmed is not None and config.vocabulary_alone:
        report = trimmed_alone(loaded, config, trimmed.report)
        return dry_run.describe_planned(completed(report, loaded, config, trimmed))
    source = None if recipe.calibration == NO_CALIBRATION or config.exact else recipe.calibration
    reader = processor if trimmed is None else lambda: trimmed.processor
    batches = read_run(source, None, loaded, reader, recipe.drawn, None).calibration
    if not rest.is_whole:
        return dry_run.describe(preview(loaded, rest, batches, progress=watched), trimmed)
    if batches is None:
        raise ConfigError("planning the whole model needs data: give --calibration")
    before = None if trimmed is None else trimmed.report.parameters_before
    report = preview_whole(loaded, rest, batches, parameters_before=before, progress=watched)
    return dry_run.describe_planned(completed(report, loaded, config, trimmed))


def _calibrated(done: CompressedCheckpoint) -> list[str]:
    """Whose examples calibrated."""
    if done.calibration is None:
        return []
    examples, shipped = done.calibration["examples"], done.calibration["shipped"]
    if shipped == examples:
        return [f"calibrated on {shipped:,} examples that ship with the package"]
    mixed = f" and {shipped:,} that ship with the package" if shipped else ""
    return [f"calibrated on {examples - shipped:,} of your examples{mixed}"]


def _written(done: CompressedCheckpoint) -> str:
    kind = ", an ordinary checkpoint of the original's class" if done.report.portable else ""
    return f"wrote {done.directory} ({done.file_size / 1e6:.1f} MB of weights{kind})"
