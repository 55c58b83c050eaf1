"""`collab-hf compress`: a checkpoint goes in, a smaller one comes out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from collab_hf.cli import options
from collab_hf.cli.answers import Answer, start_reporting, table
from collab_hf.cli.healing import Healing, HealMinutes, HealSteps
from collab_hf.cli.loading import Loading
from collab_hf.modeling.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from collab_hf.calibration.examples import ExampleBatches
    from collab_hf.recipe import Recipe
    from collab_hf.surgery.report import CompressionReport, LayerReport

EXAMPLE = "Example: collab-hf compress bert-base-uncased -o bert-quarter --method cp --budget 0.25"

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
Attention = Annotated[
    str | None,
    typer.Option(
        metavar="KIND,..",
        help="Layers to compress: self, cross, encoder, decoder, text, vision, or some joined by `-`, "
        "such as decoder-cross.  [default: all]",
    ),
]
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
    attention: Attention = None,
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
    """Replace the attention's query and key projections with smaller, shared ones.

    Without a method or ranks: for each layer the form of least measured loss, at the knee of the curve,
    chosen with the examples that ship with the package. DIR gets the model, what belongs to the original
    beside it (tokenizer, image processor), the recipe and a report.
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
    healing = Healing(heal_steps, heal_minutes, recipe, output)
    report, size = _compress(model, output, recipe, loading, overwrite, healing)
    values = {"model": model, "output": str(output), "file_size": size, **report.to_dict()}
    values.update(healing.values())
    text = "\n".join([_describe(report, output, size), *healing.lines()])
    if push_to_hub is not None:
        from collab_hf.hub.publish import push

        values["commit"] = push(output, push_to_hub, token=token)
        text += f"\npublished {values['commit']}"
    return Answer(values, text)


def _dry_run(model: str, recipe: Recipe, loading: Loading) -> Answer:
    from collab_hf.cli.dry_run import describe
    from collab_hf.surgery.preview import preview

    watched = start_reporting()
    loaded = loading.model(model)
    batches = _calibration_batches(model, recipe, loading, loaded.config)
    return describe(preview(loaded, recipe.config, batches, progress=watched))


def _compress(
    model: str, output: Path, recipe: Recipe, loading: Loading, overwrite: bool, healing: Healing
) -> tuple[CompressionReport, int]:
    """Load, decompose and save; also the size of the weights' files in bytes."""
    from collab_hf.checkpoint.save import check_output, new_directory, save_checkpoint
    from collab_hf.files import CARD_FILE, RECIPE_FILE, REPORT_FILE
    from collab_hf.hub.card import make_card
    from collab_hf.surgery.compress import compress_

    check_output(output, original=Path(model) / loading.subfolder, overwrite=overwrite)
    watched = start_reporting()
    loaded = loading.model(model)
    original = loading.files(model)
    size_before = sum(p.numel() * p.element_size() for p in loaded.parameters())
    batches = _calibration_batches(model, recipe, loading, loaded.config)
    healing.keep_original(loaded)
    report = compress_(loaded, recipe.config, batches, progress=watched)
    healing.recover_(loaded, lambda: loading.processor(model), progress=watched)
    with new_directory(output, overwrite=overwrite) as directory:
        save_checkpoint(loaded, directory, original=original)
        # The report's settings have the planned forms written out.
        replace(recipe, config=report.config).write(directory / RECIPE_FILE)
        source = {**loading.source(model), "weight_bytes_before": size_before}
        text = json.dumps({**source, **report.to_dict()}, indent=2, allow_nan=False)
        (directory / REPORT_FILE).write_text(text + "\n", encoding="utf-8")
        healing.write(directory)
        make_card(directory, repo_id=output.resolve().name).save(directory / CARD_FILE)
        return report, sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def _calibration_batches(
    model: str, recipe: Recipe, loading: Loading, config: PreTrainedConfig
) -> ExampleBatches | None:
    from collab_hf.calibration.examples import load_batches
    from collab_hf.recipe import NO_CALIBRATION

    if recipe.calibration == NO_CALIBRATION or recipe.config.exact:
        return None
    return load_batches(
        recipe.calibration,
        loading.processor(model),
        config=config,
        max_examples=recipe.calibration_examples,
        seed=recipe.config.seed,
    )


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
