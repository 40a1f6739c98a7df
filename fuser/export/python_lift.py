"""Graphs of one program, traced at several sizes, lifted together into the program as it will be written."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from fuser.export.python_closed import closed
from fuser.export.python_ir import INPUT, ConvertError, Op, Shape
from fuser.export.python_primitives import PRIMITIVES, Site
from fuser.export.python_rules import FLOATS, Rules
from fuser.export.python_trace import Traces
from fuser.ir.graph import CONSTANT, Node, Value
from fuser.ir.graph import INPUT as GRAPH_INPUT
from fuser.ir.known import Known

Values: TypeAlias = tuple[Value, ...]
Array: TypeAlias = NDArray[Any]


class Lift:
    """One program out of its traces."""

    def __init__(self, traces: Traces, names: Mapping[tuple[Any, ...], str]) -> None:
        self.traces = traces
        self.rules = Rules(len(traces.graphs))
        self._names = names
        self._graphs = traces.graphs
        self._known = [Known(g, given) for g, given in zip(traces.graphs, traces.given, strict=True)]
        self._done: dict[Values, Op] = {}
        self._inputs = [dict(zip(g.inputs, traces.shapes, strict=False)) for g in self._graphs]

    def outputs(self) -> list[Op]:
        """The program's results."""
        rows = list(zip(*(graph.outputs for graph in self._graphs), strict=True))
        return [self._lift(row) for row in rows]

    def _lift(self, wanted: Values) -> Op:
        stack: list[tuple[Values, list[Values] | None]] = [(wanted, None)]
        while stack:
            values, parts = stack.pop()
            if values in self._done:
                continue
            self.rules.path = path_of(values[0].node.scope)
            if parts is None:
                made = self._leaf(values)
                if made is not None:
                    self._done[values] = made
                    continue
                parts = self._parts(values)
                stack.append((values, parts))
                stack.extend((part, None) for part in reversed(parts) if part not in self._done)
                continue
            self._done[values] = self._build(values, [self._done[part] for part in parts])
        return self._done[wanted]

    def _leaf(self, values: Values) -> Op | None:
        node = values[0].node
        if node.op == GRAPH_INPUT and node not in self.traces.given[0]:
            name = self._inputs[0].get(node)
            if name is None or any(self._inputs[t].get(v.node) != name for t, v in enumerate(values)):
                raise ConvertError("it reads an array that is no input of the model")
            return self.rules.op(INPUT, (), (name,), _shape(values), values[0].dtype)
        # what is only moved or repeated is read as it was before
        moved = node.op in ("Broadcast", "BroadcastAxes")
        if not moved and all(known.is_known(value) for known, value in zip(self._known, values, strict=True)):
            return self._constant(values)
        return None

    def _constant(self, values: Values) -> Op | None:
        arrays = [known.array(value) for known, value in zip(self._known, values, strict=True)]
        if any(array is None for array in arrays):
            return None
        shape, stored = _shape(values), self._stored(values[0].node)
        present = [array for array in arrays if array is not None]
        found = closed(self.rules, present, shape, values[0].dtype, weight=stored)
        if found is not None:
            return found
        first = arrays[0]
        assert first is not None
        if all(array is not None and array.shape == first.shape and _same(array, first) for array in arrays[1:]):
            node = values[0].node
            name = self._names.get(fingerprint(first), "")
            held = node.array if node.op == CONSTANT else None
            array = held if held is not None else mx.array(first).astype(values[0].dtype)
            return self.rules.const(array, (node, values[0].index), name)
        if any(value.node.op == CONSTANT for value in values):
            raise ConvertError(f"a constant of shape {list(first.shape)} depends on sizes in a way that has no formula")
        return None

    def _stored(self, node: Node) -> bool:
        """Whether a known value comes from weights of the model."""
        stack, seen = [node], {node}
        while stack:
            each = stack.pop()
            if each.array is not None and each.array.size > 1 and each.array.dtype in FLOATS:
                return True
            below = {operand.node for operand in self._graphs[0].operands(each)} - seen
            seen |= below
            stack.extend(below)
        return False

    def _parts(self, values: Values) -> list[Values]:
        rows = [graph.operands(value.node) for graph, value in zip(self._graphs, values, strict=True)]
        ops = {value.node.op for value in values}
        if len(ops) != 1 or len({len(row) for row in rows}) != 1:
            raise ConvertError(f"the program is another at other sizes: {' or '.join(sorted(ops))}")
        return list(zip(*rows, strict=True))

    def _build(self, values: Values, args: list[Op]) -> Op:
        node = values[0].node
        make: Callable[[Site], Op] | None = PRIMITIVES.get(node.op)
        if make is None:
            raise ConvertError(f"MLX's primitive {node.op} has no spelling in Python source here ({node.scope})")
        arguments = [value.node.arguments for value in values]
        return make(Site(self.rules, node.op, args, arguments, _shape(values), values[0].dtype, values[0].index))


def _shape(values: Values) -> Shape:
    if len({len(value.shape) for value in values}) != 1:
        raise ConvertError("the program is another at other sizes: a number of dimensions differs")
    return tuple(zip(*(value.shape for value in values), strict=True))


def _same(a: Array, b: Array) -> bool:
    return bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))


def fingerprint(array: Array) -> tuple[Any, ...]:
    """What two arrays of equal contents have in common."""
    data = np.ascontiguousarray(array)
    return (data.shape, str(data.dtype), hash(data.tobytes()))


def path_of(scope: str) -> tuple[str, ...]:
    """The modules that a scope lies in: `/encoder/layer.0/attention/MatMul` is in encoder, layer, 0, attention."""
    module, slash, _ = scope.rpartition("/")
    if not slash:
        return ()
    parts = [part for part in re.split(r"[./]", module) if part]
    return tuple(re.sub(r"\W", "_", part) for part in parts)
