"""An array that the program keeps in pieces (old keys and new ones), read as the one that they are together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fuser.reading.axes import Axis, Dim, Dims, axes_of
from fuser.reading.operands import Operand


def translation(dims: Dims, wanted: Dims, own: Dim) -> dict[Axis, Axis] | None:
    """Which axes of `wanted` the axes `own` of `dims` stand for, when both describe one array.

    None when they cut it apart, or when any other axis is not the same in both.
    """
    here, there, own = axes_of(dims), axes_of(wanted), axes_of([own])
    if [axis.size for axis in here] != [axis.size for axis in there]:
        return None
    pairs = list(zip(here, there, strict=True))
    return dict(pairs) if all(one == other for one, other in pairs if one not in own) else None


def translated(operand: Operand, names: Mapping[Axis, Axis]) -> Operand:
    """`operand` with its axes replaced by those that they stand for."""
    dims = tuple(tuple(names.get(axis, axis) for axis in dim) for dim in _resolved(operand))
    parts = tuple((translated(part, names), along) for part, along in operand.parts)
    return replace(operand, dims=dims, parts=parts)


def joined(parts: Sequence[tuple[Operand, Dim]], whole: Dim) -> Operand | None:
    """The operand that `parts` are, one after the other: the axes given with each make up `whole`.

    None when they differ in type, or in the scale that was taken off.
    """
    first = parts[0][0]
    if len({(part.value.dtype, part.dtype, part.number) for part, _ in parts}) > 1:
        return None
    own = dict.fromkeys(axis for part, along in parts for axis in axes_of(part.dims) if axis not in axes_of([along]))
    dims = tuple((axis,) for axis in (*own, *axes_of([whole])))
    return Operand(first.value, dims, first.dtype, first.number, tuple(parts))


def _resolved(operand: Operand) -> Dims:
    return tuple(axes_of([dim]) for dim in operand.dims)
