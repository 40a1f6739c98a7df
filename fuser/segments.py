"""A program that runs is a list of segments: graphs under `mx.compile`, and steps between them that no graph can hold.

A step is a kernel of ours. On a CPU it wants its arrays to be there: the graph is cut where there is one, at as few
places as the order allows: what waits for no step is computed before it. On a GPU it is a primitive: nothing is cut.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx

from fuser.execute import Flat, checked, compile_flat, runner
from fuser.ir.graph import CONSTANT, INPUT, Graph, Node, Value
from fuser.ir.ops import Rebuild
from fuser.kernels import own
from fuser.kernels.admission import backend
from fuser.kernels.own import Step


@dataclass(frozen=True)
class Segment:
    """One piece: what it reads, what to run, what it gives; values are numbered over the whole program."""

    reads: list[int]
    run: Callable[[list[mx.array]], list[mx.array]]
    gives: list[int]
    drops: list[int]
    """What nobody reads after it."""


def segmented(graph: Graph, arguments: int | None = None) -> Flat | None:
    """`graph` as a function from its inputs to its outputs, compiled with its steps; None where it has none.

    It raises `TraceError` for inputs of other types than those of the graph.
    The first inputs, so many as there are `arguments` (None: all), may be what a transformation of MLX traces with.
    """
    steps = {node: step for node in graph.nodes if (step := own.step(graph, node)) is not None}
    if not steps:
        return None
    if backend() == "cpu":
        return checked(_flat(graph, _segments(graph, steps)), graph.inputs)
    rebuilt = {node: _rebuild(step) for node, step in steps.items()}
    stepped = compile_flat(checked(runner(graph, rebuilt), graph.inputs))
    plain = compile_flat(checked(runner(graph), graph.inputs))

    def run(inputs: Sequence[mx.array]) -> list[mx.array]:
        try:
            # what is to be computed anyway; it cannot be inside of a transformation, which knows no kernels of ours
            mx.async_eval(inputs[:arguments])
        except ValueError:
            return plain(inputs)
        return stepped(inputs)

    return run


def _rebuild(step: Step) -> Rebuild:
    return lambda arguments, x, types: step(x)


def _segments(graph: Graph, steps: dict[Node, Step]) -> list[tuple[list[Value], Step, list[Value]]]:
    """The pieces in order: what each reads, runs and gives."""
    level: dict[Node, int] = {}
    for node in graph.nodes:
        operands = graph.operands(node)
        level[node] = max((level[each.node] + (each.node in steps) for each in operands), default=0)
    levels: dict[int, list[Node]] = defaultdict(list)
    for node in graph.nodes:
        if node.op not in (INPUT, CONSTANT):
            levels[level[node]].append(node)
    outputs = set(graph.outputs)
    pieces: list[tuple[list[Value], Step, list[Value]]] = []
    for number in sorted(levels):
        nodes = [node for node in levels[number] if node not in steps]
        here = set(nodes)
        made = [Value(node, index) for node in nodes for index in range(len(node.outputs))]
        given = [value for value in made if value in outputs or any(user not in here for user, _ in graph.users(value))]
        if given:
            pieces.append(_piece(graph, nodes, given))
        for node in (node for node in levels[number] if node in steps):
            pieces.append(([*graph.operands(node)], steps[node], [Value(node)]))
    return pieces


def _piece(graph: Graph, nodes: Sequence[Node], given: list[Value]) -> tuple[list[Value], Step, list[Value]]:
    """The nodes as a graph of their own, compiled."""
    part, reads = graph.part(nodes, given)
    return reads, compile_flat(runner(part)), given


def _flat(graph: Graph, pieces: list[tuple[list[Value], Step, list[Value]]]) -> Flat:
    numbers: dict[Value, int] = {Value(node): number for number, node in enumerate(graph.inputs)}
    constants: dict[int, mx.array] = {}
    for node in graph.nodes:
        if node.array is not None:
            constants[len(numbers)] = node.array
            numbers[Value(node)] = len(numbers)
    for _, _, gives in pieces:
        for value in gives:
            numbers[value] = len(numbers)
    results = [numbers[output] for output in graph.outputs]
    wanted = {*results, *constants, *range(len(graph.inputs))}
    segments: list[Segment] = []
    for reads, step, gives in reversed(pieces):
        slots = [numbers[value] for value in reads]
        drops = [slot for slot in dict.fromkeys(slots) if slot not in wanted]
        wanted.update(slots)
        segments.insert(0, Segment(slots, step, [numbers[value] for value in gives], drops))

    def run(inputs: Sequence[mx.array]) -> list[mx.array]:
        values: dict[int, mx.array] = {**dict(enumerate(inputs)), **constants}
        for segment in segments:
            made = segment.run([values[slot] for slot in segment.reads])
            for slot in segment.drops:
                del values[slot]
            values.update(zip(segment.gives, made, strict=True))
        return [values[slot] for slot in results]

    return run
