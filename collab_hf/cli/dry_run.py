"""`collab-hf compress --dry-run`: the plan, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from collab_hf.cli.answers import Answer, table

if TYPE_CHECKING:
    from collab_hf.surgery.preview import LayerPreview, Preview


def describe(preview: Preview) -> Answer:
    """Lay out a preview.

    Args:
        preview: the forms to come.

    Returns:
        The answer to print.
    """
    from collab_hf.surgery.preview import LENGTHS

    rows = [[layer.name, *_form(layer)] for layer in preview.layers]
    before, after = preview.qk_parameters_before, preview.qk_parameters_after
    whole = preview.parameters_before
    costs = ", ".join(f"{preview.flops_share(length):.0%} at length {length}" for length in LENGTHS)
    lines = [
        table(["layer", "form", "ranks", "score", "Q/K before", "after", "loss"], rows),
        "",
        f"query/key: {before:,} -> {after:,} ({after / before:.1%})",
        f"whole model: {whole:,} -> about {whole - before + after:,} parameters",
        f"operations for queries, keys and scores: {costs}",
    ]
    if preview.planned is not None:
        kind = "divergence of the hidden states" if preview.planned.measured else "squared score error"
        lines.append(f"predicted loss: {preview.planned.predicted_loss:.4f} ({kind}, summed over layers)")
    return Answer(preview.to_dict(), "\n".join([*lines, "dry run: nothing was written"]))


def _form(layer: LayerPreview) -> list[str]:
    plan, before = layer.plan, f"{layer.shape.dense_parameters:,}"
    loss = "-" if layer.loss is None else f"{layer.loss:.5f}"
    if plan is None:
        return ["dense", "-", str(layer.shape.head_dim), before, before, loss]
    ranks = str(plan.query_rank) if plan.method != "tucker" else f"{plan.query_rank}x{plan.key_rank}"
    return [plan.form, ranks, str(plan.score_width), before, f"{layer.parameters:,}", loss]
