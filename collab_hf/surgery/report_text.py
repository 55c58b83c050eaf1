"""A report in words and tables, as `print` and the command line show it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from ..config import CollabConfig
from ..layout import Change, change_text, share, table
from ..parts.vocabulary import VocabularyReport
from .report_layers import LayerReport, WholeReport
from .report_sites import SiteReport


def vocabulary_lines(rows: VocabularyReport | None) -> list[str]:
    """What became of the vocabulary, with a blank line after it.

    Args:
        rows: before and after; None where it was left as it was.

    Returns:
        Lines.
    """
    if rows is None:
        return []
    return [f"vocabulary: {rows.rows_after:,} of {rows.rows_before:,} rows stay; the tokenizer changed", ""]


def layer_table(layers: Sequence[LayerReport]) -> str:
    """Forms of queries and keys, where they alone were made smaller.

    Args:
        layers: one report per attention layer.

    Returns:
        A table.
    """
    rows = [
        [
            layer.name,
            layer.plan.form_name if layer.plan else layer.method,
            _ranks(layer),
            f"{layer.relative_error:.4f}",
            f"{layer.qk_parameters_before:,}",
            f"{layer.qk_parameters_after:,}",
        ]
        for layer in layers
    ]
    return table(["layer", "method", "rank", "error", "Q/K before", "after"], rows)


def site_tables(sites: Sequence[SiteReport], layers: Sequence[LayerReport]) -> Iterator[str]:
    """One table for each kind of module, with a blank line after it.

    Args:
        sites: modules before and after, those of a kind one after the other.
        layers: with the forms of queries and keys.

    Yields:
        Tables and blank lines.
    """
    forms = {layer.name: layer.plan.form.label(layer.plan) for layer in layers if layer.plan is not None}
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


def stock_lines(whole: WholeReport) -> list[str]:
    """Sizes that the host's own config says, with a blank line after them.

    Args:
        whole: what happened to a model that stays of the host's own class.

    Returns:
        Lines; none where nothing changed.
    """
    lines = [
        f"layers that stay: {', '.join(map(str, plan.kept))} of {stack}, from 0 on"
        for stack, plan in whole.plans.get("blocks", {}).items()
    ]
    widths = {plan.width for plan in whole.plans.get("feed_forward", {}).values()}
    lines += [f"neurons of every feed-forward: {width}" for width in widths]
    return [*lines, ""] if lines else []


def speed_lines(whole: WholeReport, config: CollabConfig) -> Iterator[str]:
    """The speed, where it was measured.

    Args:
        whole: what happened to all parts of a model.
        config: settings, with the batch size that was timed.

    Yields:
        One line at most.
    """
    if whole.measured_speedup is not None:
        predicted = whole.predicted_speedup
        yield (
            f"speed: {whole.measured_speedup:.2f} times that of the original on this machine, at length "
            f"{whole.length} and batch size {config.batch_size}"
            f"{'' if predicted is None else f' (predicted {predicted:.2f})'}"
        )


def counts(change: Change, of: str = "") -> str:
    """Numbers before and after with the share that is left, such as `1,000 -> 500 parameters (50.0%)`."""
    before, after = change
    return f"{before:,} -> {after:,}{of} ({share(after, before)})"


def loss_lines(layers: Sequence[LayerReport], predicted: float | None, measured: float | None) -> list[str]:
    """What the model's outputs lost, where that is known.

    Args:
        layers: one report per attention layer.
        predicted: divergence of the hidden states, by planning.
        measured: the same of the compressed model.

    Returns:
        Lines.
    """
    lines = []
    errors = [layer.output_error for layer in layers if layer.output_error is not None]
    if errors:
        before, after = (sum(side) / len(errors) for side in zip(*errors, strict=True))
        lines.append(
            f"attention output on held-out calibration tokens: mean relative error {before:.4f} after "
            f"decomposition, {after:.4f} after reconstruction"
        )
    found = {"predicted": predicted, "measured": measured}
    known = [f"{how} {loss:.4f}" for how, loss in found.items() if loss is not None]
    if known:
        lines.append(f"divergence of the hidden states: {', '.join(known)}")
    return lines


def slower_lines(layers: Sequence[LayerReport]) -> Iterator[str]:
    """A warning where scores are wider than a head.

    Args:
        layers: one report per attention layer.

    Yields:
        One line at most.
    """
    lengths = [layer.break_even_length for layer in layers if layer.break_even_length is not None]
    if lengths:
        yield (
            f"warning: slower than the original from {min(lengths)} tokens on or earlier, because scores are "
            "wider than a head; tucker, or cp with --dims-per-head, has narrower ones"
        )


def _ranks(layer: LayerReport) -> str:
    if layer.plan is None or layer.plan.key_rank == layer.plan.query_rank:
        return str(layer.rank)
    return f"{layer.plan.query_rank}x{layer.plan.key_rank}"
