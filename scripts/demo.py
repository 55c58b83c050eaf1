"""Compress a real sentence encoder, and see what is left of it.

First its queries and keys, to a half and a quarter of their parameters; then the whole model, to half of the
operations of its layers. Everything goes through the command line: `collab-hf compress`, then `collab-hf
evaluate`, which loads the result in a fresh process and compares its embeddings with the original's, on text
held out from calibration, and `collab-hf bench`, which times the two in turns.

Example:
    python scripts/demo.py
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

import checkpoints
from collab_hf.layout import table
from collab_hf.modeling.plan import LayerPlan

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "checkpoints"
BUDGETS = {"half": 0.5, "quarter": 0.25}

# Of the shipped text, so many lines calibrate; the others are for evaluation.
EXAMPLES = 1000

# Of the whole model, with fewer lines, so that all of the demo takes about three minutes.
OPERATIONS = 0.5
WHOLE_EXAMPLES = 256
BATCH_SIZE, LENGTH = 8, 128


def collab_hf(*arguments: object) -> dict[str, Any]:
    """Run one command in a process of its own.

    Args:
        *arguments: the words after `collab-hf`.

    Returns:
        Its JSON answer.
    """
    command = [sys.executable, "-m", "collab_hf", *map(str, arguments), "--json"]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode:
        raise typer.Exit(result.returncode)  # the command said why
    values: dict[str, Any] = json.loads(result.stdout)
    return values


def measure(model: Path, scratch: Path, stsb: Path | None) -> list[list[str]]:
    """Compress and evaluate every variant.

    Args:
        model: the original checkpoint.
        scratch: directory for the results.
        stsb: pairs of sentences with scores, for one more column.

    Returns:
        Rows of the table: the original, then the variants.
    """
    size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    rows: list[list[str]] = []
    for name, budget in BUDGETS.items():
        typer.echo(f"compressing to a {name} of the query/key parameters", err=True)
        out = scratch / name
        made = collab_hf(
            *("compress", model, "-o", out, "--budget", budget),
            *("--calibration", "default", "--calibration-examples", EXAMPLES),
        )
        found = collab_hf("evaluate", out, "--task", "agreement", "--against", model)
        if not rows:
            before, all_before = made["qk_parameters_before"], made["parameters_before"]
            rows.append(["original", f"{before:,}", f"{all_before:,}", f"{size / 1e6:.1f}", "0", "1"])
            rows[-1] += spearman(model, stsb)
        rows.append(row(name, made, found) + spearman(out, stsb))
    return rows


def row(name: str, made: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What one variant has to show.

    Args:
        name: what to call it.
        made: answer of `collab-hf compress`.
        found: answer of `collab-hf evaluate --task agreement`.

    Returns:
        The cells under `HEADER`.
    """
    methods = sorted({_form(layer) for layer in made["layers"]})
    kept = made["qk_parameters_after"] / made["qk_parameters_before"]
    return [
        f"{name} ({', '.join(methods)})",
        f"{made['qk_parameters_after']:,} ({kept:.1%})",
        f"{made['parameters_after']:,}",
        f"{made['file_size'] / 1e6:.1f}",
        f"{made['mean_relative_error']:.3f}",
        f"{found['mean_cosine']:.3f}",
    ]


def halve(model: Path, scratch: Path, stsb: Path | None) -> list[str]:
    """Compress the whole model, evaluate it, and time it beside the original.

    Args:
        model: the original checkpoint.
        scratch: directory for the result.
        stsb: pairs of sentences with scores, for one more column.

    Returns:
        The cells under `WHOLE_HEADER`.
    """
    typer.echo(f"compressing the whole model to {OPERATIONS:.0%} of its layers' operations", err=True)
    out = scratch / "whole"
    made = collab_hf(
        *("compress", model, "-o", out, "--flops", OPERATIONS, "--length", LENGTH, "--heal-steps", 0),
        *("--calibration", "default", "--calibration-examples", WHOLE_EXAMPLES),
    )
    found = collab_hf("evaluate", out, "--task", "agreement", "--against", model)
    case = ("--batch-sizes", BATCH_SIZE, "--lengths", LENGTH)
    speed = collab_hf("bench", out, "--against", model, *case)["measurements"][0]["timing"]["throughput"]
    return [
        f"{made['parameters_after']:,}",
        f"{made['file_size'] / 1e6:.1f}",
        f"{speed['median']:.2f}" if speed["measured"] else "not measured",
        f"{found['mean_cosine']:.3f}",
        *spearman(out, stsb),
    ]


def spearman(model: Path, stsb: Path | None) -> list[str]:
    """The cell of the additional column, if it is asked for.

    Args:
        model: a checkpoint.
        stsb: pairs of sentences with scores, or None.

    Returns:
        One cell or none.
    """
    if stsb is None:
        return []
    return [f"{collab_hf('evaluate', model, '--task', 'stsb', '--data', stsb)['spearman']:.4f}"]


def _form(layer: dict[str, Any]) -> str:
    """The layer's method, or `tied tucker`."""
    return LayerPlan.from_dict(layer["plan"]).form_name if layer["plan"] else str(layer["method"])


HEADER = ["kept", "query/key parameters", "all parameters", "file size (MB)", "relative error", "agreement"]

WHOLE_HEADER = ["all parameters", "file size (MB)", "times as fast", "agreement"]


def main(
    cache: Annotated[
        Path, typer.Option(envvar="COLLAB_HF_CHECKPOINTS", help="Directory of real checkpoints.")
    ] = CACHE,
    stsb: Annotated[
        Path | None, typer.Option(help="TSV with sentence1, sentence2, score: adds a column of Spearman.")
    ] = None,
) -> None:
    """Compress minilm, evaluate it, print the tables."""
    model = cache / "minilm"
    if not model.exists():
        checkpoints.materialise("minilm", model)
    more = ["Spearman"] if stsb else []
    with tempfile.TemporaryDirectory(prefix="collab-hf-demo-") as scratch:
        rows, whole = measure(model, Path(scratch), stsb), halve(model, Path(scratch), stsb)
    typer.echo(table([*HEADER, *more], rows))
    typer.echo(f"\nThe whole model, {OPERATIONS:.0%} of the operations of its layers:\n")
    typer.echo(table([*WHOLE_HEADER, *more], [whole]))
    typer.echo(
        "relative error: of the attention scores on the calibration text, mean over layers; "
        "agreement: mean cosine with the original's embeddings on text held out from calibration; "
        f"times as fast: measured on this machine, batches of {BATCH_SIZE} with {LENGTH} tokens",
        err=True,
    )


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else it warns when a process is started
    typer.run(main)
