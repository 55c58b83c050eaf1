"""Measure what heads are worth: curves of pruning orders, ablation of single heads, and speed after pruning.

Orders see calibration examples without labels. Text models are measured by Spearman's correlation on pairs of
STS-B; image models, and text models beside that, by the mean cosine of embeddings to the whole model's.

Example:
    python scripts/bench_heads.py .cache/checkpoints/minilm --calibration sentences.txt --stsb stsb_dev.tsv
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from collab_hf import CollabConfig, compress_, heads, load_batches, load_model, load_processor
from collab_hf.errors import ConfigError
from collab_hf.measure.answers import Answers, Metric, agreement_answers, mean_metric, rank_metric
from collab_hf.measure.bench import Case, compare_calls, forward_call
from collab_hf.measure.evaluation import pair_cosines
from collab_hf.measure.tables import read_scores

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
BATCHES = (1, 4, 16, 64)
LENGTH = 32  # tokens, as sentences have them

# Name, what `pruning_order` is asked for, whether importance is normalised by layer, whether the output
# projections are refitted.
CURVES = (
    ("compensated", "compensated", False, True),
    ("importance, refitted", "importance", False, True),
    ("importance", "importance", False, False),
    ("importance over the norm of its layer", "importance", True, False),
    ("random, refitted", "random", False, True),
    ("random", "random", False, False),
    ("reverse", "reverse", False, False),
)
# A loss that the search for the most heads allows, relative to the whole model's figure.
ALLOWED = 0.01


@dataclass(frozen=True)
class Figures:
    """How models are measured.

    Attributes:
        name: of the main figure.
        worth: main figure of a model.
        cosine: mean cosine of its embeddings to the whole model's.
        answers: what ablation compares.
        metric: of those.
        tolerance: loss that ablation takes for none.
    """

    name: str
    worth: Callable[[Any], float]
    cosine: Callable[[Any], float]
    answers: Answers
    metric: Metric
    tolerance: float


def sentence_figures(model: Any, tokenizer: Any, path: Path, pairs: int, ablated: int) -> Figures:
    """Of a text encoder, on pairs with scores."""
    given, scores = read_scores(path, pairs)
    texts = sorted({text for pair in given for text in pair})
    batches = list(load_batches(texts, tokenizer, config=model.config, max_examples=len(texts)))
    cosines = agreement_answers(model, batches)
    few, few_scores = read_scores(path, ablated)

    def worth(changed: Any) -> float:
        found = pair_cosines(changed, tokenizer, given)
        return float(rank_metric(scores)(found, np.arange(len(found))))

    return Figures(
        f"Spearman on {len(given)} pairs",
        worth,
        lambda changed: float(cosines(changed).mean()),
        lambda changed: pair_cosines(changed, tokenizer, few),
        rank_metric(few_scores),
        0.0,
    )


def agreement_figures(model: Any, batches: Sequence[Any], ablated: int) -> Figures:
    """Of any model, on examples without labels."""
    every = agreement_answers(model, batches)
    few = agreement_answers(model, batches[: max(1, ablated // len(next(iter(batches[0].values()))))])

    def cosine(changed: Any) -> float:
        return float(every(changed).mean())

    return Figures("cosine", cosine, cosine, few, mean_metric, ALLOWED)


def curves(model: Any, seen: Sequence[Any], figures: Figures, seed: int) -> list[dict[str, Any]]:
    """Figures of every order at every share."""
    rows = []
    for name, by, normalize, refitted in CURVES:
        start = time.perf_counter()
        scores = None
        if by in ("importance", "reverse"):
            scores = heads.score_heads(model, seen, normalize=normalize, seed=seed).importance
        order = heads.pruning_order(model, seen, by=by, scores=scores, seed=seed)
        seconds = time.perf_counter() - start
        found: list[tuple[float, float]] = []

        def measure(changed: Any, found: list[tuple[float, float]] = found) -> float:
            found.append((figures.worth(changed), figures.cosine(changed)))
            return found[-1][0]

        heads.pruning_curve(model, order, SHARES, measure, batches=seen if refitted else None)
        rows.append({"order": name, "seconds": round(seconds, 1), "figures": found})
        typer.echo(json.dumps(rows[-1]))
    return rows


def ablation(model: Any, figures: Figures, seed: int) -> dict[str, Any]:
    """Heads that can go alone, and layers that one head serves, without a significant loss."""
    settings: dict[str, Any] = {"tolerance": figures.tolerance, "seed": seed}
    base, alone = heads.ablate_heads(model, figures.answers, figures.metric, **settings)
    _, single = heads.ablate_heads(model, figures.answers, figures.metric, all_but_one=True, **settings)
    harmless = sum(not (effect.effect < 0 and effect.p_value < ALLOWED) for effect in alone)
    return {
        "whole": base,
        "heads": len(alone),
        "harmless_alone": harmless,
        "largest_loss": -min(effect.effect for effect in alone),
        "layers": len({effect.layer for effect in single}),
        "one_head_serves": {name: e.effect for name, e in heads.reducible_layers(single).items()},
    }


def speed(model: Any, seen: Sequence[Any], share: float, seconds: float) -> list[dict[str, Any]]:
    """Time of the pruned model over that of the whole one, by batch size."""
    pruned = copy.deepcopy(model)
    plans = {name: plan.to_dict() for name, plan in heads.pruning_plan(model, seen, share).items()}
    compress_(pruned, CollabConfig(plans={"heads": plans}, reconstruct_steps=0), seen)
    rows = []
    with torch.inference_mode():
        for batch in BATCHES:
            case = Case(batch, LENGTH, threads=torch.get_num_threads())
            timing = compare_calls(forward_call(model, case), forward_call(pruned, case), seconds=seconds)
            rows.append({"batch": batch, "time": str(timing.latency), "median": timing.latency.median})
    return rows


def together(model: Any, seen: Sequence[Any], figures: Figures, kept: float) -> list[dict[str, Any]]:
    """Heads gone, queries and keys shared, and both planned together, at equal parameters."""
    rows = []
    for parts in (("heads",), ("query_key",), ("heads", "query_key")):
        changed = copy.deepcopy(model)
        report = compress_(changed, CollabConfig(params=kept, parts=parts), seen)
        worth, cosine = figures.worth(changed), figures.cosine(changed)
        rows.append(
            {
                "parts": " and ".join(parts),
                "parameters": report.parameters_after,
                "divergence": report.measured_loss,
                "figures": (worth, cosine),
            }
        )
        typer.echo(json.dumps(rows[-1]))
    return rows


def tables(whole: float, figures: Figures, rows: Sequence[dict[str, Any]]) -> str:
    """The curves in Markdown, and how far each order goes within the allowed loss."""
    header = ["order", *(f"{share:.0%}" for share in SHARES), "goes for less than 1 % of the figure"]
    two = figures.name != "cosine"
    lines = [f"{figures.name}{' / cosine' * two}; the whole model has {whole:.4f}", ""]
    lines += ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for row in rows:
        kept = [worth >= (1 - ALLOWED) * whole for worth, _ in row["figures"]]
        steps = kept.index(False) if False in kept else len(kept)
        reach = f"{SHARES[steps - 1]:.0%}" if steps else f"less than {SHARES[0]:.0%}"
        cells = [f"{worth:.4f}" + f" / {cosine:.3f}" * two for worth, cosine in row["figures"]]
        lines.append("| " + " | ".join([row["order"], *cells, reach]) + " |")
    return "\n".join(lines)


def main(
    checkpoint: Path,
    calibration: Annotated[str, typer.Option(help="Text file or image folder, without labels.")] = "default",
    stsb: Annotated[
        Path | None, typer.Option(help="Pairs with scores, for a text model; else every second example.")
    ] = None,
    examples: Annotated[int, typer.Option(help="Calibration examples at most.")] = 600,
    pairs: Annotated[int, typer.Option(help="Pairs for the curves, from all over the file.")] = 500,
    ablated: Annotated[int, typer.Option(help="Pairs or examples for the ablation; 0 for none.")] = 150,
    kept: Annotated[
        list[float], typer.Option(help="Share of all parameters for heads and sharing together; repeatable.")
    ] = [0.96],  # noqa: B006
    orders: Annotated[
        bool, typer.Option("--orders/--no-orders", help="Whether to draw the curves of the orders.")
    ] = True,
    seconds: Annotated[
        float, typer.Option(help="About how long each batch size is timed; 0 for no times.")
    ] = 3.0,
    threads: Annotated[int, typer.Option(help="torch threads.")] = 1,
    seed: Annotated[int, typer.Option(help="Of random orders and sampled outputs.")] = 0,
) -> None:
    """Print a JSON line for each order, then tables."""
    torch.set_num_threads(threads)
    model: Any = load_model(checkpoint)
    processor = load_processor(checkpoint)
    if processor is None:
        raise ConfigError(f"{checkpoint} has no tokenizer or image processor")
    sizes = {"max_examples": examples, "batch_size": 32 if stsb else 8}
    seen = list(load_batches(calibration, processor, config=model.config, seed=seed, **sizes))
    if stsb is not None:
        figures = sentence_figures(model, processor, stsb, pairs, max(2, ablated))
    else:
        seen, others = seen[::2], seen[1::2]
        figures = agreement_figures(model, others, ablated)
    whole = figures.worth(model)
    if orders:
        typer.echo(tables(whole, figures, curves(model, seen, figures, seed)))
    for share in kept:
        together(model, seen, figures, share)
    if ablated:
        typer.echo(json.dumps(ablation(model, figures, seed)))
    for row in speed(model, seen, 0.5, seconds) if seconds else ():
        typer.echo(
            f"half of the heads gone, batch of {row['batch']}: time over the whole model's {row['time']}"
        )


if __name__ == "__main__":
    typer.run(main)
