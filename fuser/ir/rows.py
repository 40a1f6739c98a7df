"""Some rows of a known value, without the others: a mask of 16384 x 16384 is looked at but never made."""

from __future__ import annotations

import math

import mlx.core as mx

from fuser.ir.graph import Value
from fuser.ir.known import Known
from fuser.ir.ops import rebuild

# what these give for one element does not depend on what stands beside it
_ELEMENTWISE = frozenset(
    {"Abs", "Add", "AsType", "BitwiseBinary", "BitwiseInvert", "Ceil", "Copy", "Divide", "Equal", "Floor",
     "FloorDivide", "Full", "Greater", "GreaterEqual", "Less", "LessEqual", "Log", "LogicalAnd", "LogicalNot",
     "LogicalOr", "Maximum", "Minimum", "Multiply", "Negative", "NotEqual", "Remainder", "Round", "Select", "Sign",
     "Square", "StopGradient", "Subtract"}
)  # fmt: skip
_RESHAPES = frozenset({"Reshape", "Flatten", "Unflatten", "Squeeze", "ExpandDims"})
# masks are made in fewer steps; a longer way is evaluated as a whole
DEPTH = 64


class Rows:
    """`value[..., start:stop, ...]` along one axis; what it is made of is cut too, as far back as that can be."""

    def __init__(self, known: Known, value: Value, axis: int) -> None:
        self._known, self._value, self._axis = known, value, axis
        self._done: dict[tuple[Value, int], mx.array] = {}
        self._range = (0, 0)

    def read(self, start: int, stop: int) -> mx.array:
        """The rows from `start` up to `stop`, not yet evaluated."""
        self._range, self._done = (start, stop), {}
        array = self._part(self._value, self._axis, DEPTH)
        self._done = {}
        return array

    def _part(self, value: Value, axis: int, depth: int) -> mx.array:
        key = (value, axis)
        if key not in self._done:
            made = self._made(value, axis, depth) if depth and self._known.operands(value) else None
            self._done[key] = self._cut(self._known.lazy(value), axis) if made is None else made
        return self._done[key]

    def _made(self, value: Value, axis: int, depth: int) -> mx.array | None:
        node, operands = value.node, self._known.operands(value)
        start, stop = self._range
        shape = [*value.shape[:axis], stop - start, *value.shape[axis + 1 :]]
        if node.op in _ELEMENTWISE:
            inputs = [self._aligned(value, axis, operand, depth) for operand in operands]
            return rebuild(node.op, node.arguments, inputs)[value.index]
        if node.op == "Broadcast":
            return mx.broadcast_to(self._aligned(value, axis, operands[0], depth), shape)
        if node.op == "Gather" and axis < len(value.shape) - len(node.arguments[1]):
            table, *indices = operands
            if all(each.shape == indices[0].shape for each in indices):
                some = [self._part(each, axis, depth - 1) for each in indices]
                return rebuild(node.op, node.arguments, [self._known.lazy(table), *some])[0]
        if node.op == "Transpose":
            order = node.arguments[0]
            return mx.transpose(self._part(operands[0], order[axis], depth - 1), order)
        if node.op in _RESHAPES:
            place = _same_axis(value.shape, axis, operands[0].shape)
            return None if place is None else mx.reshape(self._part(operands[0], place, depth - 1), shape)
        return None

    def _aligned(self, value: Value, axis: int, operand: Value, depth: int) -> mx.array:
        """What `operand`, broadcast against `value`, has in these rows."""
        place = axis + len(operand.shape) - len(value.shape)
        if place < 0 or operand.shape[place] != value.shape[axis]:
            return self._known.lazy(operand)
        return self._part(operand, place, depth - 1)

    def _cut(self, array: mx.array, axis: int) -> mx.array:
        return array[(*[slice(None)] * axis, slice(*self._range))]


def _same_axis(shape: tuple[int, ...], axis: int, source: tuple[int, ...]) -> int | None:
    """Which axis of `source` is `axis` of what it was reshaped to; None when it is none of its own there."""
    outer = math.prod(shape[:axis])
    found = (i for i, size in enumerate(source) if size == shape[axis] and math.prod(source[:i]) == outer)
    return next(found, None)
