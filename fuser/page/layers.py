"""The model as layers: nodes grouped by the path of the module that made them, in the program's order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from statistics import median_low

from fuser.ir.graph import CONSTANT, INPUT, Graph
from fuser.report import Report

# an exporter's name for a node that no module made: `MatMul_123`
FLAT = re.compile(r"^(node_)?[A-Za-z]+(_\d+)?$")


@dataclass
class Part:
    """A piece of a layer: `self_attn`, `mlp`."""

    name: str
    nodes: int = 0
    regions: list[int] = field(default_factory=list)
    """The places in the report of the regions that lie in it."""


@dataclass
class Layer:
    """A row of the picture: `layers.3`, or what lies between two layers."""

    name: str
    parts: list[Part]

    @property
    def nodes(self) -> int:
        """All nodes in it."""
        return sum(part.nodes for part in self.parts)


def segments(scope: str) -> tuple[str, ...]:
    """`/m/model/layers.0/self_attn/MatMul` and `m.model.layers.0.self_attn/node_3` as the path of a module."""
    if scope.endswith(")"):
        return (scope,)  # a function and its line
    if "/" in scope:
        path, _, _ = scope.rpartition("/")
        return tuple(part for part in re.split(r"[/.]", path) if part)
    return () if FLAT.match(scope) and "_" in scope else tuple(scope.split(".")) if scope else ()


def split(path: Sequence[str]) -> tuple[str, str]:
    """The layer and the part of it: a layer ends with the first number, a part takes the number that follows it."""
    first = next((place for place, part in enumerate(path) if part.isdigit()), None)
    if first is None:
        return ".".join(path[:2]), ""
    rest = path[first + 1 : first + 3]
    return ".".join(path[: first + 1]), ".".join(rest if rest[1:] and rest[1].isdigit() else rest[:1])


def layers(graph: Graph, report: Report) -> list[Layer]:
    """The rows of the picture."""
    found = {node: segments(node.scope) for node in graph.nodes if node.op not in (INPUT, CONSTANT)}
    paths = sorted({path for path in found.values() if path}) or [()]
    # what the first and the last begin with, all do
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(paths[0], paths[-1], strict=False)))
    while common and any(path[common : common + 1] and path[common].isdigit() for path in found.values()):
        common -= 1
    rows: dict[str, dict[str, list[int]]] = {}
    homes = {}
    for node, path in found.items():
        layer, part = split(path[common:])
        layer = layer if path[common:] else ".".join(path[-1:])
        homes[node] = layer, part
        rows.setdefault(layer, {}).setdefault(part, []).append(graph.position(node))
    marks: dict[tuple[str, str], list[int]] = {}
    for place, region in enumerate(report.regions):
        if region.anchors is not None and region.anchors.softmax in homes:
            marks.setdefault(homes[region.anchors.softmax], []).append(place)
    # a mask is computed in no layer: where most of a layer lies is its place
    ordered = sorted(rows, key=lambda row: median_low([at for each in rows[row].values() for at in each]))
    return [
        Layer(
            row,
            [
                Part(part, len(rows[row][part]), marks.get((row, part), []))
                for part in sorted(rows[row], key=lambda part: median_low(rows[row][part]))
            ],
        )
        for row in ordered
    ]
