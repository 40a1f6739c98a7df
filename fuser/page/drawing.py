"""The data of the drawings: each form laid out once, however many regions share it."""

from __future__ import annotations

from typing import Any

from fuser.ir.graph import Graph
from fuser.page import subgraph
from fuser.page.layout import HEIGHT, place
from fuser.page.subgraph import Drawn, Picture
from fuser.report import Report

WALKED = ("walked", "softmax", "stop")


def drawings(report: Report, before: Graph, after: Graph) -> dict[str, Any]:
    """What the page draws from: `forms`, and for each region the place of its forms and the names of its nodes."""
    forms: list[dict[str, Any]] = []
    known: dict[Picture, int] = {}

    def shared(drawn: Drawn) -> dict[str, Any]:
        if drawn.picture not in known:
            known[drawn.picture] = len(forms)
            forms.append(_form(drawn.picture))
        return {"form": known[drawn.picture], "names": drawn.names}

    regions = []
    for region in report.regions:
        entry: dict[str, Any] = {}
        if region.anchors is not None and region.anchors.softmax in before:
            entry["before"] = shared(subgraph.before(before, after, region.anchors))
            if region.verdict == "fused" and region.anchors.call in after:
                entry["after"] = shared(subgraph.after(after, before, region.anchors))
        regions.append(entry)
    return {"height": HEIGHT, "forms": forms, "regions": regions}


def _form(picture: Picture) -> dict[str, Any]:
    placed = place(picture)
    kinds = [box.kind for box in picture.boxes]
    return {
        "size": [placed.width, placed.height],
        "boxes": [
            [*spot, box.title, box.type, box.kind, box.role]
            for spot, box in zip(placed.boxes, picture.boxes, strict=True)
        ],
        "wires": [
            [path, int(kinds[source] in WALKED and kinds[target] in WALKED), source, target]
            for path, (source, target, _) in zip(placed.paths, picture.wires, strict=True)
        ],
    }
