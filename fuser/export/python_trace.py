"""Traces of one program at several sizes of its symbolic dimensions, with what depends on sizes left in the trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from fuser.errors import FuserError
from fuser.export.python_ir import ConvertError
from fuser.frontends.mlx import trace
from fuser.frontends.onnx import OnnxProgram, ValueInfo
from fuser.frontends.onnx_graph import Graph as OnnxGraph
from fuser.frontends.onnx_graph import Step, _wanted
from fuser.frontends.onnx_run import Interpreter, Pool
from fuser.frontends.onnx_types import CARRIERS, Narrow
from fuser.frontends.onnx_types import Value as Known
from fuser.fusion import fuse
from fuser.ir.graph import Graph, Node, Value

# The sizes of each dimension in the three traces, and in two runs that check what was made of them. No two rows or
# products of rows look alike; the second table is for models whose tables of positions are short.
SIZES = (
    (3, 5, 7, 2, 1),
    (11, 17, 23, 9, 1),
    (13, 19, 29, 6, 1),
    (31, 37, 43, 8, 1),
    (41, 47, 59, 5, 1),
    (53, 61, 71, 7, 1),
    (67, 73, 83, 4, 1),
    (79, 89, 97, 3, 1),
)
SMALL = ((2, 3, 5, 4, 1), (6, 4, 7, 5, 1), (7, 5, 4, 3, 1), (4, 7, 6, 2, 1), (5, 2, 3, 6, 1))
TRACES = 3


@dataclass(frozen=True)
class Traces:
    """Fused graphs of one program, alike but for sizes, and the sizes by symbol."""

    graphs: tuple[Graph, ...]
    given: tuple[dict[Node, mx.array], ...]
    """What the inputs of `graphs` hold that were constants: positions that a mask is computed from."""
    symbols: dict[str, tuple[int, ...]]
    """The dimensions that are dynamic."""
    frozen: dict[str, int]
    """Those that are not: the program holds at this size only."""
    shapes: dict[str, tuple[str | int, ...]]
    """The shape of each input, in symbols and numbers."""
    checks: tuple[dict[str, int], ...]
    """Other sizes, to run a program at."""


class _Unfolded(Interpreter):
    """Leaves in the trace what depends on sizes but decides about none: tables and masks stay computations."""

    def __init__(self, pool: Pool, graph: OnnxGraph) -> None:
        super().__init__(pool)
        self._top = {id(step) for step in graph.steps}
        self._needed = _wanted(graph, set())

    def _compute(self, step: Step, inputs: list[Known | None], scope: Any) -> tuple[Known | None, ...]:
        if id(step) in self._top and not any(name in self._needed for name in step.outputs) and not step.fixed:
            operator = step.operator
            host = [value is None or isinstance(value, np.ndarray) for value in inputs]
            if operator is not None and operator.pure and not operator.raw and not operator.shapes and all(host):
                call = self._call(step, scope)
                return self._on_arrays(operator, call, inputs)
        return super()._compute(step, inputs, scope)

    def _call(self, step: Step, scope: Any) -> Any:
        from fuser.frontends.onnx_ops.registry import Call

        return Call(
            step.name,
            step.kind,
            step.version,
            step.attributes,
            step.outputs,
            self.array,
            lambda graph, given: self.run(graph, given, scope),
            step.fixed_inputs,
            step.memo,
        )


def example(program: OnnxProgram, inputs: Mapping[str, Any]) -> dict[str, mx.array]:
    """The checked inputs, in the program's order."""
    arrays = program.prepare(inputs)
    return {info.name: arrays[info.name] for info in program.inputs}


def one_trace(program: OnnxProgram, arrays: Mapping[str, mx.array], *, unfolded: bool = True) -> Graph:
    """The graph of a program for inputs of these shapes."""
    names = list(arrays)
    graph = program._graph

    def run(values: Sequence[mx.array]) -> list[mx.array]:
        if not unfolded:
            results = program(**dict(zip(names, values, strict=True)))
            return [results[info.name] for info in program.outputs]
        given: dict[str, Known] = {}
        for name, value in zip(names, values, strict=True):
            number = graph.types.get(name)
            given[name] = Narrow(value, number) if number in CARRIERS else value
        interpreter = _Unfolded(program._pool, graph)
        return [interpreter.array(value) for value in interpreter.run(graph, given)]

    traced = trace(run, [arrays[name] for name in names])
    # what follows the results is the random state after the call
    traced.graph.outputs = traced.graph.outputs[: len(program.outputs)]
    traced.graph.prune()
    if any(node.op == "RandomBits" for node in traced.graph.nodes):
        raise ConvertError(f"{program.name}: it draws random numbers, which a written program would draw differently")
    return traced.graph


def opened(graph: Graph) -> tuple[Graph, dict[Node, mx.array]]:
    """The graph with its positions (0, 1, 2, ...) as inputs, so that nothing is folded that depends on sizes."""
    twin, given = graph.copy(), {}
    for node in graph.nodes:
        array = node.array
        if array is None or array.size < 2 or array.dtype not in (mx.int64, mx.int32):
            continue
        flat = mx.reshape(array, (-1,))
        if mx.array_equal(flat, flat[0] + mx.arange(array.size).astype(array.dtype)).item():
            value = twin.add_input(node.outputs[0])
            twin.redirect(Value(node), value)
            given[value.node] = array
    twin.prune()
    return twin, given


def fused(raw: Sequence[Graph], *, folded: bool) -> tuple[tuple[Graph, ...], tuple[dict[Node, mx.array], ...]]:
    """The graphs fused; where masks may not be `folded`, with the positions that they come from kept."""
    twins = [(graph, {}) if folded else opened(graph) for graph in raw]
    return tuple(fuse(graph)[0] for graph, _ in twins), tuple(given for _, given in twins)


def resized(array: mx.array, shape: Sequence[int]) -> mx.array:
    """An array like `array` of another shape: its elements repeated, or the first of them."""
    for axis, size in enumerate(shape):
        if array.shape[axis] == 0:
            return mx.zeros(tuple(shape), array.dtype)
        index = mx.arange(size) % array.shape[axis]
        array = mx.take(array, index, axis=axis)
    return array


def symbolic(infos: Sequence[ValueInfo], arrays: Mapping[str, mx.array]) -> dict[str, tuple[str | int, ...]]:
    """The shape of each input, in symbols (also for dimensions without a name) and numbers."""
    shapes: dict[str, tuple[str | int, ...]] = {}
    for info in infos:
        declared = info.shape if info.shape is not None else (None,) * arrays[info.name].ndim
        shapes[info.name] = tuple(f"{info.name}_dim{axis}" if dim is None else dim for axis, dim in enumerate(declared))
    return shapes


def sizes_of(shapes: Mapping[str, tuple[str | int, ...]], arrays: Mapping[str, mx.array]) -> dict[str, int]:
    """The size of each symbol in the given inputs."""
    found: dict[str, int] = {}
    for name, shape in shapes.items():
        for dim, size in zip(shape, arrays[name].shape, strict=True):
            if isinstance(dim, str):
                found.setdefault(dim, size)
    return found


def _total(symbol: str, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """The symbols that `symbol` is the sum of in the given inputs, when its name says that it is a total."""
    if "+" in symbol:
        return tuple(term.strip() for term in symbol.split("+"))
    if "total" not in symbol.lower():
        return ()
    past = [name for name in sizes if "past" in name.lower() and "+" not in name]
    new = [name for name in sizes if name not in past and any(word in name.lower() for word in ("seq", "len", "tok"))]
    new = [name for name in new if "total" not in name.lower()]
    return (past[0], *new[:1]) if past else ()


def _choices(
    symbols: Mapping[str, int], dynamic: Sequence[str], table: Sequence[Sequence[int]]
) -> list[dict[str, int]]:
    """The sizes of each trace and check."""
    count = len(table[0]) if dynamic else 1
    chosen: list[dict[str, int]] = [{} for _ in range(count)]
    plain = [name for name in symbols if not _total(name, symbols)]
    for place, name in enumerate(plain):
        for t in range(count):
            row = table[place % len(table)]
            chosen[t][name] = row[t] if name in dynamic else symbols[name]
    for name in symbols:
        for t in range(count):
            terms = _total(name, symbols)
            if terms:
                fallback = sum(symbols.get(term, 0) for term in terms)
                extra = symbols[name] - fallback if all(term in symbols for term in terms) else 0
                known = [int(term) if term.isdigit() else chosen[t].get(term, 0) for term in terms]
                chosen[t][name] = sum(known) + extra
    return chosen


def traces(program: OnnxProgram, arrays: Mapping[str, mx.array]) -> Iterator[Traces]:
    """The program traced so that as many dimensions as possible are dynamic: the best try first."""
    shapes = symbolic(program.inputs, arrays)
    sizes = sizes_of(shapes, arrays)
    tries = [list(sizes)]
    # a dimension that the model does not really leave open, one after the other and then all of them
    tries += [[name for name in sizes if name != one] for one in sizes if len(sizes) > 1]
    tries += [[one] for one in sizes if len(sizes) > 2] + [[]]
    for dynamic in tries:
        for table in (SIZES, SMALL) if dynamic else (SIZES,):
            choices = _choices(sizes, dynamic, table)
            raw = _try(program, arrays, shapes, choices[:TRACES])
            if not raw and not dynamic:
                raise ConvertError(f"{program.name}: it cannot be traced for the given inputs")
            if raw:
                symbols = {name: tuple(each[name] for each in choices[:TRACES]) for name in sizes if name in dynamic}
                frozen = {name: size for name, size in sizes.items() if name not in dynamic}
                for folded in (True, False):
                    graphs, given = fused(raw, folded=folded)
                    yield Traces(graphs, given, symbols, frozen, dict(shapes), tuple(choices[TRACES:]))
                break


def _try(
    program: OnnxProgram,
    arrays: Mapping[str, mx.array],
    shapes: Mapping[str, tuple[str | int, ...]],
    choices: Sequence[Mapping[str, int]],
) -> tuple[Graph, ...]:
    """The traces at these sizes, none where that cannot be."""
    graphs = []
    for choice in choices:
        try:
            graphs.append(_either(program, fitting(shapes, arrays, choice)))
        except (FuserError, RuntimeError, ValueError, IndexError):
            return ()
    return tuple(graphs)


def fitting(
    shapes: Mapping[str, tuple[str | int, ...]], arrays: Mapping[str, mx.array], sizes: Mapping[str, int]
) -> dict[str, mx.array]:
    """The inputs at other sizes."""
    return {
        name: resized(arrays[name], [sizes[dim] if isinstance(dim, str) else dim for dim in shape])
        for name, shape in shapes.items()
    }


def _either(program: OnnxProgram, arrays: Mapping[str, mx.array]) -> Graph:
    try:
        return one_trace(program, arrays)
    except (FuserError, RuntimeError, ValueError, TypeError, IndexError):
        return one_trace(program, arrays, unfolded=False)
