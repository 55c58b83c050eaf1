"""A report as notebooks show it: the modules, with a bar of their size before and after."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ..layout import Change, change_text, share
from .report_sites import SiteReport


def report_html(sites: Sequence[SiteReport], parameters: Change, target: str, notes: Sequence[str]) -> str:
    """Lay out a report as HTML that needs nothing else.

    Args:
        sites: modules before and after.
        parameters: of the whole model, before and after.
        target: what was asked for; empty for nothing.
        notes: sentences below the table.

    Returns:
        A table with inline styles.
    """
    largest = max((site.parameters[0] for site in sites), default=1)
    lines = [_row(site.name, _changes(site), site.parameters, largest) for site in sites]
    lines.append(_row("whole model", target and f"asked for {target}", parameters, parameters[0]))
    return (
        "<table><thead><tr><th>module</th><th>what changed</th><th>parameters</th><th>kept</th>"
        f"<th>before and after</th></tr></thead><tbody>{''.join(lines)}</tbody></table>"
        f"<p>{escape('; '.join(notes))}</p>"
    )


def _changes(site: SiteReport) -> str:
    return ", ".join(
        f"{name} {change_text((before, after), '→')}"
        for name, (before, after) in site.sizes.items()
        if before != after
    )


def _row(name: str, what: str, parameters: Change, largest: int) -> str:
    before, after = parameters
    bars = "".join(
        f'<div style="height:6px;width:{160 * size / largest:.0f}px;background:{colour}"></div>'
        for size, colour in ((before, "#bbb"), (after, "#1f77b4"))
    )
    words = (name, what, change_text(parameters, "→"), share(after, before))
    cells = (*(escape(text) for text in words), bars)
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
