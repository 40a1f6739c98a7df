"""Run a graph: every node rebuilt in order with MLX's public calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import mlx.core as mx

from fuser.errors import TraceError
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


def checked(run: Flat, inputs: Sequence[Node], free: int = 0) -> Flat:
    """`run`, which raises a `TraceError` where an array has not the type of its input; the first ones are `free`.

    Inside of a compiled function it costs nothing: MLX calls that where it does not know the types yet.
    """
    held = [node.outputs[0] for node in inputs[free:]]

    def looked_at(arrays: Sequence[mx.array]) -> list[mx.array]:
        for array, type in zip(arrays[free:], held, strict=True):
            if array.shape != type.shape or array.dtype != type.dtype:
                raise TraceError(f"an array of the state became {array.dtype} {list(array.shape)} in place")
        return run(arrays)

    return looked_at if held else run


def compile_flat(run: Flat) -> Flat:
    """`run` under `mx.compile`."""
    listed: Callable[..., list[mx.array]] = mx.compile(lambda *inputs: run(inputs))
    return lambda inputs: listed(*inputs)
