"""What the papers' experiments have in common: cases times seeds, resumed where they stopped, and a report.

A script names an `Experiment`. Its settings are one YAML in configs/experiments with a section for each size:
`paper`, `small` (two CPU cores) and `smoke` (seconds, for tests).
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import yaml
from tqdm import tqdm
from transformers import Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from collab_hf import CollabError

Settings = Mapping[str, Any]
CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "experiments"


@dataclass(frozen=True, eq=False)
class Case:
    """One point of a plot.

    Args:
        line: which line of the plot, and column of the table.
        x: where on the line, and row of the table.
        options: what the measurement is to do.
        table: which of the experiment's tables.
    """

    line: str
    x: int | float | str
    options: Settings = field(default_factory=dict)
    table: str = ""

    @property
    def name(self) -> str:
        """A name for files."""
        whole = "-".join(f"{part}" for part in (self.table, self.line, self.x) if part != "")
        return whole.replace(" / ", "_by_").replace("/", "-").replace(" ", "_")


@dataclass(frozen=True)
class Experiment:
    """Cases and how to measure one.

    Args:
        name: of the YAML and of the plot.
        x: what the rows are.
        cases: from the settings.
        measure: one case with one seed; what it trains goes into the directory given.
    """

    name: str
    x: str
    cases: Callable[[Settings], Sequence[Case]]
    measure: Callable[[Settings, Case, int, Path], Mapping[str, float]]


def key_dimension_cases(settings: Settings, heads: int) -> list[Case]:
    """Concatenated and collaborative attention at every key dimension, which all heads have together.

    Args:
        settings: with `key_dims`, and perhaps `mixing` and `dims_per_head`.
        heads: number of heads of a layer.

    Returns:
        Cases whose options are those of `collaborative`.
    """
    shared = {name: settings.get(name) for name in ("mixing", "dims_per_head")}
    return [
        Case(line, size, options)
        for size in settings["key_dims"]
        for line, options in (
            ("concatenated", {"head_dim": size // heads}),
            ("collaborative", {"rank": size, **shared}),
        )
    ]


def accuracy(prediction: Any) -> dict[str, float]:
    """Share of rows whose likeliest label is the right one, for a Trainer."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def command(experiment: Experiment) -> Callable[..., None]:
    """The function behind a script's command line.

    Args:
        experiment: what it runs.

    Returns:
        For `typer.run`.
    """

    def main(
        output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Results and plot.")],
        size: Annotated[Literal["paper", "small"], typer.Option(help="Section of the YAML.")] = "paper",
        smoke: Annotated[bool, typer.Option("--smoke", help="A run of seconds instead.")] = False,
        config: Annotated[Path, typer.Option(metavar="FILE", help="Settings.")] = CONFIGS
        / f"{experiment.name}.yaml",
        train: Annotated[str | None, typer.Option(metavar="FILE", help="Instead of the YAML's data.")] = None,
        dev: Annotated[str | None, typer.Option(metavar="FILE", help="Instead of the YAML's data.")] = None,
        seeds: Annotated[str | None, typer.Option(metavar="N,..", help="Instead of the YAML's.")] = None,
    ) -> None:
        """Train every case with every seed, go on where an earlier run stopped, and print the tables."""
        whole = yaml.safe_load(config.read_text(encoding="utf-8"))
        settings = dict(whole["smoke" if smoke else size])
        if train is not None or dev is not None:
            settings["data"] = {**settings["data"], "train": train, "dev": dev}
        if seeds is not None:
            settings["seeds"] = [int(seed) for seed in seeds.split(",")]
        try:
            with redirect_stdout(sys.stderr):
                results = run_all(experiment, settings, output)
        except CollabError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from None
        figures = whole.get("paper_figures", {})
        typer.echo(report(experiment, settings, results, figures, output))

    return main


def run_all(experiment: Experiment, settings: Settings, output: Path) -> dict[Case, list[dict[str, float]]]:
    """Measure what is not there yet.

    Args:
        experiment: cases and how to measure one.
        settings: a section of the YAML.
        output: every measurement has a folder here; one that has a result is not run again.

    Returns:
        Metrics by case, one entry for each seed.
    """
    found: dict[Case, list[dict[str, float]]] = {}
    pairs = [(case, seed) for case in experiment.cases(settings) for seed in settings["seeds"]]
    for case, seed in tqdm(pairs, desc=experiment.name, unit="run", disable=not sys.stderr.isatty()):
        directory = output / "runs" / case.name / f"seed-{seed}"
        result = directory / "result.json"
        if not result.exists():
            directory.mkdir(parents=True, exist_ok=True)
            set_seed(seed)
            metrics = dict(experiment.measure(settings, case, seed, directory))
            result.write_text(json.dumps(metrics) + "\n", encoding="utf-8")
        found.setdefault(case, []).append(json.loads(result.read_text(encoding="utf-8")))
    return found


def train_and_evaluate(
    model: Any, data: tuple[Any, Any], training: Settings, seed: int, directory: Path, **options: Any
) -> dict[str, float]:
    """Train with transformers' Trainer from the last checkpoint on, and evaluate.

    Args:
        model: to train.
        data: to train and to evaluate on.
        training: for TrainingArguments.
        seed: of the order of the data and of dropout.
        directory: for checkpoints.
        **options: for the Trainer; `trainer` and `arguments` are classes in its and its arguments' place.

    Returns:
        What `evaluate` gives, without the prefix and without times.
    """
    trainer_class, arguments_class = (
        options.pop("trainer", Trainer),
        options.pop("arguments", TrainingArguments),
    )
    arguments = arguments_class(
        output_dir=str(directory),
        seed=seed,
        **{
            "save_total_limit": 1,
            "logging_strategy": "no",
            "report_to": [],
            "disable_tqdm": not sys.stderr.isatty(),
            "dataloader_pin_memory": False,
            **training,
        },
    )
    trainer = trainer_class(
        model=model, args=arguments, train_dataset=data[0], eval_dataset=data[1], **options
    )
    if arguments.max_steps or arguments.num_train_epochs:
        trainer.train(resume_from_checkpoint=get_last_checkpoint(str(directory)))
    metrics = {name.removeprefix("eval_"): value for name, value in trainer.evaluate().items()}
    times = ("runtime", "per_second", "epoch", "preparation_time")
    return {name: value for name, value in metrics.items() if not name.endswith(times)}


def report(
    experiment: Experiment,
    settings: Settings,
    results: Mapping[Case, Sequence[Mapping[str, float]]],
    figures: Mapping[str, Any],
    output: Path,
) -> str:
    """Write results.json and a plot for each table, and make the tables.

    Args:
        experiment: what was run.
        settings: with `metrics`, the names of those that are shown.
        results: metrics by case, one entry for each seed.
        figures: the paper's, by table (where there are several), line and row.
        output: where the files go.

    Returns:
        Markdown: mean and standard deviation over seeds, beside the paper's figures.
    """
    rows = [
        {
            "table": case.table,
            "line": case.line,
            experiment.x: case.x,
            "seeds": len(found),
            "mean": {name: statistics.fmean(run[name] for run in found) for name in found[0]},
            "spread": {name: _spread([run[name] for run in found]) for name in found[0]},
        }
        for case, found in results.items()
    ]
    whole = {"experiment": experiment.name, "settings": settings, "results": rows}
    (output / "results.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    tables = []
    for table in dict.fromkeys(case.table for case in results):
        for metric in settings["metrics"]:
            own = {c: [run[metric] for run in found] for c, found in results.items() if c.table == table}
            heading = ", ".join(filter(None, (table, metric)))
            papers = figures.get(table, {}) if table else figures
            tables.append(f"**{heading}**\n\n{_table(experiment.x, own, papers)}")
            name = heading.replace(" / ", "_by_").replace("/", "-").replace(" ", "_")
            _plot(experiment.x, metric, own, output / f"{name}.svg")
    return "\n\n".join(tables)


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _table(x: str, results: Mapping[Case, Sequence[float]], figures: Mapping[str, Mapping[Any, Any]]) -> str:
    lines = list(dict.fromkeys(case.line for case in results))
    papers = [line for line in lines if line in figures]
    cells = {(case.line, case.x): _cell(values) for case, values in results.items()}
    head = [x, *lines, *(f"{line}, the paper" for line in papers)]
    rows = [
        [
            str(at),
            *(cells.get((line, at), "") for line in lines),
            *(str(figures[line].get(at, "")) for line in papers),
        ]
        for at in dict.fromkeys(case.x for case in results)
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def _cell(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.3f}"
    return f"{mean} ± {_spread(values):.3f}" if len(values) > 1 else mean


def _plot(x: str, metric: str, results: Mapping[Case, Sequence[float]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    for line in dict.fromkeys(case.line for case in results):
        own = [(str(case.x), values) for case, values in results.items() if case.line == line]
        means = [statistics.fmean(values) for _, values in own]
        spreads = [_spread(values) for _, values in own]
        axes.errorbar([at for at, _ in own], means, spreads, marker="o", capsize=3, label=line)
    axes.set_xlabel(x)
    axes.set_ylabel(metric)
    axes.legend()
    figure.savefig(path)
