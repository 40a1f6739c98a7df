"""The program as it will be written: operations of `mlx.core` and layers of `mlx.nn`, shared where they are equal.

A dimension is the tuple of its sizes in all traces: `(7, 11, 13)` is dynamic, `(64, 64, 64)` is not. So equality,
products and broadcasting of shapes need no algebra; only the one who writes the program finds names for sizes.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import mlx.core as mx

from fuser.errors import FuserError

Dim: TypeAlias = tuple[int, ...]
Shape: TypeAlias = tuple[Dim, ...]

INPUT, CONST, NUMBER, SIZE = "input", "const", "number", "size"
LEAVES = (INPUT, CONST, NUMBER, SIZE)
# operations that become an `nn` layer with parameters of its own
LAYERS = ("linear", "embedding", "rms_norm", "layer_norm", "conv")


class ConvertError(FuserError):
    """The program cannot be written as Python source, or what was written is wrong (and was thrown away)."""


@dataclass(eq=False, slots=True)
class Op:
    """One operation; equal operations are one object, so identity is equality."""

    kind: str
    args: tuple[Op, ...]
    attrs: tuple[Any, ...]
    shape: Shape
    dtype: mx.Dtype
    path: tuple[str, ...] = ()
    """The module that it is written in."""
    name: str = ""
    """What it is called: an input's name, the attribute of a layer or constant."""
    array: mx.array | None = None
    params: dict[str, mx.array] = field(default_factory=dict)
    """The arrays of a layer, by their names in the layer."""

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    @property
    def number(self) -> Any:
        """The value of a number, else None."""
        return self.attrs[0] if self.kind == NUMBER else None

    def __repr__(self) -> str:
        return f"<{self.kind} {'.'.join(self.path)} {[d[0] for d in self.shape]}>"


class Pool:
    """Makes operations; asked twice for the same one, it gives the same one."""

    def __init__(self, traces: int) -> None:
        self.traces = traces
        self.path: tuple[str, ...] = ()
        """Where new operations belong to."""
        self._made: dict[Hashable, Op] = {}

    def dim(self, size: int) -> Dim:
        """A size that never changes."""
        return (size,) * self.traces

    def op(self, kind: str, args: Sequence[Op], attrs: Sequence[Any], shape: Iterable[Dim], dtype: mx.Dtype) -> Op:
        """The operation `kind` of `args`."""
        key = (kind, *map(id, args), repr(tuple(attrs)), tuple(shape), str(dtype))
        found = self._made.get(key)
        if found is None:
            found = self._made[key] = Op(kind, tuple(args), tuple(attrs), tuple(shape), dtype, self.path)
        return found

    def number(self, value: Any, dtype: mx.Dtype) -> Op:
        """A number in the program's text."""
        return self.op(NUMBER, (), (value,), (), dtype)

    def size(self, dim: Dim, dtype: mx.Dtype) -> Op:
        """A number that is a matter of sizes."""
        return self.number(dim[0], dtype) if fixed(dim) else self.op(SIZE, (), (dim,), (), dtype)

    def const(self, array: mx.array, key: Hashable, name: str = "") -> Op:
        """An array that is stored beside the program."""
        found = self._made.get((CONST, key))
        if found is None:
            shape = tuple(map(self.dim, array.shape))
            found = Op(CONST, (), (), shape, array.dtype, self.path, name, array)
            self._made[CONST, key] = found
        return found

    def layer(self, kind: str, x: Op, attrs: Sequence[Any], shape: Shape, params: dict[str, Op]) -> Op:
        """A layer of `mlx.nn` over `x`, its parameters taken from constants."""
        key = (kind, id(x), repr(tuple(attrs)), *((name, id(op)) for name, op in params.items()))
        found = self._made.get(key)
        if found is None:
            made = Op(kind, (x,), tuple(attrs), shape, x.dtype, self.path)
            for name, op in params.items():
                assert op.array is not None
                made.params[name] = op.array
                made.dtype = op.dtype
            found = self._made[key] = made
        return found


def fixed(dim: Dim) -> bool:
    """Whether a dimension has the same size in all traces."""
    return len(set(dim)) == 1


def is_one(dim: Dim) -> bool:
    """Whether a dimension is 1 in all traces."""
    return all(size == 1 for size in dim)


def product(dims: Iterable[Dim], traces: int) -> Dim:
    """The size of all `dims` together."""
    rows = list(dims)
    return tuple(math.prod(dim[t] for dim in rows) for t in range(traces))


def broadcast(shapes: Sequence[Shape]) -> Shape | None:
    """The shape of arrays of these shapes together; None where they do not fit."""
    rank = max(map(len, shapes), default=0)
    result: list[Dim] = []
    for axis in range(-rank, 0):
        dims = {shape[axis] for shape in shapes if len(shape) >= -axis}
        wide = [dim for dim in dims if not is_one(dim)]
        if len(wide) > 1:
            return None
        result.append(wide[0] if wide else next(iter(dims)))
    return tuple(result)


def ordered(outputs: Iterable[Op]) -> list[Op]:
    """All operations that `outputs` need, each after those that it reads."""
    done: dict[Op, None] = {}
    for root in outputs:
        stack = [root]
        while stack:
            waiting = [arg for arg in stack[-1].args if arg not in done]
            if waiting:
                stack.extend(reversed(waiting))
            else:
                done[stack.pop()] = None
    return list(done)


def users(outputs: Sequence[Op]) -> dict[Op, list[Op]]:
    """Who reads each operation."""
    found: dict[Op, list[Op]] = {}
    for op in ordered(outputs):
        found.setdefault(op, [])
        for arg in op.args:
            found[arg].append(op)
    return found
