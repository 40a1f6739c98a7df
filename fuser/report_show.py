"""A report as a table in a notebook."""

from __future__ import annotations

from html import escape

from fuser.report import Report
from fuser.report_text import COLUMNS, MARKS, cells, name_of, summary_of

COLOURS = {"fused": "#1a7f4b", "already fused": "#2563b8", "refused": "#b4470a", "not attention": "#6a7280"}
HEAD = ("", "name", *COLUMNS)


def html_of(report: Report) -> str:
    """The report for a notebook: it brings its own few styles, and fits light and dark."""
    rows = []
    for region in report.regions:
        mark = f'<span style="color:{COLOURS[region.verdict]}" title="{region.verdict}">{MARKS[region.verdict]}</span>'
        columns = "".join(f"<td>{escape(cell)}</td>" for cell in (name_of(region), *cells(region)))
        kernel = f' title="{escape(region.kernel)}"' if region.kernel else ""
        rows.append(f"<tr{kernel}><td>{mark}</td>{columns}</tr>")
        if region.reason is not None and region.verdict != "already fused":
            reason = f"{escape(region.reason)} (at <code>{escape(region.at)}</code>)"
            change = f"<br>→ {escape(region.remedy)}" if region.remedy else ""
            rows.append(
                f'<tr><td></td><td colspan="{len(HEAD) - 1}" style="text-align:left">{reason}{change}</td></tr>'
            )
    notes = "".join(f"<div>note: {escape(note)}</div>" for note in report.notes)
    head = "".join(f"<th>{name}</th>" for name in HEAD)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>" if rows else ""
    name = escape(report.program or "program")
    return f"<div><b>{name}</b><br>{escape(summary_of(report))}{notes}{table}</div>"
