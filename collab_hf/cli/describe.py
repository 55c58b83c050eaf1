"""What `compress` did, for people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from collab_hf.cli.answers import table

if TYPE_CHECKING:
    from collab_hf.surgery.report import CompressionReport, LayerReport, WholeReport


def describe(report: CompressionReport, output: Path | None, size: int) -> str:
    """Lay out a report.

    Args:
        report: what compression did.
        output: where the checkpoint is; None for a dry run.
        size: bytes of its weights.

    Returns:
        Lines without a newline at the end.
    """
    if report.vocabulary is not None and not report.layers:
        return "\n".join([*_vocabulary(report), _total(report), _written(report, output, size)])
    rows = [
        [
            layer.name,
            layer.plan.form_name if layer.plan else layer.method,
            _ranks(layer),
            f"{layer.relative_error:.4f}",
            *_change(layer),
        ]
        for layer in report.layers
    ]
    if report.whole is not None:
        return describe_whole(report, report.whole, output, size)
    kept = report.qk_parameters_after / report.qk_parameters_before
    return "\n".join(
        [
            *_vocabulary(report),
            table(["layer", "method", "rank", "error", "Q/K before", "after"], rows),
            "",
            f"query/key: {report.qk_parameters_before:,} -> {report.qk_parameters_after:,} ({kept:.1%})",
            f"whole model: {report.parameters_before:,} -> {report.parameters_after:,} parameters",
            f"mean relative error: {report.mean_relative_error:.4f}"
            f" ({'on calibration data' if report.calibrated else 'of the weights alone'})",
            *_losses(report),
            *_slower(report),
            _written(report, output, size),
        ]
    )


def describe_whole(report: CompressionReport, whole: WholeReport, output: Path | None, size: int) -> str:
    """Lay out a report on all parts of a model.

    Args:
        report: what compression did.
        whole: to all parts.
        output: where the checkpoint is; None for a dry run.
        size: bytes of its weights.

    Returns:
        Lines without a newline at the end.
    """
    plans = whole.plans
    if report.portable:
        return "\n".join([*_vocabulary(report), *_stock(whole), *_whole_totals(report, whole, output, size)])
    rows = []
    for layer in report.layers:
        heads, values = plans.get("heads", {}).get(layer.name), plans.get("value_output", {}).get(layer.name)
        rows.append(
            [
                layer.name,
                "all" if heads is None else str(len(heads.kept)),
                "all" if values is None else str(values.width),
                "dense" if layer.plan is None else layer.plan.form.label(layer.plan),
            ]
        )
    widths = [[name, str(plan.width)] for name, plan in plans.get("feed_forward", {}).items()]
    lines = [*_vocabulary(report), table(["attention", "heads", "value width", "queries and keys"], rows)]
    if widths:
        lines += ["", table(["feed-forward", "neurons"], widths)]
    return "\n".join([*lines, "", *_whole_totals(report, whole, output, size)])


def _stock(whole: WholeReport) -> list[str]:
    """Sizes that the host's own config says."""
    lines = [
        f"layers that stay: {', '.join(map(str, plan.kept))} of {stack}, from 0 on"
        for stack, plan in whole.plans.get("blocks", {}).items()
    ]
    widths = {plan.width for plan in whole.plans.get("feed_forward", {}).values()}
    lines += [f"neurons of every feed-forward: {width}" for width in widths]
    return [*lines, ""] if lines else []


def _whole_totals(report: CompressionReport, whole: WholeReport, output: Path | None, size: int) -> list[str]:
    share = whole.operations_after / whole.operations_before
    lines = [
        f"operations of the layers at length {whole.length}: {share:.1%} of the original's",
        _total(report),
        *_losses(report),
    ]
    if whole.measured_speedup is not None and whole.predicted_speedup is not None:
        lines.append(
            f"speed: {whole.measured_speedup:.2f} times that of the original on this machine "
            f"(predicted {whole.predicted_speedup:.2f})"
        )
    return [*lines, _written(report, output, size)]


def _vocabulary(report: CompressionReport) -> list[str]:
    found = report.vocabulary
    if found is None:
        return []
    return [f"vocabulary: {found.rows_after:,} of {found.rows_before:,} rows stay; the tokenizer changed", ""]


def _total(report: CompressionReport) -> str:
    kept = report.parameters_after / report.parameters_before
    return f"whole model: {report.parameters_before:,} -> {report.parameters_after:,} parameters ({kept:.1%})"


def _written(report: CompressionReport, output: Path | None, size: int) -> str:
    if output is None:
        return "dry run: nothing was written"
    kind = ", an ordinary checkpoint of the original's class" if report.portable else ""
    return f"wrote {output} ({size / 1e6:.1f} MB of weights{kind})"


def _losses(report: CompressionReport) -> list[str]:
    lines = []
    errors = [layer.output_error for layer in report.layers if layer.output_error is not None]
    if errors:
        before, after = (sum(side) / len(errors) for side in zip(*errors, strict=True))
        lines.append(
            f"attention output on held-out calibration tokens: mean relative error {before:.4f} after "
            f"decomposition, {after:.4f} after reconstruction"
        )
    if report.predicted_loss is not None:
        measured = "" if report.measured_loss is None else f", measured {report.measured_loss:.4f}"
        lines.append(f"divergence of the hidden states: predicted {report.predicted_loss:.4f}{measured}")
    return lines


def _slower(report: CompressionReport) -> list[str]:
    lengths = [layer.break_even_length for layer in report.layers if layer.break_even_length is not None]
    if not lengths:
        return []
    return [
        f"warning: slower than the original from {min(lengths)} tokens on or earlier, because scores are "
        "wider than a head; tucker, or cp with --dims-per-head, has narrower ones"
    ]


def _ranks(layer: LayerReport) -> str:
    if layer.plan is None or layer.plan.key_rank == layer.plan.query_rank:
        return str(layer.rank)
    return f"{layer.plan.query_rank}x{layer.plan.key_rank}"


def _change(layer: LayerReport) -> tuple[str, str]:
    return f"{layer.qk_parameters_before:,}", f"{layer.qk_parameters_after:,}"
