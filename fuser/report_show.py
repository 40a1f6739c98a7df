"""A report as a table: in a notebook, and in a terminal that knows rich."""

from __future__ import annotations

from html import escape

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fuser.report import Region, Report
from fuser.report_text import MARKS, amount, depth_of, dtype_of, heads_of, lengths_of, scale_of, summary_of

STYLES = {"fused": "green", "already fused": "blue", "refused": "yellow", "not attention": "dim"}
COLOURS = {"fused": "#1a7f4b", "already fused": "#2563b8", "refused": "#b4470a", "not attention": "#6a7280"}
HEAD = ("", "name", "heads", "lengths", "depth", "mask", "scale", "dtype", "saved")


def cells(region: Region) -> tuple[str, ...]:
    """The row of a region, but for its reason."""
    saved = amount(region.bytes_saved, "B") if region.bytes_saved else ""
    dtype = dtype_of(region.q) if region.q is not None else ""
    return (
        MARKS[region.verdict],
        region.name,
        heads_of(region),
        lengths_of(region),
        depth_of(region),
        region.mask or "",
        scale_of(region),
        dtype,
        saved,
    )


def rich_of(report: Report) -> RenderableType:
    """The report for rich."""
    parts: list[RenderableType] = [Text(report.program or "program", "bold"), Text(summary_of(report))]
    parts += [Text(f"note: {note}", "yellow") for note in report.notes]
    if report.regions:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        for name in HEAD:
            table.add_column(
                name, overflow="fold", justify="left" if name in ("", "name", "mask", "dtype") else "right"
            )
        for region in report.regions:
            table.add_row(*map(Text, cells(region)), style=STYLES[region.verdict])
        parts.append(table)
    for region in report.regions:
        if region.reason is not None and region.verdict != "already fused":
            parts.append(Text.assemble((region.name, "bold"), f": {region.reason} (at {region.at})"))
    return Group(*parts)


def html_of(report: Report) -> str:
    """The report for a notebook: it brings its own few styles, and fits light and dark."""
    rows = []
    for region in report.regions:
        mark, *rest = (escape(cell) for cell in cells(region))
        mark = f'<span style="color:{COLOURS[region.verdict]}" title="{region.verdict}">{mark}</span>'
        rows.append(f"<tr><td>{mark}</td>{''.join(f'<td>{cell}</td>' for cell in rest)}</tr>")
        if region.reason is not None and region.verdict != "already fused":
            reason = f"{escape(region.reason)} (at <code>{escape(region.at)}</code>)"
            rows.append(f'<tr><td></td><td colspan="{len(HEAD) - 1}" style="text-align:left">{reason}</td></tr>')
    notes = "".join(f"<div>note: {escape(note)}</div>" for note in report.notes)
    head = "".join(f"<th>{name}</th>" for name in HEAD)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>" if rows else ""
    name = escape(report.program or "program")
    return f"<div><b>{name}</b><br>{escape(summary_of(report))}{notes}{table}</div>"
