"""What a product multiplies: queries, keys and values, seen through casts, scales, transposes and repeated heads."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from fuser.ir.graph import Value
from fuser.patterns.axes import VIEWS, Dims, axes_of, before, resolve
from fuser.patterns.cursor import IDENTITIES, Program, is_float


@dataclass(frozen=True)
class Operand:
    """A query, key or value array: where it is read, what its dimensions mean, and what was taken off it."""

    value: Value
    dims: Dims
    dtype: mx.Dtype
    """The type in which the program multiplies it; that of `value` may be narrower."""
    number: float = 1.0
    """The constant scale that was taken off."""
    repeats: bool = False
    """Whether it was repeated along some axis on the way."""

    @property
    def axes(self) -> frozenset[object]:
        """The axes over which it varies."""
        return frozenset(axes_of(self.dims))


def operand(program: Program, value: Value, dims: Dims) -> Operand:
    """`value`, as far back as casts to a wider type, constant scales, transposes and repeats lead.

    A reshape is gone through only on the way to something worth taking off.
    """
    dtype, number, repeats = value.dtype, 1.0, False
    best = Operand(value, dims, dtype)
    while True:
        op, sources = value.node.op, program.operands(value)
        if op in VIEWS:
            given = before(op, value.node.arguments, dims, sources[0].shape)
            if given is None:
                return best
            repeats = repeats or len(axes_of(given)) < len(axes_of(dims))
            value, dims = sources[0], given
            if op in ("Reshape", "Flatten", "Unflatten"):
                continue
        elif op in IDENTITIES:
            value = sources[0]
        elif op == "AsType" and is_float(sources[0]) and sources[0].dtype.size < value.dtype.size:
            value = sources[0]
        elif op == "Negative":
            value, number = sources[0], -number
        elif op in ("Multiply", "Divide"):
            taken = _constant(program, op, sources)
            if taken is None:
                return best
            value, number = taken[0], number * taken[1]
        else:
            return best
        best = Operand(value, resolve(dims), dtype, number, repeats)


def _constant(program: Program, op: str, sources: tuple[Value, ...]) -> tuple[Value, float] | None:
    for place in (1, 0) if op == "Multiply" else (1,):
        number = program.known.number(sources[place])
        if number is not None and number != 0 and not program.known.is_known(sources[1 - place]):
            return sources[1 - place], number if op == "Multiply" else 1 / number
    return None
