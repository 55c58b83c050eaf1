"""Time, peak memory and error of the structured solvers against tensorly's, on layers and a whole model.

Every measurement runs in a process of its own, ours and tensorly's in turn. `parafac` runs as in the paper's
code (random start, tol 1e-6), `partial_tucker` with its defaults, both on the dense tensor in the same dtype.
Layers of minilm are real where a checkpoint is given. Others are random: W_h = diag(s) G_h with Gaussian G_h
and s_i = (1 + i)^-1/2 for all heads, so that heads share directions and singular values fall off.

Example:
    python scripts/bench_decompose.py --checkpoint .cache/checkpoints/minilm --json results.json
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from collab_hf import CollabConfig, compress_, load_model
from collab_hf.host.sites import attention_sites
from collab_hf.layout import table
from collab_hf.modeling.plan import LayerPlan
from collab_hf.parts.query_key.candidates import score_tensor
from collab_hf.tensors import ScoreTensor, decompose

SIZES = {"minilm": (12, 384, 32), "bert-base": (12, 768, 64), "bert-large": (16, 1024, 64)}


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        size: a key of SIZES, or `model`: all twelve layers of BERT-base.
        solver: `ours`, or a function of tensorly.decomposition.
        method: `cp` or `tucker`.
        rank: width of both shared projections; 0 for a budget of a quarter, chosen by `compress_`.
        iterations: sweeps at most, 0 for as many as it takes.
        repeat: number of the repetition.
        precision: dtype of the solver.
    """

    size: str
    solver: str
    method: str
    rank: int
    iterations: int
    repeat: int = 0
    precision: str = "float64"


def layer_scores(size: str, checkpoint: Path | None) -> ScoreTensor:
    """Weights of one layer: the middle one of the checkpoint for minilm, else random ones.

    Args:
        size: a key of SIZES.
        checkpoint: minilm's directory, or None.

    Returns:
        The score tensor, without content bias.
    """
    if size == "minilm" and checkpoint is not None:
        site = list(attention_sites(load_model(checkpoint)).values())[3]
        return score_tensor(site, CollabConfig()).without_bias()
    heads, hidden, head_dim = SIZES[size]
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.arange(1, hidden + 1).pow(-0.5).view(1, -1, 1)

    def weights() -> Tensor:
        return spectrum * torch.randn(heads, hidden, head_dim, generator=generator)

    return ScoreTensor(weights(), weights())


def solve(case: Case, scores: ScoreTensor) -> float:
    """Run one solver on one layer.

    Args:
        case: what to run.
        scores: the layer.

    Returns:
        ||T - T^||_F / ||T||_F.
    """
    if case.solver == "ours":
        plan = LayerPlan(case.method, case.rank, case.rank, case.rank)
        precision: Any = case.precision
        sweeps = case.iterations or None
        return decompose(scores, plan, precision=precision, max_sweeps=sweeps).relative_error
    import tensorly.decomposition

    dense = scores.to(getattr(torch, case.precision)).to_dense().transpose(0, 1).numpy()  # (D, H, E)
    limit = {"n_iter_max": case.iterations} if case.iterations else {}
    if case.method == "cp":
        _, errors = tensorly.decomposition.parafac(
            dense, case.rank, init="random", tol=1e-6, random_state=0, return_errors=True, **limit
        )
    else:
        ranks = [case.rank, case.rank]
        _, errors = tensorly.decomposition.partial_tucker(dense, ranks, modes=[0, 2], **limit)
    return float(errors[-1])


def whole_model(case: Case) -> tuple[Callable[[], float], int]:
    """BERT-base with random weights of falling spectrum.

    Args:
        case: what to run.

    Returns:
        A call that compresses it and gives the mean error, and the bytes of its weights.
    """
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig()).eval()
    scores = layer_scores("bert-base", None)
    with torch.no_grad():
        for site in attention_sites(model).values():
            for name, weight in (("query", scores.query), ("key", scores.key)):
                target = site.module.get_parameter(f"{name}.weight")
                target.copy_(weight.permute(0, 2, 1).flatten(0, 1))
    settings: dict[str, Any] = {"rank": case.rank} if case.rank else {"budget": 0.25}
    config = CollabConfig(method=case.method, precision=case.precision, **settings)  # type: ignore[arg-type]
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    return lambda: compress_(model, config).mean_relative_error, size


def measure(case: Case, checkpoint: Path | None, threads: int) -> dict[str, Any]:
    """Run one case in this process.

    Args:
        case: what to run.
        checkpoint: minilm's directory, or None.
        threads: torch threads.

    Returns:
        Seconds, the rise of the resident memory's peak in MB, and the relative error.
    """
    torch.set_num_threads(threads)
    size = 0
    if case.size == "model":
        run, size = whole_model(case)
    else:
        scores = layer_scores(case.size, checkpoint)

        def run() -> float:
            return solve(case, scores)

    torch.linalg.eigh(torch.eye(64) @ torch.eye(64))  # load the libraries before the clock starts
    if case.solver != "ours":
        import tensorly.decomposition  # noqa: F401
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter(), time.process_time()
    error = run()
    seconds = time.perf_counter() - start[0], time.process_time() - start[1]
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024  # kilobytes on Linux
    result = {"cpu": seconds[1], "wall": seconds[0], "peak_mb": peak, "error": error}
    return {**result, "peak_over_model": (size + peak * 2**20) / size} if size else result


def cases(full: bool, repeats: int = 1) -> list[Case]:
    """What to measure, solvers in turn.

    Args:
        full: tensorly to its own stopping rules; else a few of its iterations.
        repeats: runs of each case.

    Returns:
        The cases, in the order to run them.
    """
    found = []
    for repeat in range(repeats):
        for size in ("minilm", "bert-base", "bert-large"):
            rank = SIZES[size][1] // 2
            # Few enough for five minutes in all: an iteration of parafac takes 6 s at BERT-base size.
            cap = 0 if full else {"minilm": 10, "bert-base": 3, "bert-large": 2}[size]
            found += [
                Case(size, "ours", "cp", rank, 0, repeat),
                Case(size, "ours", "cp", rank, 1, repeat),  # often below parafac's error already
                Case(size, "parafac", "cp", rank, cap, repeat),
                Case(size, "ours", "tucker", rank // 2, 0, repeat),
                Case(size, "partial_tucker", "tucker", rank // 2, cap, repeat),
            ]
        found += [Case("model", "ours", "cp", 384, 0, repeat), Case("model", "ours", "tucker", 0, 0, repeat)]
    return found


def main(
    checkpoint: Annotated[Path | None, typer.Option(help="minilm, for real weights.")] = None,
    full: Annotated[
        bool, typer.Option(help="Let tensorly run to its own end: half an hour or so for each repeat.")
    ] = False,
    repeats: Annotated[int, typer.Option(help="Runs of each case.")] = 1,
    only: Annotated[str | None, typer.Option(help="Sizes to run, separated by commas.")] = None,
    threads: Annotated[int, typer.Option(help="torch and BLAS threads.")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write the figures.")] = None,
    case: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure every case in a process of its own and print the table."""
    if case is not None:
        typer.echo(json.dumps(measure(Case(**json.loads(case)), checkpoint, threads)))
        return
    rows, kept = [], []
    for item in cases(full, repeats):
        if only is not None and item.size not in only.split(","):
            continue
        found = run_apart(item, checkpoint, threads)
        kept.append({**asdict(item), **found})
        typer.echo(json.dumps(kept[-1]), err=True)
        if json_file is not None:
            json_file.write_text(json.dumps(kept, indent=1) + "\n")
        sweeps = str(item.iterations or "to its end")
        rank = str(item.rank or "budget 1/4")
        figures = [f"{found[n]:.2f}" for n in ("cpu", "wall")] + [f"{found['peak_mb']:.0f}"]
        rows.append([item.size, item.method, rank, item.solver, sweeps, *figures, f"{found['error']:.4f}"])
    header = ["layer", "form", "rank", "solver", "sweeps at most", "CPU s", "wall s", "peak MB", "error"]
    typer.echo(table(header, rows))


def run_apart(item: Case, checkpoint: Path | None, threads: int) -> dict[str, Any]:
    """Run one case in a fresh process, whose peak memory is its own.

    Args:
        item: what to run.
        checkpoint: minilm's directory, or None.
        threads: torch and BLAS threads.

    Returns:
        What `measure` gives.
    """
    command = [sys.executable, __file__, "--case", json.dumps(asdict(item)), "--threads", str(threads)]
    if checkpoint is not None:
        command += ["--checkpoint", str(checkpoint)]
    environment = {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **environment}
    )
    values: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return values


if __name__ == "__main__":
    typer.run(main)
