"""Axes with identity: what a tensor's dimensions mean, kept through every transpose, reshape and broadcast.

A region's scores vary over some *axes*: batch, head, query, key. Each dimension of a tensor in the region is a tuple of
them, outermost first: `(batch,), (head,), (query,), (key,)` is the usual layout, `(batch, head), (query,), (key,)` the
one with heads merged, and `()` is a dimension of size 1, over which nothing varies. A view only moves axes; it is read
backwards, from what it gives to what it was given. So no layout is a special case: keys transposed once or thrice,
heads split or merged, K/V repeated for grouped queries (an axis that K and V do not have) all come out as axes.

When a reshape cuts an axis in two (heads split into groups), the axis is *split*: the halves stand for it everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any


class Axis:
    """One direction in which a region's tensors vary; equal only to itself. Never of size 1."""

    __slots__ = ("name", "parts", "size")

    def __init__(self, size: int, name: str = "") -> None:
        self.size = size
        self.name = name
        self.parts: tuple[Axis, Axis] | None = None

    def split(self, outer: int) -> tuple[Axis, Axis]:
        """Cut the axis into an outer one of size `outer` and the rest."""
        self.parts = (Axis(outer, self.name), Axis(self.size // outer, self.name))
        return self.parts

    def __repr__(self) -> str:
        return f"{self.name or 'axis'}:{self.size}"


Dim = tuple[Axis, ...]
Dims = tuple[Dim, ...]


def fresh(size: int, name: str = "") -> Dim:
    """A dimension of `size` over a new axis (over none, if the size is 1)."""
    return (Axis(size, name),) if size != 1 else ()


def resolve(dims: Sequence[Dim]) -> Dims:
    """`dims` with the axes that were split since replaced by their parts."""
    for dim in dims:
        for axis in dim:
            if axis.parts is not None:
                return tuple(tuple(_parts(dim)) for dim in dims)
    return tuple(dims)


def _parts(dim: Iterable[Axis]) -> Iterable[Axis]:
    for axis in dim:
        if axis.parts is None:
            yield axis
        else:
            yield from _parts(axis.parts)


def axes_of(dims: Sequence[Dim]) -> Dim:
    """All axes, outermost first."""
    return tuple(chain.from_iterable(resolve(dims)))


def size_of(dim: Iterable[Axis]) -> int:
    """The number of positions that the axes span."""
    return math.prod(axis.size for axis in dim)


def regroup(dims: Sequence[Dim], shape: Sequence[int]) -> Dims | None:
    """The same axes in the same order as dimensions of `shape`, as a reshape gives them; None when no cut fits."""
    rest = list(axes_of(dims))
    rest.reverse()
    grouped: list[Dim] = []
    for need in shape:
        dim: list[Axis] = []
        while need > 1:
            if not rest or not rest[-1].size:  # an axis without positions is a part of none that has some
                return None
            axis = rest.pop()
            if need % axis.size == 0:
                dim.append(axis)
                need //= axis.size
            elif axis.size % need == 0:
                outer, inner = axis.split(need)
                dim.append(outer)
                rest.append(inner)
                need = 1
            else:
                return None
        grouped.append(tuple(dim))
    return tuple(grouped) if not rest else None


def position(dim: Dim, start: int, size: int, stride: int = 1) -> tuple[Dim, Dim, int] | None:
    """What a slice leaves of `dim`, the axes of which it takes one position, and that position.

    The slice is one of equal blocks, or every so many-th; None for any other.
    """
    times, rest = divmod(size_of(dim), size)
    inner = stride == times
    if rest or (start >= times if inner else stride != 1 or start % size):
        return None
    cut = regroup([dim], (size, times) if inner else (times, size))
    if cut is None:
        return None
    return (cut[0], cut[1], start) if inner else (cut[1], cut[0], start // size)


VIEWS = frozenset({"Transpose", "Reshape", "Flatten", "Unflatten", "Squeeze", "ExpandDims", "Broadcast"})


def before(op: str, arguments: tuple[Any, ...], dims: Dims, shape: tuple[int, ...]) -> Dims | None:
    """The dims of what the view `op` was given (of `shape`), when it gave `dims`."""
    dims = resolve(dims)
    if op == "Transpose":
        given: list[Dim] = [()] * len(dims)
        for place, source in enumerate(arguments[0]):
            given[source] = dims[place]
        return tuple(given)
    if op == "Broadcast":
        kept = dims[len(dims) - len(shape) :]
        return tuple(dim if size != 1 else () for dim, size in zip(kept, shape, strict=True))
    return regroup(dims, shape)


def after(op: str, arguments: tuple[Any, ...], dims: Dims, shape: tuple[int, ...]) -> Dims | None:
    """The dims of what the view `op` gives (of `shape`), when it is given `dims`; a broadcast brings new axes."""
    dims = resolve(dims)
    if op == "Transpose":
        return tuple(dims[source] for source in arguments[0])
    if op == "Broadcast":
        padded = ((),) * (len(shape) - len(dims)) + dims
        return tuple(dim or fresh(size) for dim, size in zip(padded, shape, strict=True))
    return regroup(dims, shape)
