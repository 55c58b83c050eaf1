"""Quality without any training: method x budget on real checkpoints, from weights alone and from data.

Text encoders: Spearman correlation on the STS-B development set, relative to the original's, and the cosine
of sentence embeddings with the original's. Image encoders: cosine of CLS and patch states on photographs
that calibration did not see, and the accuracy of a logistic probe on CIFAR-10 features. Finished rows are
kept in a JSON file, so a run that is stopped continues where it was.

Example:
    python scripts/bench_quality.py .cache/checkpoints/minilm --stsb-train train.tsv --stsb-dev dev.tsv
"""

from __future__ import annotations

import copy
import datetime
import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from unittest import mock

import tensorly.decomposition
import torch
import typer

from collab_hf import CollabConfig, collect_statistics, compress_, load_model
from collab_hf.calibration.examples import load_batches
from collab_hf.checkpoint.load import load_processor
from collab_hf.host.sites import attention_sites
from collab_hf.modeling.errors import RankError
from collab_hf.tensors.moments import LayerStatistics
from quality_tasks import Photographs, Sentences, Task

BUDGETS = (0.5, 0.25, 0.125)

# Of the probe where checkpoints are judged, so that it is tested on all pictures.
_FOLDS = 5


@dataclass(frozen=True)
class Variant:
    """One line of the table at one budget.

    Attributes:
        name: what the table calls it.
        settings: fields of CollabConfig; `dims_per_head` as a share of head_dim.
        source: what it is made from: `weights`, `data` (decomposed on calibration data), or `reconstructed`
            on them as well, which is what compress_ does.
        published: whether parafac runs as in the paper's code: random start, tol 1e-6, no whitening.
    """

    name: str
    settings: Mapping[str, Any]
    source: Literal["weights", "data", "reconstructed"] = "data"
    published: bool = False


TIED = {"method": "tucker", "tied": True}

VARIANTS = (
    Variant("tied tucker", TIED),
    Variant("tucker", {"method": "tucker"}),
    Variant("cp", {"method": "cp"}),
    Variant("svd", {"method": "svd"}),
    Variant("cp, k = head_dim / 2", {"method": "cp", "dims_per_head": 0.5}),
    Variant("cp, k = head_dim", {"method": "cp", "dims_per_head": 1.0}),
    Variant("tied tucker", TIED, source="reconstructed"),
    Variant("tucker", {"method": "tucker"}, source="reconstructed"),
    Variant("cp", {"method": "cp"}, source="reconstructed"),
    Variant("svd", {"method": "svd"}, source="reconstructed"),
    Variant("cp, k = head_dim / 2", {"method": "cp", "dims_per_head": 0.5}, source="reconstructed"),
    Variant("tied tucker", TIED, source="weights"),
    Variant("tucker", {"method": "tucker"}, source="weights"),
    Variant("cp", {"method": "cp"}, source="weights"),
    Variant("svd", {"method": "svd"}, source="weights"),
    Variant("parafac", {"method": "cp", "solver": "tensorly.parafac"}, source="weights", published=True),
)


@dataclass(frozen=True)
class Run:
    """One checkpoint with its data.

    Attributes:
        original: the dense model.
        task: what is measured on it.
        batches: calibration data.
        statistics: moments of its layers' inputs in them.
        iterations: iterations of parafac at most.
    """

    original: Any
    task: Task
    batches: Sequence[Mapping[str, Any]]
    statistics: Mapping[str, LayerStatistics]
    iterations: int


@contextmanager
def published_parafac(iterations: int) -> Iterator[None]:
    """Let `tensorly.parafac` run as the paper's code calls it, but with a cap on its iterations."""
    original = tensorly.decomposition.parafac

    def parafac(tensor: Any, rank: int, random_state: int = 0) -> Any:
        return original(
            tensor, rank, n_iter_max=iterations, init="random", tol=1e-6, random_state=random_state
        )

    with mock.patch.object(tensorly.decomposition, "parafac", parafac):
        yield


def measure(bench: Run, variant: Variant, budget: float) -> dict[str, Any]:
    """Compress a copy and evaluate it.

    Args:
        bench: the checkpoint and its data.
        variant: what to do.
        budget: share of the query/key parameters to keep.

    Returns:
        The figures of one row; `refused` where the budget is too small for the form.
    """
    settings = dict(variant.settings)
    data: Any = {"weights": None, "data": bench.statistics, "reconstructed": bench.batches}[variant.source]
    if "dims_per_head" in settings:
        head_dim = next(iter(attention_sites(bench.original).values())).shape.head_dim
        settings["dims_per_head"] = round(settings["dims_per_head"] * head_dim)
    model = copy.deepcopy(bench.original)
    start = time.process_time()
    try:
        with published_parafac(bench.iterations):
            config = CollabConfig(budget=budget, **settings)
            report = compress_(model, config, data)
    except RankError as error:
        return {"refused": str(error)}
    seconds = time.process_time() - start
    plans = {
        f"{layer.rank}x{layer.plan.key_rank}/{layer.plan.score_width}"
        for layer in report.layers
        if layer.plan
    }
    return {
        "kept": round(report.qk_parameters_after / report.qk_parameters_before, 4),
        "forms": sorted(plans),
        "relative_error": round(report.mean_relative_error, 4),
        "cpu_seconds": round(seconds, 1),
        **{name: round(value, 5) for name, value in bench.task.evaluate(model).items()},
    }


def row_key(variant: Variant, budget: float) -> str:
    """What names a row in the results file."""
    return f"{variant.name} | {variant.source} | {budget:g}"


def report_table(results: Mapping[str, Any]) -> str:
    """The finished rows as a Markdown table: a line for each form, and a column for each budget and figure.

    Args:
        results: the results file.

    Returns:
        The table; `-` where a row is missing or the budget is too small for the form.
    """
    figures = ["kept", *results["original"]]
    budgets = [f"{budget:g}" for budget in BUDGETS]
    header = ["form", "from", *(f"{name} at {' / '.join(budgets)}" for name in figures)]
    rows = [["original", "", "1", *(f"{value:.4f}" for value in results["original"].values())]]
    for name in dict.fromkeys(key.rpartition(" | ")[0] for key in results["rows"]):
        found = [results["rows"].get(f"{name} | {budget}", {}) for budget in budgets]
        cells = [" / ".join(f"{r[f]:.4f}" if f in r else "-" for r in found) for f in figures]
        rows.append([*name.split(" | "), *cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])


def prepare_sentences(
    original: Any, processor: Any, train: Path, dev: Path, examples: int
) -> tuple[Task, Any]:
    """STS-B: calibration on unlabelled training sentences, evaluation on the development pairs."""
    lines = train.read_text(encoding="utf-8").splitlines()
    columns = lines[0].split("\t")
    sides = [columns.index("sentence1"), columns.index("sentence2")]
    texts = sorted({line.split("\t")[side] for line in lines[1:] for side in sides})
    random.Random(0).shuffle(texts)
    batches = load_batches(texts[:examples], processor, config=original.config, max_examples=examples)
    return Sentences(original, processor, dev), batches


def prepare_images(
    original: Any, processor: Any, images: Path, cifar: tuple[Path, Path], counts: tuple[int, int, int]
) -> tuple[Task, Any]:
    """Photographs in two halves, one to calibrate with and one to compare on, and CIFAR-10 for the probe."""
    files = sorted(path for path in images.iterdir() if path.is_file())
    random.Random(0).shuffle(files)
    seen, held = files[0::2][: counts[0]], (files[1::2] if counts[0] else files)[: counts[1]]
    opened = [[open_picture(path) for path in part] for part in (seen, held)]
    batches: Any = ()
    if seen:
        batches = load_batches(
            opened[0], processor, config=original.config, batch_size=8, max_examples=len(seen)
        )
    folds = 0 if seen else _FOLDS
    return Photographs(original, processor, opened[1], cifar, counts[2], folds), batches


def open_picture(path: Path) -> Any:
    """An image in RGB, in memory."""
    from PIL import Image

    with Image.open(path) as image:
        return image.convert("RGB")


def main(
    checkpoint: Path,
    stsb_train: Annotated[Path | None, typer.Option(help="STS-B training set; labels are not read.")] = None,
    stsb_dev: Annotated[Path | None, typer.Option(help="STS-B development set.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of photographs.")] = None,
    cifar_train: Annotated[Path | None, typer.Option(help=".npz with images and labels.")] = None,
    cifar_dev: Annotated[Path | None, typer.Option(help=".npz with images and labels.")] = None,
    results: Annotated[Path | None, typer.Option(help="JSON file of finished rows.")] = None,
    examples: Annotated[int, typer.Option(help="Calibration sentences, or photographs at most.")] = 1000,
    photographs: Annotated[int, typer.Option(help="Photographs to compare on.")] = 250,
    probe: Annotated[int, typer.Option(help="CIFAR-10 images of each set for the probe; 0: none.")] = 4000,
    iterations: Annotated[int, typer.Option(help="Iterations of parafac at most.")] = 100,
    only: Annotated[
        list[str] | None, typer.Option(help="Start of the rows to run; repeat for several.")
    ] = None,
    threads: Annotated[int, typer.Option(help="torch threads.")] = 1,
    judge: Annotated[
        list[Path] | None,
        typer.Option(
            help="A compressed checkpoint to measure in place of the table's rows; repeat for several. All "
            "photographs then serve to compare on, and the probe is cross-validated over both sets."
        ),
    ] = None,
) -> None:
    """Fill in the rows that the results file lacks, and print the table."""
    torch.set_num_threads(threads)
    path = results or Path(f"quality-{checkpoint.name}.json")
    done: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    original, processor = load_model(checkpoint), load_processor(checkpoint)
    if stsb_train and stsb_dev:
        task, batches = prepare_sentences(original, processor, stsb_train, stsb_dev, examples)
    elif images and cifar_train and cifar_dev:
        counts = (0 if judge else examples, photographs, probe)
        task, batches = prepare_images(original, processor, images, (cifar_train, cifar_dev), counts)
    else:
        raise typer.BadParameter(
            "give --stsb-train and --stsb-dev, or --images, --cifar-train and --cifar-dev"
        )
    if judge:
        for place in (checkpoint, *judge):
            typer.echo(json.dumps({"model": place.name, **task.evaluate(load_model(place))}))
        return
    modules = {name: site.module for name, site in attention_sites(original).items()}
    batches = list(batches)
    bench = Run(original, task, batches, collect_statistics(original, modules, batches), iterations)
    done.update(
        checkpoint=checkpoint.name,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        data=task.description,
        parafac_iterations=iterations,
        original={name: round(value, 5) for name, value in task.evaluate(original).items()},
    )
    for variant in VARIANTS:
        for budget in BUDGETS:
            key = row_key(variant, budget)
            if key in done["rows"] or not key.startswith(tuple(only or [""])):
                continue
            done["rows"][key] = measure(bench, variant, budget)
            typer.echo(json.dumps({key: done["rows"][key]}), err=True)
            path.write_text(json.dumps(done, indent=1) + "\n")
    typer.echo(report_table(done))


if __name__ == "__main__":
    typer.run(main)
