"""`collab-hf heads score | ablate | prune`: which heads matter, and a model without the others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from collab_hf.cli import options
from collab_hf.cli.answers import Answer, AnsweringCommand, start_reporting, table
from collab_hf.errors import ConfigError
from collab_hf.hub.source import Loading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from collab_hf.modeling.shrinking import HeadsPlan

EXAMPLE = "Example: collab-hf heads prune bert-base-uncased -o bert-pruned --share 0.3"

app = typer.Typer(
    rich_markup_mode=None,
    help="Score attention heads, switch them off one at a time, or take them out.",
    epilog=EXAMPLE,
)

Calibration = Annotated[
    str,
    typer.Option(
        metavar="FILE|FOLDER|DATASET|default",
        help="Unlabelled examples of what the model reads; `default` is what ships with the package.",
    ),
]
Examples = Annotated[int, typer.Option(metavar="N", min=1, help="Examples at most.")]
Seed = Annotated[int, typer.Option(metavar="N", help="Of every random choice.")]


@app.command(cls=AnsweringCommand, epilog="Example: collab-hf heads score bert-base-uncased --json")
def score(
    model: options.Model,
    calibration: Calibration = "default",
    examples: Examples = 500,
    per: Annotated[
        Literal["token", "example", "batch"],
        typer.Option(metavar="WHAT", help="Absolute value of each token's, example's or batch's gradient."),
    ] = "example",
    normalize: Annotated[
        bool, typer.Option("--normalize/--no-normalize", help="Divide by the l2 norm of each layer.")
    ] = True,
    seed: Seed = 0,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    token: options.Token = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
) -> Answer:
    """Score every head by how much the loss changes with a gate on it, without labels."""
    from collab_hf.heads import score_heads

    watched = start_reporting()
    loading = Loading(dtype, device, None, "", token, trust_remote_code)
    loaded = loading.model(model)
    batches = _batches(calibration, loaded, loading.processor(model), examples, seed)
    scores = score_heads(loaded, batches, per=per, normalize=normalize, seed=seed, progress=watched)
    rows = scores.rows()
    cells = [[row["layer"], str(row["head"]), f"{row['importance']:.4f}"] for row in rows]
    return Answer({"model": model, "heads": rows}, table(["layer", "head", "importance"], cells))


@app.command(
    cls=AnsweringCommand,
    epilog="Example: collab-hf heads ablate all-MiniLM-L6-v2 --task stsb --data stsb_dev.tsv",
)
def ablate(
    model: options.Model,
    task: Annotated[
        Literal["stsb", "accuracy", "agreement"],
        typer.Option(metavar="TASK", help="stsb, accuracy, or agreement with the whole model."),
    ],
    data: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="stsb: TSV of sentence pairs; accuracy: TSV; agreement: text."),
    ] = None,
    max_examples: Annotated[int, typer.Option(metavar="N", min=2, help="Examples at most.")] = 200,
    all_but_one: Annotated[
        bool, typer.Option("--all-but-one", help="Leave one head of the layer on, instead of taking it off.")
    ] = False,
    seed: Seed = 0,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    token: options.Token = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
) -> Answer:
    """Switch off one head at a time, and say what it changes and whether that is more than chance."""
    from collab_hf.heads import ablate_heads

    if task != "agreement" and data is None:
        raise ConfigError(f"task {task} needs --data FILE, a tab-separated file")
    watched = start_reporting()
    loading = Loading(dtype, device, None, "", token, trust_remote_code)
    loaded = loading.model(model)
    answers, metric = _task(task, data, max_examples, loaded, loading.processor(model))
    base, effects = ablate_heads(
        loaded, answers, metric, all_but_one=all_but_one, seed=seed, progress=watched
    )
    values = [vars(effect) for effect in effects]
    cells = [
        [e.layer, str(e.head), f"{e.metric:.4f}", f"{e.effect:+.4f}", f"{e.p_value:.3f}"] for e in effects
    ]
    text = table(["layer", "head", task, "effect", "p"], cells) + f"\n\nwhole model: {base:.4f}"
    return Answer({"model": model, "task": task, "metric": base, "heads": values}, text)


@app.command(cls=AnsweringCommand, epilog=EXAMPLE)
def prune(
    model: options.Model,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="DIR", help="Where the result appears, whole or not at all."),
    ],
    share: Annotated[float, typer.Option(metavar="F", help="Share of all heads that goes, between 0 and 1.")],
    by: Annotated[
        Literal["compensated", "importance", "random", "reverse"],
        typer.Option(metavar="ORDER", help="compensated, importance, random or reverse."),
    ] = "compensated",
    at_least: Annotated[int, typer.Option(metavar="N", min=1, help="Heads that stay in every layer.")] = 1,
    calibration: Calibration = "default",
    examples: Examples = 1000,
    seed: Seed = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing checkpoint DIR.")
    ] = False,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    token: options.Token = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
) -> Answer:
    """Take heads out; the output projections are refitted to those that stay."""
    from collab_hf.checkpoint.atomic import check_output
    from collab_hf.config import CollabConfig
    from collab_hf.heads import pruning_plan
    from collab_hf.surgery.pipeline import compress_checkpoint

    check_output(output, original=Path(model), overwrite=overwrite)
    watched = start_reporting()
    loading = Loading(dtype, device, None, "", token, trust_remote_code)
    loaded = loading.model(model)
    batches = list(_batches(calibration, loaded, loading.processor(model), examples, seed))
    plans = pruning_plan(loaded, batches, share, by=by, at_least=at_least, seed=seed, progress=watched)
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


def _batches(source: str, model: Any, processor: Any, examples: int, seed: int) -> Iterable[Any]:
    from collab_hf.calibration.examples import load_batches

    return load_batches(source, processor, config=model.config, max_examples=examples, seed=seed)


def _task(
    task: str, data: str | None, max_examples: int, model: Any, processor: Any
) -> tuple[Callable[[Any], Any], Callable[[Any, Any], float]]:
    """What a model answers, and how good some of the answers are."""
    import numpy as np

    from collab_hf.measure.answers import agreement_answers, label_answers, pair_answers

    if task == "stsb":
        from scipy.stats import spearmanr

        answers, scores = pair_answers(Path(data or ""), max_examples, processor)
        wanted = np.asarray(scores)
        return answers, lambda found, rows: float(spearmanr(found[rows], wanted[rows]).statistic)
    if task == "accuracy":
        return label_answers(Path(data or ""), max_examples, processor), lambda found, rows: float(
            found[rows].mean()
        )
    batches = _batches(data or "default", model, processor, max_examples, 0)
    return agreement_answers(model, list(batches)), lambda found, rows: float(found[rows].mean())
