"""Run a graph: every node rebuilt in order with MLX's public calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import mlx.core as mx

from fuser.ir.graph import CONSTANT, INPUT, Graph, Node, Value
from fuser.ir.ops import NOT_REBUILT, OPS, Rebuild, UnsupportedPrimitive

Flat = Callable[[Sequence[mx.array]], list[mx.array]]


def runner(graph: Graph, steps: Mapping[Node, Rebuild] | None = None) -> Flat:
    """A function from the graph's input arrays to its output arrays, in their orders.

    The nodes that `steps` has are run as it says. Every other node that is no part of a fused region gives the bits
    that the traced program gives. Raises `UnsupportedPrimitive` when a primitive of the graph has no public rebuild.
    """
    slots: dict[Value, int] = {}
    constants: list[tuple[int, mx.array]] = []
    given, calls = steps or {}, []
    for node in graph.nodes:
        reads = [slots[operand] for operand in graph.operands(node)]
        first = len(slots)
        slots.update({Value(node, index): first + index for index in range(len(node.outputs))})
        if node.array is not None:
            constants.append((first, node.array))
        elif node in given:
            calls.append((given[node], node.arguments, reads, node.outputs, first))
        elif node.op not in (INPUT, CONSTANT):
            if node.op not in OPS:
                reason = NOT_REBUILT.get(node.op, f"fuser does not know {graph.label(node)}")
                raise UnsupportedPrimitive(node.op, reason)
            calls.append((OPS[node.op], node.arguments, reads, node.outputs, first))
    places = [slots[Value(node)] for node in graph.inputs]
    results = [slots[output] for output in graph.outputs]
    total = len(slots)

    def run(inputs: Sequence[mx.array]) -> list[mx.array]:
        values: list[mx.array] = [None] * total  # type: ignore[list-item]
        for slot, array in constants:
            values[slot] = array
        for slot, array in zip(places, inputs, strict=True):
            values[slot] = array
        for rebuild, arguments, reads, types, first in calls:
            made = rebuild(arguments, [values[slot] for slot in reads], types)
            values[first : first + len(made)] = made
        return [values[slot] for slot in results]

    return run


def compile_flat(run: Flat) -> Flat:
    """`run` under `mx.compile`."""
    listed: Callable[..., list[mx.array]] = mx.compile(lambda *inputs: run(inputs))
    return lambda inputs: listed(*inputs)
