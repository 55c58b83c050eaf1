"""`collab-hf heads score | ablate | prune`: which heads matter, and a model without the others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from collab_hf.cli import head_pruning, options
from collab_hf.cli.answers import Answer, AnsweringCommand, start_reporting
from collab_hf.cli.head_options import Attention, Examples, Plot, Seed, example_batches, kinds
from collab_hf.errors import ConfigError
from collab_hf.hub.source import Loading
from collab_hf.layout import table
from collab_hf.ranges import check_seed, is_number

if TYPE_CHECKING:
    from collections.abc import Iterable

    from collab_hf.measure.answers import Answers, Metric
    from collab_hf.parts.heads.losses import Loss


app = typer.Typer(
    rich_markup_mode=None,
    help="Score attention heads, switch them off one at a time, or remove them.",
    epilog=head_pruning.EXAMPLE,
)
app.command(cls=AnsweringCommand, epilog=head_pruning.EXAMPLE)(head_pruning.prune)


@app.command(cls=AnsweringCommand, epilog="Example: collab-hf heads score bert-base-uncased --json")
def score(
    model: options.Model,
    calibration: Annotated[
        str | None,
        typer.Option(
            "--calibration",
            "--data",
            metavar="FILE|FOLDER|DATASET",
            help="Examples of what the model reads; with --task a TSV file.  [default: those that ship with "
            "the package]",
        ),
    ] = None,
    task: Annotated[
        Literal["stsb", "accuracy"] | None,
        typer.Option(
            metavar="TASK",
            help="Use labels. accuracy: columns sentence and label; stsb: columns sentence1, sentence2 and "
            "score.  [default: no labels]",
        ),
    ] = None,
    examples: Examples = 500,
    per: Annotated[
        Literal["token", "example", "batch"],
        typer.Option(metavar="WHAT", help="Average absolute gradients of tokens, examples or batches."),
    ] = "example",
    normalize: Annotated[
        bool,
        typer.Option("--normalize/--no-normalize", help="Divide the scores of each layer by their l2 norm."),
    ] = True,
    state: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Save the sums after every batch, and resume from them."),
    ] = None,
    plot: Plot = None,
    seed: Seed = 0,
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
    """Score every head by how much the loss changes with a gate on it, with or without labels."""
    check_seed(seed)
    if task is not None and calibration is None:
        raise ConfigError(f"task {task} needs --data FILE, a tab-separated file")
    from collab_hf.heads import heat_map, score_heads
    from collab_hf.measure.bench_plot import check_plotting

    if plot is not None:
        check_plotting(plot)
    watched = start_reporting()
    loading = Loading(dtype, device, revision, subfolder, token, trust_remote_code)
    loaded = loading.model(model)
    batches, loss = _scored(task, calibration or "default", loaded, loading.processor(model), examples, seed)
    scores = score_heads(
        loaded,
        batches,
        loss=loss,
        per=per,
        normalize=normalize,
        seed=seed,
        state=state,
        progress=watched,
    )
    if plot is not None:
        heat_map({n: v.tolist() for n, v in scores.importance.items()}, plot, label="importance")
    rows = scores.rows()
    cells = [[row["layer"], str(row["head"]), f"{row['importance']:.4f}"] for row in rows]
    values = {"model": model, "task": task, "examples": scores.examples, "heads": rows}
    return Answer(values, table(["layer", "head", "importance"], cells))


@app.command(
    cls=AnsweringCommand,
    epilog="Example: collab-hf heads ablate all-MiniLM-L6-v2 --task stsb --data stsb_dev.tsv",
)
def ablate(
    model: options.Model,
    task: Annotated[
        Literal["stsb", "accuracy", "agreement"],
        typer.Option(metavar="TASK", help="stsb, accuracy, or agreement with the unchanged model."),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|FOLDER",
            help="stsb: TSV with the columns sentence1, sentence2 and score. accuracy: TSV with sentence and "
            "label. agreement: a text file with one a line or a folder of images; by default the "
            "examples that ship with the package.",
        ),
    ] = None,
    max_examples: Annotated[int, typer.Option(metavar="N", min=2, help="Use at most N examples.")] = 200,
    all_but_one: Annotated[
        bool, typer.Option("--all-but-one", help="Switch off all heads of the layer but one.")
    ] = False,
    tolerance: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            min=0,
            help="Test whether the loss is more than X, instead of whether there is one.  [default: "
            "0.01 for agreement, else 0]",
        ),
    ] = None,
    attention: Attention = "",
    plot: Plot = None,
    seed: Seed = 0,
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
    """Switch off one head at a time, and test whether the change is more than chance."""
    check_seed(seed)
    chosen = kinds(attention)
    if tolerance is not None and not is_number(tolerance):
        raise ConfigError(f"--tolerance must be a number of at least 0, got {tolerance}")
    if task != "agreement" and data is None:
        raise ConfigError(f"task {task} needs --data FILE, a tab-separated file")
    from collab_hf.heads import ablate_heads, effects_by_layer, heat_map, reducible_layers
    from collab_hf.measure.bench_plot import check_plotting

    if plot is not None:
        check_plotting(plot)
    watched = start_reporting()
    loading = Loading(dtype, device, revision, subfolder, token, trust_remote_code)
    loaded = loading.model(model)
    answers, metric = _task(task, data, max_examples, loaded, loading.processor(model))
    allowed = (0.01 if task == "agreement" else 0.0) if tolerance is None else tolerance
    base, effects = ablate_heads(
        loaded,
        answers,
        metric,
        all_but_one=all_but_one,
        tolerance=allowed,
        attention=chosen,
        seed=seed,
        progress=watched,
    )
    if plot is not None:
        heat_map(effects_by_layer(effects), plot, label=f"effect on {task}")
    cells = [
        [e.layer, str(e.head), f"{e.metric:.4f}", f"{e.effect:+.4f}", f"{e.p_value:.3f}"] for e in effects
    ]
    lines = [table(["layer", "head", task, "effect", "p"], cells), "", f"whole model: {base:.4f}"]
    values: dict[str, Any] = {"model": model, "task": task, "metric": base, "tolerance": allowed}
    values["heads"] = [vars(effect) for effect in effects]
    if all_but_one:
        one = values["one_head_serves"] = {name: e.head for name, e in reducible_layers(effects).items()}
        lines.append(f"layers that one head serves without a loss at p < 0.01: {', '.join(one) or 'none'}")
    else:
        lost = sum(e.effect < 0 and e.p_value < 0.01 for e in effects)
        lines.append(f"heads whose loss has p < 0.01: {lost} of {len(effects)}")
    return Answer(values, "\n".join(lines))


def _scored(
    task: str | None, data: str, model: Any, processor: Any, examples: int, seed: int
) -> tuple[Iterable[Any], Loss | None]:
    """What scores are computed on, and the loss; None for the model's own choice."""
    from collab_hf.measure.labelled import labelled_batches, pair_batches, pair_loss

    if task == "stsb":
        return pair_batches(Path(data), examples, processor), pair_loss
    if task == "accuracy":
        return labelled_batches(Path(data), examples, processor, model), None
    return example_batches(data, model, processor, examples, seed), None


def _task(
    task: str, data: str | None, max_examples: int, model: Any, processor: Any
) -> tuple[Answers, Metric]:
    """What a model answers, and how good some of the answers are."""
    from collab_hf.measure.answers import (
        agreement_answers,
        label_answers,
        mean_metric,
        pair_answers,
        rank_metric,
    )

    if task == "stsb":
        answers, scores = pair_answers(Path(data or ""), max_examples, processor)
        return answers, rank_metric(scores)
    if task == "accuracy":
        return label_answers(Path(data or ""), max_examples, processor), mean_metric
    batches = example_batches(data or "default", model, processor, max_examples, 0)
    return agreement_answers(model, list(batches)), mean_metric
