"""Compare planned forms with uniform ranks at equal size, on examples that planning did not see.

For each share, the model is compressed four times: with the same budget of tucker, of tied tucker and of svd
in every layer, and planned over the layers with not one number more than either tucker took. The figure is
the mean cosine between the embeddings of the original and the compressed model.

Example:
    python scripts/bench_planning.py .cache/checkpoints/minilm --evaluation texts.txt
"""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from collab_hf import CollabConfig, compress_, load_model
from collab_hf.calibration.examples import load_batches
from collab_hf.checkpoint.load import load_processor
from collab_hf.modeling.errors import ConfigError

SHARES = (0.5, 0.25, 0.125, 0.0625)


@torch.no_grad()
def embeddings(model: Any, batches: Any, pooling: str) -> Tensor:
    """One vector an example: the mean of its tokens, or the first one."""
    vectors = []
    for batch in batches:
        hidden = model.base_model(**batch).last_hidden_state.float()
        mask = batch.get("attention_mask", torch.ones(hidden.shape[:2])).unsqueeze(-1)
        vectors.append(hidden[:, 0] if pooling == "first" else (hidden * mask).sum(1) / mask.sum(1))
    return torch.cat(vectors)


def run(
    original: Any, config: CollabConfig, calibration: Any, evaluation: Any, reference: Tensor, pooling: str
) -> dict[str, Any]:
    """Compress a copy and compare its embeddings with the original's."""
    model = copy.deepcopy(original)
    start = time.perf_counter()
    report = compress_(model, config, calibration, progress=True)
    seconds = time.perf_counter() - start
    cosine = torch.cosine_similarity(embeddings(model, evaluation, pooling), reference).mean()
    return {
        "share": report.qk_parameters_after / report.qk_parameters_before,
        "parameters": report.qk_parameters_after,
        "cosine": round(float(cosine), 5),
        "seconds": round(seconds, 1),
        "predicted_loss": report.predicted_loss,
        "measured_loss": report.measured_loss,
        "forms": [
            f"{r.plan.form_name} {r.rank}x{r.plan.key_rank}/{r.plan.score_width}" if r.plan else "dense"
            for r in report.layers
        ],
    }


def main(
    checkpoint: Path,
    evaluation: Annotated[str, typer.Option(help="Text file or image folder that planning does not see.")],
    calibration: Annotated[str, typer.Option(help="As for collab-hf compress.")] = "default",
    examples: Annotated[int, typer.Option(help="Calibration examples at most.")] = 1000,
    evaluated: Annotated[int, typer.Option(help="Evaluation examples at most.")] = 500,
    pooling: Annotated[str, typer.Option(help="mean or first.")] = "mean",
    reconstruct_steps: Annotated[
        int, typer.Option(help="Of every layer, after the decomposition.")
    ] = CollabConfig().reconstruct_steps,
    threads: Annotated[int, typer.Option(help="torch threads.")] = 2,
) -> None:
    """Print one JSON line for each share and method, and a table at the end."""
    torch.set_num_threads(threads)
    original = load_model(checkpoint)
    processor = load_processor(checkpoint)
    seen = list(load_batches(calibration, processor, config=original.config, max_examples=examples))
    held = list(load_batches(evaluation, processor, config=original.config, max_examples=evaluated, seed=1))
    reference = embeddings(original, held, pooling)
    # The plan measures on examples of its own; the others learn nothing from these either.
    shared: dict[str, Any] = {"reconstruct_steps": reconstruct_steps, "hold_out": True}
    table = []
    for share in SHARES:
        row: dict[str, dict[str, Any]] = {}
        uniform = {
            "tucker": CollabConfig(method="tucker", budget=share, **shared),
            "tied": CollabConfig(method="tucker", tied=True, budget=share, **shared),
            "svd": CollabConfig(method="svd", budget=share, **shared),
        }
        for name in ("tucker", "tied", "auto", "svd"):
            # The plan takes not one number more than the uniform ranks did.
            least = min((r["parameters"] for r in row.values() if "parameters" in r), default=None)
            config = uniform.get(name) or CollabConfig(target_params=least, **shared)
            try:
                row[name] = run(original, config, seen, held, reference, pooling)
            except ConfigError as error:  # no svd is as small as a sixteenth
                row[name] = {"refused": str(error)}
            typer.echo(json.dumps({"budget": share, "method": name, **row[name]}))
        cells = " | ".join(
            f"{r['cosine']:.4f} ({r['share']:.3f})" if "cosine" in r else "-" for r in row.values()
        )
        table.append(f"| {share} | {cells} |")
    typer.echo(
        "\n".join(
            [
                "| budget | uniform tucker | uniform tied tucker | plan | uniform svd |",
                "|---|---|---|---|---|",
                *table,
            ]
        )
    )


if __name__ == "__main__":
    typer.run(main)
