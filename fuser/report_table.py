"""A report as a terminal shows it: the summary, a line for each attention, then what was refused, and why."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fuser.report import Region, Report
from fuser.report_text import COLUMNS, cells, kernel_of, name_of, summary_of

RIGHT = frozenset({"heads", "lengths", "depth", "scale", "memory", "FLOPs"})
# of the softmaxes that share a reason, so many are named
NAMED = 3


def rendered(report: Report, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
    """The parts of the report, for a console of the width in `options`."""
    yield Text(report.program or "program", "bold")
    yield summary(report)
    for note in report.notes:
        yield Text(f"note: {note}", "yellow")
    for title, verdict in (("Fused", "fused"), ("Already fused", "already fused")):
        regions = [region for region in report.regions if region.verdict == verdict]
        if regions:
            yield ""
            yield from _attentions(title, regions, console, options)
    refused = [region for region in report.regions if region.verdict == "refused"]
    if refused:
        yield Text("\nNot fused", "bold yellow")
        for region in refused:
            yield _indented(Text(name_of(region), "bold"), 2)
            yield _indented(Text(region.reason or ""), 4)
            if region.at != region.name:
                yield _indented(Text(f"at {region.at}", "dim"), 4)
            yield _indented(Text(f"→ {region.remedy}"), 4)
    others: dict[str | None, list[str]] = {}
    for region in report.regions:
        if region.verdict == "not attention":
            others.setdefault(region.reason, []).append(name_of(region))
    if others:
        yield Text("\nOther softmaxes", "bold")
        for reason, names in others.items():
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            yield _indented(Text(f"{', '.join(names[:NAMED])}{more}: {reason}"), 2)


def summary(report: Report) -> Text:
    """The report in a line, what is fused in colour."""
    counts = report.counts
    text = Text(summary_of(report))
    if report.regions:
        colour = "yellow" if counts["refused"] else "green" if counts["fused"] else ""
        text.stylize(f"bold {colour}".strip(), 0, min(map(len, re.split("[,;(]", text.plain)[:1])))
    return text


def _attentions(
    title: str, regions: Sequence[Region], console: Console, options: ConsoleOptions
) -> Iterator[RenderableType]:
    """A table; where names leave it no room, they stand above their lines; where those have none either, a list."""
    # a kernel is a word or two in the table, and is described below it
    described = list(dict.fromkeys(r.kernel for r in regions if r.kernel and r.kernel != kernel_of(r)))
    marks = {text: f" [{number}]" if len(described) > 1 else "" for number, text in enumerate(described, 1)}
    rows = []
    for region in regions:
        row = dict(zip(COLUMNS, cells(region), strict=True))
        rows.append([*(row | {"kernel": row["kernel"] + marks.get(region.kernel or "", "")}).values()])
    table = _table((title, *COLUMNS), [(name_of(region), *row) for region, row in zip(regions, rows, strict=True)])
    wants = console.measure(table, options=options.update(max_width=1000)).maximum
    if wants <= options.max_width:
        yield table
    else:
        yield from _stacked(title, regions, rows, options.max_width)
    for text, mark in marks.items():
        yield Text(f"{mark.strip() or 'kernel:'} {text}", "dim")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), header_style="bold", show_edge=False)
    for name in head:
        table.add_column(name, justify="right" if name in RIGHT else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _stacked(
    title: str, regions: Sequence[Region], rows: Sequence[Sequence[str]], room: int
) -> Iterator[RenderableType]:
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
    gap = next((gap for gap in (2, 1) if sum(widths) + gap * len(widths) <= room), None)
    yield Text(title, "bold")
    if gap is not None:
        yield Text(_aligned(COLUMNS, widths, gap), "bold")
    for region, row in zip(regions, rows, strict=True):
        yield _indented(Text(name_of(region)), 0 if gap else 2)
        if gap is not None:
            yield Text(_aligned(row, widths, gap))
        else:
            said = (f"{name} {cell}" for name, cell in zip(COLUMNS, row, strict=True) if cell)
            yield _indented(Text(", ".join(said), "dim"), 4)


def _aligned(cells: Sequence[str], widths: Sequence[int], gap: int) -> str:
    pairs = zip(COLUMNS, cells, widths, strict=True)
    return "".join(" " * gap + (cell.rjust(wide) if name in RIGHT else cell.ljust(wide)) for name, cell, wide in pairs)


def _indented(text: Text, by: int) -> Padding:
    return Padding(text, (0, 0, 0, by), expand=False)
