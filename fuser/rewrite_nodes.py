"""The nodes that a rewrite puts into a graph: made once, and typed as a trace has them."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from fuser.ir.graph import Graph, Value
from fuser.layout import relayout
from fuser.reading.axes import Dims


class Nodes:
    """Adds nodes to a graph; those that several need are there once."""

    def __init__(self, graph: Graph) -> None:
        self._graph, self._scope = graph, ""
        self._made: dict[tuple[object, ...], Value] = {}
        self._arrays: dict[tuple[object, ...], Value] = {}
        # what is added may read what was replaced before
        self._replaced: dict[Value, Value] = {}

    def _lay(self, value: Value, dims: Dims, target: Dims, full: Sequence[bool] = ()) -> Value:
        return relayout(self._graph, self._now(value), dims, target, full, self._scope)

    def _now(self, value: Value) -> Value:
        while value in self._replaced:
            value = self._replaced[value]
        return value

    def _alike(self, *values: Value, shape: tuple[int, ...] | None = None) -> list[Value]:
        """The values broadcast to one shape, as a trace has them."""
        shape = shape or np.broadcast_shapes(*(value.shape for value in values))
        return [v if v.shape == shape else self._memo("Broadcast", [v], shape) for v in values]

    def _scaled(self, value: Value, number: float) -> Value:
        return value if number == 1 else self._memo("Multiply", self._alike(value, self._number(number, value.dtype)))

    def _promoted(self, left: Value, right: Value) -> tuple[Value, Value]:
        """Both in one type: the program's own, if it is one, in which two of the lowest numbers make minus infinity."""
        if left.dtype == right.dtype:
            return left, right
        return self._cast(left, mx.float32), self._cast(right, mx.float32)

    def _cast(self, value: Value, dtype: mx.Dtype) -> Value:
        return value if value.dtype == dtype else self._memo("AsType", [value], dtype)

    def _number(self, number: float, dtype: mx.Dtype) -> Value:
        key = ("number", repr(float(number)), dtype)
        if key not in self._arrays:
            self._arrays[key] = self._graph.add_constant(mx.array(number, dtype))
        return self._arrays[key]

    def _memo(self, op: str, operands: list[Value], *arguments: object) -> Value:
        key = (op, tuple(operands), arguments)
        if key not in self._made:
            self._made[key] = self._add(op, operands, *arguments)
        return self._made[key]

    def _add(self, op: str, operands: list[Value], *arguments: object) -> Value:
        return self._graph.add(op, operands, *arguments, scope=self._scope)
