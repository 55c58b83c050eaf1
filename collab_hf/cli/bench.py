"""`collab-hf bench`: how fast a compressed checkpoint is against its original."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from collab_hf.cli import options
from collab_hf.cli.answers import Answer, start_reporting
from collab_hf.hub.source import Loading
from collab_hf.layout import table
from collab_hf.modeling.errors import ConfigError
from collab_hf.progress import stage
from collab_hf.ranges import check_above

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from collab_hf.measure.bench import Case, Measurement

_DTYPES = ("float32", "bfloat16", "float16")
EXAMPLE = "Example: collab-hf bench bert-quarter --against bert-base-uncased --lengths 16,128,512"


def bench(
    directory: options.Directory,
    against: Annotated[str, typer.Option(metavar="MODEL", help="The original to compare with.")],
    lengths: Annotated[
        str | None,
        typer.Option(metavar="N,..", help="Tokens in an example; for text only.  [default: 16,128,512]"),
    ] = None,
    batch_sizes: Annotated[str, typer.Option(metavar="N,..", help="Examples in a batch.")] = "1,8",
    dtype: Annotated[
        str, typer.Option(metavar="DTYPE,..", help="Any of float32, bfloat16 and float16.")
    ] = "float32",
    threads: Annotated[
        str | None, typer.Option(metavar="N,..", help="Threads; by default as many as torch uses.")
    ] = None,
    seconds: Annotated[
        float, typer.Option(metavar="S", min=0.01, help="Time each case for about S seconds.")
    ] = 4.0,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw the throughput ratios to a file.")
    ] = None,
    device: options.Device = "cpu",
    trust_remote_code: options.TrustRemoteCode = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    as_json: options.AsJson = False,
) -> Answer:
    """Time the checkpoint in DIR and its original, taking turns."""
    sizes, dtypes = _numbers("--batch-sizes", batch_sizes), _dtypes(dtype)
    if lengths is not None:
        _numbers("--lengths", lengths)
    counts = None if threads is None else _numbers("--threads", threads)
    check_above("--seconds", seconds)
    import torch

    from collab_hf.measure.bench import Case, bench_models, check_case
    from collab_hf.measure.bench_plot import check_plotting
    from collab_hf.measure.bench_plot import plot as draw

    if plot is not None:
        check_plotting(plot)
    wanted = sizes, dtypes, counts or [torch.get_num_threads()]
    start_reporting()
    loading = Loading(device=device, trust_remote_code=trust_remote_code)
    original, compressed = loading.model(against), loading.model(directory)
    chosen = _lengths(original, lengths)
    cases = [Case(b, length, d, t) for length, b, d, t in product(chosen, *wanted)]
    for case in cases:
        check_case(original, case)
    found = bench_models(original, compressed, cases, seconds=seconds, progress=_announce)
    if plot is not None:
        draw(found, plot)
    values: dict[str, Any] = {
        "directory": str(directory),
        "against": against,
        "device": device,
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
        "measurements": [one.to_dict() for one in found],
    }
    return Answer(values, _describe(found))


def _lengths(model: PreTrainedModel, given: str | None) -> list[int]:
    from collab_hf.measure.bench import image_length

    own = image_length(model)
    if own is not None:
        if given is not None:
            raise ConfigError(f"--lengths is for text; an image is {own} tokens for this model")
        return [own]
    most = getattr(model.config, "max_position_embeddings", 512)
    return _numbers("--lengths", given) if given else [n for n in (16, 128, 512) if n <= most]


def _numbers(option: str, text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"{option} must be whole numbers above 0 with commas between them, got {text!r}")
    return [int(part) for part in parts]


def _dtypes(text: str) -> list[str]:
    found = text.split(",")
    wrong = [name for name in found if name not in _DTYPES]
    if wrong:
        raise ConfigError(f"dtype must be float32, bfloat16 or float16, got {wrong[0]!r}")
    return found


def _announce(case: Case) -> None:
    stage(f"Timing batch {case.batch_size}, length {case.length}, {case.dtype}, {case.threads} threads")


def _describe(found: list[Measurement]) -> str:
    header = ["length", "batch", "dtype", "threads", "before ms", "after ms", "throughput ratio (quartiles)"]
    header += ["peak memory", "GFLOPs before", "after", "saved by plan"]
    rows = []
    for one in found:
        case, timing = one.case, one.timing
        rows.append(
            [
                str(case.length),
                str(case.batch_size),
                case.dtype,
                str(case.threads),
                f"{timing.seconds_before * 1e3:.2f}",
                f"{timing.seconds_after * 1e3:.2f}",
                str(timing.throughput),
                f"{one.memory_after / one.memory_before:.2f}",
                *(
                    f"{count / 1e9:.3g}"
                    for count in (one.flops_before, one.flops_after, one.flops_saved_by_plan)
                ),
            ]
        )
    return table(header, rows)
