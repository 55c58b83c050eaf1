"""A report as notebooks show it: the modules, with a bar of their size before and after."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from ..layout import share
from .report_text import change_text, target_text
from .sites import Change

if TYPE_CHECKING:
    from .report import CompressionReport


def report_html(report: CompressionReport) -> str:
    """Lay out a report as HTML that needs nothing else.

    Args:
        report: what compression did.

    Returns:
        A table with inline styles.
    """
    largest = max((site.parameters[0] for site in report.sites), default=1)
    rows = [
        (
            site.name,
            ", ".join(
                f"{name} {change_text(change)}" for name, change in site.sizes.items() if _differs(change)
            ),
            site.parameters,
            largest,
        )
        for site in report.sites
    ]
    total = report.parameters_before, report.parameters_after
    asked = target_text(report)
    rows.append(("whole model", f"asked for {asked}" if asked else "", total, total[0]))
    lines = [_row(*row) for row in rows]
    before, after = report.operations
    notes = [f"operations of the layers at length {report.length}: {share(after, before)}"] if before else []
    if report.whole is not None and report.whole.measured_speedup is not None:
        notes.append(f"speed: {report.whole.measured_speedup:.2f} times that of the original")
    if report.measured_loss is not None:
        notes.append(f"divergence of the hidden states: {report.measured_loss:.4f}")
    return (
        "<table><thead><tr><th>module</th><th>what changed</th><th>parameters</th><th>kept</th>"
        f"<th>before and after</th></tr></thead><tbody>{''.join(lines)}</tbody></table>"
        f"<p>{escape('; '.join(notes))}</p>"
    )


def _differs(change: Change) -> bool:
    return change[0] != change[1]


def _row(name: str, what: str, parameters: Change, largest: int) -> str:
    before, after = parameters
    bars = "".join(
        f'<div style="height:6px;width:{160 * size / largest:.0f}px;background:{colour}"></div>'
        for size, colour in ((before, "#bbb"), (after, "#1f77b4"))
    )
    words = (name, what, change_text(parameters), share(after, before))
    cells = (*(escape(text.replace("->", "→")) for text in words), bars)
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
