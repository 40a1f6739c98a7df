"""An ONNX graph run in pieces: each traced and fused, with the steps between them on the host.

Most models are one piece. What a piece cannot hold is found out when it is traced; the graphs inside of a step on the
host (a loop's body, a branch) are run in pieces of their own, traced once for all turns of the loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from fuser.frontends.onnx import OnnxProgram
from fuser.frontends.onnx_graph import Graph
from fuser.frontends.onnx_pieces import Made, Packed, Parts, Piece, free, multiplies, packed, unpacked
from fuser.frontends.onnx_run import Budget, Interpreter, Scope
from fuser.frontends.onnx_types import Value, to_mlx
from fuser.optimized import Optimized
from fuser.report import Region, Report

Todo = tuple[int, ...] | None
MOST_CUTS = 8


@dataclass
class Run:
    """What came up in one call of a model."""

    reports: dict[tuple[int, Todo], Report] = field(default_factory=dict)
    """Of each piece that was run: the last one, when it was run several times."""
    cuts: dict[str, None] = field(default_factory=dict)
    """Why a step was run on the host, for each, in order."""
    budget: Budget = field(default_factory=Budget)


class Pieces:
    """One graph in pieces; kept for as long as the model is, as its traces are."""

    def __init__(self, parts: Parts, *, fuse: bool) -> None:
        self._parts, self._fuse = parts, fuse
        self._pieces: dict[Todo, Optimized[..., Made]] = {}
        self._inner: dict[Graph, Pieces] = {}

    @property
    def constants(self) -> Mapping[str, Value]:
        """The constants of the graph, and of those around it."""
        return self._parts.constants

    @property
    def traces(self) -> int:
        """How many times a piece was traced."""
        return sum(piece.traces for piece in self._pieces.values()) + sum(each.traces for each in self._inner.values())

    def run(self, given: Mapping[str, Packed], run: Run) -> dict[str, Packed]:
        """The outputs of the graph by name; `given` are its inputs and what it takes from around it."""
        parts, todo = self._parts, None
        values = dict(given)
        while True:
            piece = self._piece(todo)
            made = piece(**values)
            run.reports[id(self), todo] = piece.report
            if made.rest < 0:
                return made.values
            rest = parts.rests[made.rest]
            values |= made.values
            self._on_host(rest.stuck, values, run)
            todo = rest.waiting
            wanted = parts.wanted(todo)
            values = {name: value for name, value in values.items() if name in wanted}

    def _piece(self, todo: Todo) -> Optimized[..., Made]:
        if todo not in self._pieces:
            self._pieces[todo] = Optimized(Piece(self._parts, todo), fuse=self._fuse)
        return self._pieces[todo]

    def _on_host(self, stuck: tuple[tuple[int, str], ...], values: dict[str, Packed], run: Run) -> None:
        parts = self._parts

        def nested(graph: Graph, given: Mapping[str, Value], outer: Mapping[str, Value] | None) -> list[Value]:
            return self._nested(graph, given, outer, run, interpreter)

        interpreter = Interpreter(parts.pool, nested, run.budget)
        scope = Scope(parts.constants)
        scope.update((name, unpacked(value)) for name, value in values.items())
        for number, why in stuck:
            step = parts.graph.steps[number]
            run.cuts[why] = None
            interpreter.step(step, scope)
            values.update((name, packed(scope[name], interpreter)) for name in step.outputs if name in scope)

    def _nested(
        self,
        graph: Graph,
        given: Mapping[str, Value],
        outer: Mapping[str, Value] | None,
        run: Run,
        interpreter: Interpreter,
    ) -> list[Value]:
        """The outputs of a graph inside of a step on the host."""
        if not multiplies(graph):
            return interpreter.run(graph, given, outer)
        run.budget.spend(len(graph.steps), f"model {self._parts.name!r}")
        if graph not in self._inner:
            parts = self._parts
            inner = Parts(graph, parts.name, parts.pool, parts.constants if outer is not None else {})
            self._inner[graph] = Pieces(inner, fuse=self._fuse)
        pieces = self._inner[graph]
        # what changes from one turn of a loop to the next is no constant of the trace; a function's sizes may be
        taken = dict(given) if outer is None else {name: _array(value) for name, value in given.items()}
        if outer is not None:
            taken |= {name: outer[name] for name in free(graph) if name not in pieces.constants}
        made = pieces.run({name: packed(value, interpreter) for name, value in taken.items()}, run)
        return [unpacked(made[name]) for name in graph.outputs]


def _array(value: Value) -> Value:
    return to_mlx(value) if isinstance(value, np.ndarray) and value.dtype != object else value


# why a softmax of the file is in no piece
SKIPPED = "it was not computed: it lies in a branch that was not taken, or a loop of no turns"
CONSTANT = (
    "it is computed while the model is traced, for it takes nothing that is given; or nothing takes what it gives"
)


def joined(run: Run, program: OnnxProgram) -> Report:
    """One report of a run in several pieces: what the file says of softmaxes that are in none is there, too."""
    regions: dict[str, tuple[int, list[Region]]] = {}
    for number, report in enumerate(run.reports.values()):
        for region in report.regions:
            # a body that is cut in two ways has its regions in two pieces: they count once
            first, found = regions.setdefault(region.name, (number, []))
            if first == number:
                found.append(region)
    said = dict.fromkeys(note for report in run.reports.values() for note in report.notes)
    outside = frozenset(program.softmaxes(branches=False))
    missing = [
        Region("refused", next(iter(said), CONSTANT if name in outside else SKIPPED), name, name)
        for name in program.softmaxes()
        if name not in regions
    ]
    cuts = [f"{why}; so it runs on the host, and the graph is cut there" for why in run.cuts]
    more = [f"the graph is cut at {len(cuts) - MOST_CUTS} more such places"] if len(cuts) > MOST_CUTS else []
    return Report(
        (*(region for _, found in regions.values() for region in found), *missing),
        program.name,
        (*cuts[:MOST_CUTS], *more, *said),
        sum(report.nodes for report in run.reports.values()),
    )


def completed(report: Report, program: OnnxProgram) -> Report:
    """The report of a program in one piece, with those softmaxes of the file that are not in it."""
    named = {region.name for region in report.regions}
    missing = tuple(
        Region("refused", CONSTANT, name, name) for name in program.softmaxes(branches=False) if name not in named
    )
    return replace(report, regions=(*report.regions, *missing)) if missing else report
