"""Tables of a model card, in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def totals_table(report: Mapping[str, Any], weight_bytes: int) -> str:
    """Rows of parameter counts and sizes, before and after.

    Args:
        report: collab_report.json; rows that it lacks are left out.
        weight_bytes: size of the checkpoint's weights.

    Returns:
        Rows of four cells.
    """
    rows = []
    for label, name in (("query/key parameters", "qk_parameters"), ("all parameters", "parameters")):
        before, after = report.get(f"{name}_before"), report.get(f"{name}_after")
        if before and after:
            rows.append(f"| {label} | {before:,} | {after:,} | {after / before:.1%} |")
    before, after = report.get("weight_bytes_before"), weight_bytes
    if before and after:
        rows.append(
            f"| weights on disk | {before / 1e6:.1f} MB | {after / 1e6:.1f} MB | {after / before:.1%} |"
        )
    elif after:
        rows.append(f"| weights on disk | | {after / 1e6:.1f} MB | |")
    return "\n".join(rows)


_LAYERS = """### Layers

| layer | form | query rank | key rank | score width | content bias | relative error | query/key parameters |
|---|---|---:|---:|---:|---|---:|---:|
"""


def layers_table(*known: Any) -> str:
    """The section on layers.

    Args:
        *known: as for `layer_rows`.

    Returns:
        The section, empty where no layer has anything to say.
    """
    rows = list(layer_rows(*known))
    return _LAYERS + "\n".join(rows) if rows else ""


def layer_rows(
    report: Mapping[str, Any],
    plans: Mapping[str, Mapping[str, Any]],
    heads: Mapping[str, Mapping[str, Any]] | None = None,
) -> Iterator[str]:
    """One row a layer: its form, error and parameters.

    Args:
        report: collab_report.json, or nothing.
        plans: the layers' forms, as config.json has them.
        heads: the heads that are left, likewise.

    Yields:
        Rows of eight cells.
    """
    reports = {layer["name"]: layer for layer in report.get("layers", ())}
    heads = heads or {}
    for name in reports or {**plans, **heads}:
        plan, layer = plans.get(name), reports.get(name, {})
        left = f", {len(heads[name]['kept'])} heads left" if name in heads else ""
        counts = f"{layer['qk_parameters_before']:,} → {layer['qk_parameters_after']:,}" if layer else ""
        error = f"{layer['relative_error']:.4f}" if layer else ""
        if plan is None:
            yield f"| {name} | dense{left} | | | | | {error} | {counts} |"
            continue
        form = "tied " * plan.get("tied", False) + plan["method"]
        form += f", {plan['key_groups']} key groups" if plan.get("key_groups", 1) > 1 else ""
        form += left
        yield (
            f"| {name} | {form} | {plan['query_rank']} | {plan['key_rank']} | {plan['score_width']} "
            f"| {plan.get('content_bias', 'exact')} | {error} | {counts} |"
        )


def section(title: str, values: Mapping[str, Any] | None) -> str:
    """A table of measurements; mappings, and lists of them, become tables of their own.

    Args:
        title: of the section.
        values: what a command printed as JSON.

    Returns:
        The section, empty where there are no values.
    """
    if not values:
        return ""
    lines = [f"\n## {title}\n"]
    flat = [(name, value) for name, value in values.items() if not isinstance(value, list | Mapping)]
    if flat:
        lines += ["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in flat), ""]
    for name, value in values.items():
        rows = value if isinstance(value, list) else [value]
        rows = [row for row in rows if isinstance(row, Mapping)]
        if rows:
            columns = list(dict.fromkeys(key for row in rows for key in row))
            lines += [f"{name}:", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
            lines += [f"| {' | '.join(_cell(row.get(key, '')) for key in columns)} |" for row in rows] + [""]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
