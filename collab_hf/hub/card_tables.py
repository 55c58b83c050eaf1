"""Tables of a model card, in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from ..layout import change_text, share


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
    before, after = report.get("operations_before"), report.get("operations_after")
    if before and after:
        label = f"operations of the layers, {report['length']} tokens"
        rows.append(f"| {label} | {before / 1e9:.3g} G | {after / 1e9:.3g} G | {after / before:.1%} |")
    speed = (report.get("whole") or {}).get("measured_speedup")
    if speed:
        rows.append(f"| speed on the machine that made it | 1 | {speed:.2f} | |")
    return "\n".join(rows)


def size_tables(report: Mapping[str, Any]) -> str:
    """Sizes of every module before and after, where more than queries and keys has changed.

    Args:
        report: collab_report.json, or nothing.

    Returns:
        One table for each kind of module, empty where there is none.
    """
    if not report.get("whole"):
        return ""
    lines: list[str] = []
    for kind, group in groupby(report.get("sites", ()), key=lambda site: site["kind"]):
        members = list(group)
        columns = [kind.replace("_", " "), *members[0]["sizes"], "parameters", "operations"]
        lines += ["", f"| {' | '.join(columns)} |", "|---" + "|---:" * (len(columns) - 1) + "|"]
        for site in members:
            changes = [*site["sizes"].values(), site["parameters"]]
            cells = [change_text(change, "→") for change in changes]
            before, after = site["operations"]
            cells.append(share(after, before))
            lines.append(f"| {' | '.join([site['name'], *cells])} |")
    return "\n".join(lines)


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
        # Under a budget for the whole model errors of the scores are not kept.
        error = f"{layer['relative_error']:.4f}" if layer and not report.get("whole") else ""
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
