"""What a product multiplies: queries, keys and values, seen through casts, scales, transposes and repeated heads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from fuser.ir.graph import Value
from fuser.reading.axes import Dim, Dims, axes_of, resolve
from fuser.reading.program import Program, backwards, is_float
from fuser.reading.repeats import repeated


@dataclass(frozen=True)
class Operand:
    """A query, key or value array: where it is read, what its dimensions mean, and what was taken off it."""

    value: Value
    dims: Dims
    dtype: mx.Dtype
    """The type in which the program multiplies it; that of `value` may be narrower."""
    number: float = 1.0
    """The constant scale that was taken off."""
    parts: tuple[tuple[Operand, Dim], ...] = ()
    """Of an array in pieces: these one after the other, each along the axes given with it; `value` is the first."""

    @property
    def axes(self) -> frozenset[object]:
        """The axes over which it varies."""
        return frozenset(axes_of(self.dims))


def operand(program: Program, value: Value, dims: Dims) -> Operand:
    """`value`, as far back as casts to a wider type, constant scales, transposes and repeats lead.

    A reshape is gone through only on the way to something worth taking off.
    """
    dtype, number = value.dtype, 1.0
    best = Operand(value, dims, dtype)
    while True:
        op = value.node.op
        back = backwards(program, value, dims) or repeated(program, value, dims)
        if back is not None:
            value, dims = back
            if op in ("Reshape", "Flatten", "Unflatten"):
                continue
        elif op == "AsType" and _widens(program.operands(value)[0], value):
            value = program.operands(value)[0]
        elif op == "Negative":
            value, number = program.operands(value)[0], -number
        elif op in ("Multiply", "Divide"):
            taken = _constant(program, op, program.operands(value))
            if taken is None:
                return best
            value, number = taken[0], number * taken[1]
        else:
            return best
        best = Operand(value, resolve(dims), dtype, number)


def _widens(source: Value, value: Value) -> bool:
    return is_float(source) and is_float(value) and source.dtype.size < value.dtype.size


def _constant(program: Program, op: str, sources: tuple[Value, ...]) -> tuple[Value, float] | None:
    for place in (1, 0) if op == "Multiply" else (1,):
        number = program.known.number(sources[place])
        if number is not None and number != 0 and math.isfinite(number):
            return sources[1 - place], number if op == "Multiply" else 1 / number
    return None


def kernel_dtype(program: Program, operands: Sequence[Operand], outputs: Sequence[Value]) -> mx.Dtype:
    """The type to compute in: that of the outputs, when all operands are of it before they are cast up."""
    if {each.value.dtype for each in operands} == {_given(program, output) for output in outputs}:
        return operands[0].value.dtype
    dtype = operands[0].dtype
    for each in operands[1:]:
        if each.dtype != dtype:
            dtype = mx.result_type(mx.zeros((), dtype), mx.zeros((), each.dtype))
    return dtype


def _given(program: Program, output: Value) -> mx.Dtype:
    """The type of the output after the cast that follows it at once, if one does."""
    casts = {node.outputs[0].dtype if node.op == "AsType" else None for node, _ in program.graph.users(output)}
    if output in program.graph.outputs or len(casts) != 1:
        return output.dtype
    return casts.pop() or output.dtype
