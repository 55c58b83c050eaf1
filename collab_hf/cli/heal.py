"""`collab-hf heal`: recovery of a compressed checkpoint, without labels."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from collab_hf.cli import options
from collab_hf.cli.answers import Answer, start_reporting
from collab_hf.hub.source import Loading
from collab_hf.launched import is_main_process
from collab_hf.modeling.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from collab_hf.recovery import RecoveryConfig, RecoveryReport

EXAMPLE = (
    "Example: collab-hf heal bert-quarter --teacher bert-base-uncased --data texts.txt -o bert-recovered"
)


def heal(
    directory: options.Directory,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Directory for the result; if anything fails, it does not appear.",
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            metavar="FILE|FOLDER|DATASET|default",
            help="Unlabelled examples of what the model reads: a text file with one a line, a folder of "
            "images, or a data set. `default` takes those that ship with the package.",
        ),
    ],
    teacher: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The original.  [default: the model that DIR's recipe names]"),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Number of updates.  [default: 400]")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(metavar="M", help="Minutes to train, instead of steps.")
    ] = None,
    batch_size: options.BatchSize = 32,
    max_length: options.MaxLength = 128,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            "--lr", metavar="F", help="Peak learning rate, relative to the weights.  [default: 0.01]"
        ),
    ] = None,
    trainable: Annotated[
        Literal["factors", "attention", "blocks", "all"],
        typer.Option(
            metavar="WHAT", help="What trains: factors, attention (all of it), blocks (whole layers) or all."
        ),
    ] = "factors",
    patience: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            help="Stop after N evaluations in a row, of 8, without a better loss on held-out data.",
        ),
    ] = 4,
    examples: Annotated[int, typer.Option(metavar="N", min=1, help="Use at most N examples.")] = 20_000,
    shipped_share: options.ShippedShare = None,
    mixed_precision: Annotated[
        Literal["auto", "no", "bf16"],
        typer.Option(metavar="P", help="no, bf16, or auto: what `accelerate launch` says."),
    ] = "auto",
    gradient_accumulation: Annotated[int, typer.Option(metavar="N", min=1, help="Batches in an update.")] = 1,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the order of the batches.")] = 0,
    checkpoint_every: Annotated[
        int, typer.Option(metavar="N", min=1, help="Save a state to resume from every N updates.")
    ] = 100,
    resume: Annotated[
        bool,
        typer.Option("--resume/--no-resume", help="Continue where a killed run of this command stopped."),
    ] = True,
    log: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a log as JSON lines.")] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the log's curve as a PNG file.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing checkpoint DIR.")
    ] = False,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    token: options.Token = None,
    trust_remote_code: options.TrustRemoteCode = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    as_json: options.AsJson = False,
) -> Answer:
    """Train the factors of a compressed checkpoint against its original, without labels.

    If a run is killed, the same command continues from its last state. States are kept next to the output
    until that is written. `accelerate launch -m collab_hf heal ...` shares the work among processes.
    """
    from collab_hf.checkpoint.atomic import check_output
    from collab_hf.recovery.config import RecoveryConfig, states_beside

    check_output(output, original=directory, overwrite=overwrite)
    config = RecoveryConfig(
        steps=steps,
        minutes=minutes,
        trainable=trainable,
        patience=patience,
        gradient_accumulation=gradient_accumulation,
        mixed_precision=mixed_precision,
        seed=seed,
        checkpoint_dir=states_beside(output),
        checkpoint_every=checkpoint_every,
        resume=resume,
        log=log,
        plot=plot,
    )
    if learning_rate is not None:
        config = replace(config, learning_rate=learning_rate)
    loading = Loading(dtype, device, None, "", token, trust_remote_code)
    sizes = {"batch_size": batch_size, "max_length": max_length, "max_examples": examples}
    report = _heal(directory, output, teacher, data, config, loading, sizes, overwrite, shipped_share)
    values = {"directory": str(directory), "output": str(output), **report.to_dict()}
    return Answer(values, f"{describe_recovery(report)}\nwrote {output}")


def _heal(
    directory: Path,
    output: Path,
    teacher: str | None,
    data: str,
    config: RecoveryConfig,
    loading: Loading,
    sizes: dict[str, int],
    overwrite: bool,
    shipped_share: float | None,
) -> RecoveryReport:
    from collab_hf.calibration.pools import read_pools
    from collab_hf.checkpoint.certificate import certify
    from collab_hf.checkpoint.save import is_portable, new_directory, save_checkpoint
    from collab_hf.hub.card import write_card
    from collab_hf.recipe import Recipe
    from collab_hf.recovery import recover_
    from collab_hf.recovery.config import states_beside
    from collab_hf.surgery.reading import recovery_batches
    from collab_hf.surgery.work import write_recovery

    watched = start_reporting()
    name = str(directory)
    # What lies beside the weights is read first: a long run must not end for it.
    config = replace(config, teacher_blocks=_teacher_blocks(directory))
    sampling = Recipe.sampling(directory)
    _check_recovery(directory)
    student = loading.model(directory)
    processor = loading.processor(name)
    original = loading.reference(teacher or _teacher_of(directory), student, processor)
    if shipped_share is not None:
        sampling["shipped_share"] = shipped_share
    pools = read_pools(data, processor, **sampling)
    batches, held_out = recovery_batches(pools, student, processor, seed=config.seed, **sizes)
    report = recover_(student, original, batches, config, held_out=held_out, progress=watched)
    if is_main_process():
        with new_directory(output, overwrite=overwrite) as place:
            save_checkpoint(student, place, original=directory, heir=is_portable(directory))
            write_recovery(place, report, data)
            certify(place, student)
            write_card(place, output.resolve().name)
        shutil.rmtree(states_beside(output), ignore_errors=True)
    return report


def _teacher_of(directory: Path) -> str:
    from collab_hf.files import RECIPE_FILE
    from collab_hf.recipe import Recipe

    path = directory / RECIPE_FILE
    name = Recipe.read(path).get("model") if path.is_file() else None
    if not name:
        raise ConfigError(f"{directory} does not say what it was made from; give --teacher MODEL")
    return str(name)


def _teacher_blocks(directory: Path) -> tuple[int, ...]:
    """Which layers of the original a checkpoint with fewer of them is compared with."""
    from collab_hf.checkpoint.precheck import read_json
    from collab_hf.files import REPORT_FILE

    path = directory / REPORT_FILE
    whole = (read_json(path) if path.is_file() else {}).get("whole") or {}
    blocks = whole.get("teacher_blocks", ()) if isinstance(whole, dict) else None
    if not isinstance(blocks, list | tuple):
        raise CheckpointError(f"whole in {path} must have teacher_blocks, a list of numbers, got {blocks!r}")
    return tuple(blocks)


def _check_recovery(directory: Path) -> None:
    """Refuse what an earlier recovery can't have written: the new report will hold it."""
    from collab_hf.checkpoint.precheck import read_json
    from collab_hf.files import RECOVERY_FILE

    path = directory / RECOVERY_FILE
    if path.is_file():
        read_json(path)


def describe_recovery(report: RecoveryReport) -> str:
    """The report for people.

    Args:
        report: what recovery did.

    Returns:
        One line, and more where it stopped early or gained nothing.
    """
    lines = [
        f"recovery: {report.steps} updates on {report.examples:,} examples in {report.seconds:.0f} s, loss "
        f"on {report.held_out_examples:,} held-out ones {report.loss_before:.4f} -> {report.loss_after:.4f}, "
        f"agreement {report.agreement_before:.4f} -> {report.agreement_after:.4f}"
    ]
    if report.stopped == "early":
        lines.append(
            f"recovery stopped after {report.steps} updates, because {report.config.patience} evaluations in "
            "a row brought no lower held-out loss"
        )
    if report.best_step == 0:
        lines.append("recovery gained nothing, so the weights are unchanged" + _remedy(report))
    return "\n".join(lines)


def _remedy(report: RecoveryReport) -> str:
    """What may help where nothing was gained."""
    if not report.memorised:
        return "; a lower --lr or more updates may help"
    wanted = report.examples_wanted
    number = "" if wanted is None else f": about {wanted:,} examples instead of {report.examples:,}"
    return f"; it did better on what it read than on what it didn't, so more data would help{number}"
