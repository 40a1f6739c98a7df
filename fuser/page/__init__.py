"""The report as one HTML page, self-contained: what was fused, what was not, and the graph around it.

report, before, after = explain_with_graphs(fn, *args, **kwargs)
write_page("report.html", report, before, after)
"""

from __future__ import annotations

import json
import os
from html import escape
from importlib.resources import files
from pathlib import Path

from fuser.ir.graph import Graph
from fuser.page import html
from fuser.page.drawing import drawings
from fuser.page.layers import layers
from fuser.report import Report
from fuser.report_text import plural, summary_of


def page(report: Report, before: Graph, after: Graph) -> str:
    """The HTML of a report on `before`, of which `after` was made (by `explain_with_graphs`, or `fuser.fuse`)."""
    name = report.program or "program"
    notes = "".join(f'<p class="note">{html.sentence(note)}</p>' for note in report.notes)
    entries = "".join(html.region(place, region) for place, region in enumerate(report.regions))
    parts = {
        "TITLE": escape(f"{name} · fuser"),
        "NAME": escape(name),
        "SUMMARY": escape(summary_of(report)),
        "NOTES": notes,
        "NODES": f"{plural('node', len(before))} before, {len(after)} after",
        "FILTERS": html.filters(report),
        "MODEL": html.model(layers(before, report), report),
        "REGIONS": entries or "<p>Nothing to show: the program has no softmax.</p>",
        "CSS": _file("page.css"),
        # no tag can come up in what `<` does not
        "DATA": json.dumps(drawings(report, before, after), separators=(",", ":")).replace("<", "\\u003c"),
        "JS": _file("page.js"),
    }
    text, *rest = _file("page.html").split("{{")
    for piece in rest:
        key, _, following = piece.partition("}}")
        text += parts[key] + following
    return text


def write_page(path: str | os.PathLike[str], report: Report, before: Graph, after: Graph) -> None:
    """Write `page` to a file."""
    Path(path).write_text(page(report, before, after), encoding="utf-8")


def _file(name: str) -> str:
    return files("fuser.page").joinpath(name).read_text(encoding="utf-8")
