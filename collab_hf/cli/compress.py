"""`collab-hf compress`: a checkpoint goes in, a smaller one comes out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from collab_hf.cli import options
from collab_hf.cli.answers import Answer, start_reporting, table
from collab_hf.cli.heal import describe_recovery
from collab_hf.hub.source import Loading
from collab_hf.modeling.errors import ConfigError

if TYPE_CHECKING:
    from collab_hf.recipe import Recipe
    from collab_hf.surgery.report import CompressionReport, LayerReport, WholeReport

EXAMPLE = (
    "Examples: collab-hf compress bert-base-uncased -o bert-quarter --budget 0.25; "
    "collab-hf compress bert-base-uncased -o bert-fast --speedup 2 --calibration sentences.txt"
)

Rank = Annotated[int | None, typer.Option(metavar="N", help="Width of both shared projections.")]
QueryRank = Annotated[int | None, typer.Option(metavar="N", help="tucker: width of the shared query.")]
KeyRank = Annotated[int | None, typer.Option(metavar="N", help="tucker: width of the shared key.")]
KeyGroups = Annotated[int | None, typer.Option(metavar="G", help="tucker: groups of heads, each with a key.")]
HeadRank = Annotated[int | None, typer.Option(metavar="N", help="tucker: rank of the core along the heads.")]
ScoreWidth = Annotated[int | None, typer.Option(metavar="N", help="tucker: width of a head's score product.")]
Tied = Annotated[bool, typer.Option("--tied", help="tucker: one shared projection for queries and keys.")]
DimsPerHead = Annotated[
    int | None, typer.Option(metavar="K", help="cp: shared dimensions that each head uses (sparse mixing).")
]
Budget = Annotated[
    float | None,
    typer.Option(
        metavar="F",
        help="Share of query/key parameters to keep at most, in (0, 1].  [default: the knee of the curve "
        "with auto, else 0.25]",
    ),
]
TargetParams = Annotated[
    int | None, typer.Option(metavar="N", help="auto: query/key parameters to keep at most.")
]
TargetFlops = Annotated[
    str | None,
    typer.Option(
        metavar="LENGTH:SHARE",
        help="auto: at this sequence length, operations for queries, keys and scores at most this share of "
        "the dense ones.",
    ),
]
MaxLoss = Annotated[
    float | None,
    typer.Option(metavar="X", help="auto: greatest divergence of the hidden states from the original's."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan, its size, cost and loss, and stop.")]
Calibration = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|FOLDER|DATASET|none",
        help="Examples of what the model reads: text one a line, images in a folder, or a data set; "
        "`default` is what ships with the package, `none` decomposes the weights alone.  [default: default]",
    ),
]
CalibrationExamples = Annotated[
    int | None, typer.Option(metavar="N", help="Calibration examples at most.  [default: 1000]")
]

HealSteps = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=0,
        help="Recover for N updates afterwards, 0 for none.  [default: 400 with --speedup, --flops, --params "
        "or --size, else none]",
    ),
]
HealMinutes = Annotated[
    float | None,
    typer.Option(metavar="M", help="Recover for M minutes afterwards, not for a number of updates."),
]
RecoveryData = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|FOLDER|DATASET",
        help="What recovery reads; more text gains more than more updates.  [default: the calibration data]",
    ),
]
Speedup = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Whole model: X times as fast as the original on this machine, at --length and --batch-size.",
    ),
]
Flops = Annotated[
    float | None,
    typer.Option(metavar="F", help="Whole model: share of the layers' operations to keep, at --length."),
]
Params = Annotated[
    float | None, typer.Option(metavar="F", help="Whole model: share of all parameters to keep.")
]
Size = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Whole model: most that the weights may take, such as 30MB."),
]
PartNames = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help="Whole model: what may become smaller, of query_key, heads, value_output, feed_forward, "
        "embeddings and vocabulary, with commas.  [default: all but vocabulary]",
    ),
]
Length = Annotated[int | None, typer.Option(metavar="N", help="Tokens a sequence.  [default: 128]")]
BatchSize = Annotated[int | None, typer.Option(metavar="N", help="Sequences at once.  [default: 8]")]
ReconstructSteps = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Gradient steps for each layer that fit its factors to its attention output on the calibration "
        "examples, after the decomposition; 0 for none.  [default: 75]",
    ),
]


def compress(
    model: options.Model,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Where the result appears, whole or not at all."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(metavar="METHOD", help="auto, cp, tucker, svd or copy.  [default: auto]"),
    ] = None,
    rank: Rank = None,
    query_rank: QueryRank = None,
    key_rank: KeyRank = None,
    key_groups: KeyGroups = None,
    head_rank: HeadRank = None,
    tied: Tied = False,
    score_width: ScoreWidth = None,
    dims_per_head: DimsPerHead = None,
    budget: Budget = None,
    target_params: TargetParams = None,
    target_flops: TargetFlops = None,
    max_loss: MaxLoss = None,
    speedup: Speedup = None,
    flops: Flops = None,
    params: Params = None,
    size: Size = None,
    parts: PartNames = None,
    length: Length = None,
    batch_size: BatchSize = None,
    dry_run: DryRun = False,
    content_bias: Annotated[
        Literal["auto", "exact", "folded"] | None,
        typer.Option(metavar="FORM", help="auto, exact or folded.  [default: auto]"),
    ] = None,
    calibration: Calibration = None,
    calibration_examples: CalibrationExamples = None,
    reconstruct_steps: ReconstructSteps = None,
    heal_steps: HealSteps = None,
    heal_minutes: HealMinutes = None,
    recovery_data: RecoveryData = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Of every random choice.  [default: 0]")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Recipe (YAML); options given beside it come first.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing checkpoint DIR.")
    ] = False,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="ID", help="Publish the result there; `push` has more options.")
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

    With --speedup, --flops, --params or --size the whole model: heads, values, queries and keys, neurons and
    embeddings, each as far as it costs least, then recovered without labels. With --budget, or without any
    target, queries and keys alone: for each layer the form of least measured loss, chosen with the examples
    that ship with the package. DIR gets the model, what belongs to the original beside it (tokenizer, image
    processor), the recipe, a report and a card.
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
    loading = Loading(dtype, device, revision, subfolder, token, trust_remote_code)
    if dry_run:
        return _dry_run(model, recipe, loading)
    if output is None:
        raise ConfigError("Missing option '--output' / '-o'; only --dry-run goes without")
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
    lines = [_describe(done.report, output, done.file_size)]
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


def _describe(report: CompressionReport, output: Path, size: int) -> str:
    rows = [
        [
            layer.name,
            layer.plan.form_name if layer.plan else layer.method,
            _ranks(layer),
            f"{layer.relative_error:.4f}",
            *_change(layer),
        ]
        for layer in report.layers
    ]
    if report.whole is not None:
        return _describe_whole(report, report.whole, output, size)
    kept = report.qk_parameters_after / report.qk_parameters_before
    return "\n".join(
        [
            table(["layer", "method", "rank", "error", "Q/K before", "after"], rows),
            "",
            f"query/key: {report.qk_parameters_before:,} -> {report.qk_parameters_after:,} ({kept:.1%})",
            f"whole model: {report.parameters_before:,} -> {report.parameters_after:,} parameters",
            f"mean relative error: {report.mean_relative_error:.4f}"
            f" ({'on calibration data' if report.calibrated else 'of the weights alone'})",
            *_losses(report),
            *_slower(report),
            f"wrote {output} ({size / 1e6:.1f} MB of weights)",
        ]
    )


def _describe_whole(report: CompressionReport, whole: WholeReport, output: Path, size: int) -> str:
    plans = whole.plans
    rows = []
    for layer in report.layers:
        heads, values = plans.get("heads", {}).get(layer.name), plans.get("value_output", {}).get(layer.name)
        rows.append(
            [
                layer.name,
                "all" if heads is None else str(len(heads.kept)),
                "all" if values is None else str(values.width),
                "dense" if layer.plan is None else layer.plan.form.label(layer.plan),
            ]
        )
    widths = [[name, str(plan.width)] for name, plan in plans.get("feed_forward", {}).items()]
    share = whole.operations_after / whole.operations_before
    kept = report.parameters_after / report.parameters_before
    lines = [table(["attention", "heads", "value width", "queries and keys"], rows)]
    if widths:
        lines += ["", table(["feed-forward", "neurons"], widths)]
    lines += [
        "",
        f"operations of the layers at length {whole.length}: {share:.1%} of the original's",
        f"whole model: {report.parameters_before:,} -> {report.parameters_after:,} parameters ({kept:.1%})",
        *_losses(report),
    ]
    if whole.measured_speedup is not None and whole.predicted_speedup is not None:
        lines.append(
            f"speed: {whole.measured_speedup:.2f} times the original's on this machine "
            f"(predicted {whole.predicted_speedup:.2f})"
        )
    return "\n".join([*lines, f"wrote {output} ({size / 1e6:.1f} MB of weights)"])


def _losses(report: CompressionReport) -> list[str]:
    lines = []
    errors = [layer.output_error for layer in report.layers if layer.output_error is not None]
    if errors:
        before, after = (sum(side) / len(errors) for side in zip(*errors, strict=True))
        lines.append(
            f"attention output on held-out calibration tokens: mean relative error {before:.4f} decomposed, "
            f"{after:.4f} reconstructed"
        )
    if report.predicted_loss is not None and report.measured_loss is not None:
        lines.append(
            f"divergence of the hidden states: predicted {report.predicted_loss:.4f}, "
            f"measured {report.measured_loss:.4f}"
        )
    return lines


def _slower(report: CompressionReport) -> list[str]:
    lengths = [layer.break_even_length for layer in report.layers if layer.break_even_length is not None]
    if not lengths:
        return []
    return [
        f"warning: slower than the original from at most {min(lengths)} tokens on, because scores are wider "
        "than a head; tucker, or cp with --dims-per-head, is not"
    ]


def _ranks(layer: LayerReport) -> str:
    if layer.plan is None or layer.plan.key_rank == layer.plan.query_rank:
        return str(layer.rank)
    return f"{layer.plan.query_rank}x{layer.plan.key_rank}"


def _change(layer: LayerReport) -> tuple[str, str]:
    return f"{layer.qk_parameters_before:,}", f"{layer.qk_parameters_after:,}"
