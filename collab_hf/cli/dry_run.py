"""`collab-hf compress --dry-run`: the plan, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from collab_hf.cli.answers import Answer
from collab_hf.layout import table

if TYPE_CHECKING:
    from collab_hf.host.sites import AttentionSite
    from collab_hf.modeling.plan import LayerPlan
    from collab_hf.parts.part import Option
    from collab_hf.surgery.preview import Preview
    from collab_hf.surgery.report import CompressionReport
    from collab_hf.surgery.vocabulary import Trimmed


def describe_planned(report: CompressionReport) -> Answer:
    """Lay out the plan for a whole model or its vocabulary.

    Args:
        report: what is planned.

    Returns:
        The answer to print.
    """
    return Answer({"dry_run": True, **report.to_dict()}, f"{report}\ndry run: nothing was written")


def describe(preview: Preview, trimmed: Trimmed | None = None) -> Answer:
    """Lay out a preview.

    Args:
        preview: the forms to come.
        trimmed: the vocabulary, where it is trimmed first.

    Returns:
        The answer to print.
    """
    from collab_hf.surgery.preview import LENGTHS

    rows = [[name, *_form(preview.sites[name], option)] for name, option in preview.options.items()]
    before, after = preview.qk_parameters_before, preview.qk_parameters_after
    whole = preview.parameters_before
    costs = ", ".join(f"{preview.operations_share(length):.0%} at length {length}" for length in LENGTHS)
    vocabulary = None if trimmed is None else trimmed.report
    lines = [] if vocabulary is None else [f"vocabulary: {vocabulary.rows_after:,} rows stay", ""]
    lines += [
        table(["layer", "form", "ranks", "score", "Q/K before", "after", "loss"], rows),
        "",
        f"query/key: {before:,} -> {after:,} ({after / before:.1%})",
        f"whole model: {whole:,} -> about {whole - before + after:,} parameters",
        f"operations for queries, keys and scores: {costs}",
    ]
    if preview.planned is not None:
        kind = "divergence of the hidden states" if preview.planned.measured else "squared score error"
        lines.append(f"predicted loss: {preview.planned.predicted_loss:.4f} ({kind}, summed over layers)")
    values = preview.to_dict()
    if vocabulary is not None:
        values["vocabulary"] = vocabulary.to_dict()
    return Answer(values, "\n".join([*lines, "dry run: nothing was written"]))


def _form(site: AttentionSite, option: Option) -> list[str]:
    before = f"{site.shape.dense_parameters:,}"
    loss = "-" if option.loss is None else f"{option.loss:.5f}"
    plan: LayerPlan | None = option.plan
    if plan is None:
        return ["dense", "-", str(site.shape.head_dim), before, before, loss]
    width = str(plan.score_width)
    return [plan.form_name, plan.form.ranks(plan), width, before, f"{option.parameters:,}", loss]
