"""A report in words and tables, as `print` and the command line show it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from ..layout import share, table
from .sites import Change, SiteReport

if TYPE_CHECKING:
    from ..modeling.plan import LayerPlan
    from .report import CompressionReport, LayerReport, WholeReport


def report_text(report: CompressionReport) -> str:
    """Lay out a report.

    Args:
        report: what compression did.

    Returns:
        Lines without a newline at the end.
    """
    if report.whole is not None:
        return "\n".join([*_vocabulary(report), *_whole(report, report.whole)])
    if not report.layers:
        return "\n".join([*_vocabulary(report), *_totals(report)])
    rows = [
        [
            layer.name,
            layer.plan.form_name if layer.plan else layer.method,
            _ranks(layer),
            f"{layer.relative_error:.4f}",
            f"{layer.qk_parameters_before:,}",
            f"{layer.qk_parameters_after:,}",
        ]
        for layer in report.layers
    ]
    return "\n".join(
        [
            *_vocabulary(report),
            table(["layer", "method", "rank", "error", "Q/K before", "after"], rows),
            "",
            f"query/key: {_counts((report.qk_parameters_before, report.qk_parameters_after))}",
            *_totals(report),
            f"mean relative error: {report.mean_relative_error:.4f}"
            f" ({'on calibration data' if report.calibrated else 'of the weights alone'})",
            *_losses(report),
            *_slower(report),
        ]
    )


def site_tables(sites: Sequence[SiteReport], forms: dict[str, str]) -> Iterator[str]:
    """One table for each kind of module, with a blank line after it.

    Args:
        sites: modules before and after, those of a kind one after the other.
        forms: names of the forms of queries and keys, by layer.

    Yields:
        Tables and blank lines.
    """
    for kind, group in groupby(sites, key=lambda site: site.kind):
        members = list(group)
        measured = any(site.loss is not None for site in members)
        header = [kind.replace("_", "-"), *members[0].sizes]
        header += ["queries and keys"] * (kind == "attention")
        header += ["parameters", "operations", *["loss"] * measured]
        rows = []
        for site in members:
            row = [site.name, *(change_text(sizes) for sizes in site.sizes.values())]
            row += [forms.get(site.name, "dense")] * (kind == "attention")
            row += [share(after, before) for before, after in (site.parameters, site.operations)]
            rows.append(row + [f"{site.loss or 0:.5f}"] * measured)
        yield table(header, rows)
        yield ""


def change_text(change: Change) -> str:
    """A size before and after, or the one that stayed."""
    before, after = change
    return f"{before:,}" if before == after else f"{before:,} -> {after:,}"


def target_text(report: CompressionReport) -> str:
    """The target that was asked for, such as `flops 0.5`; empty where there was none."""
    return ", ".join(f"{name} {value}" for name, value in report.target.items())


def _whole(report: CompressionReport, whole: WholeReport) -> Iterator[str]:
    if report.portable:
        yield from _stock(whole)
    yield from site_tables(report.sites, {layer.name: _form(layer.plan) for layer in report.layers})
    yield from _totals(report)
    yield from _losses(report)
    if whole.measured_speedup is not None:
        predicted = whole.predicted_speedup
        yield (
            f"speed: {whole.measured_speedup:.2f} times that of the original on this machine, at length "
            f"{report.length} and batch size {report.config.batch_size}"
            f"{'' if predicted is None else f' (predicted {predicted:.2f})'}"
        )


def _vocabulary(report: CompressionReport) -> list[str]:
    found = report.vocabulary
    if found is None:
        return []
    return [f"vocabulary: {found.rows_after:,} of {found.rows_before:,} rows stay; the tokenizer changed", ""]


def _stock(whole: WholeReport) -> Iterator[str]:
    """Sizes that the host's own config says."""
    for stack, plan in whole.plans.get("blocks", {}).items():
        yield f"layers that stay: {', '.join(map(str, plan.kept))} of {stack}, from 0 on"
    for width in {plan.width for plan in whole.plans.get("feed_forward", {}).values()}:
        yield f"neurons of every feed-forward: {width}"
    yield ""


def _totals(report: CompressionReport) -> Iterator[str]:
    whole = report.parameters_before, report.parameters_after
    yield f"whole model: {_counts(whole, ' parameters')}"
    before, after = report.operations
    if before:
        yield f"operations of the layers at length {report.length}: {share(after, before)} of the original's"
    if report.target:
        yield f"asked for: {target_text(report)}"


def _counts(change: Change, of: str = "") -> str:
    before, after = change
    return f"{before:,} -> {after:,}{of} ({share(after, before)})"


def _losses(report: CompressionReport) -> list[str]:
    lines = []
    errors = [layer.output_error for layer in report.layers if layer.output_error is not None]
    if errors:
        before, after = (sum(side) / len(errors) for side in zip(*errors, strict=True))
        lines.append(
            f"attention output on held-out calibration tokens: mean relative error {before:.4f} after "
            f"decomposition, {after:.4f} after reconstruction"
        )
    found = {"predicted": report.predicted_loss, "measured": report.measured_loss}
    known = [f"{how} {loss:.4f}" for how, loss in found.items() if loss is not None]
    if known:
        lines.append(f"divergence of the hidden states: {', '.join(known)}")
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


def _form(plan: LayerPlan | None) -> str:
    return "dense" if plan is None else plan.form.label(plan)
