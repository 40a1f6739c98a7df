"""An array that the program keeps in pieces (old keys and new ones), read as the one that they are together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fuser.ir.graph import Value
from fuser.reading.axes import Axis, Dim, Dims, axes_of
from fuser.reading.operands import Operand, operand
from fuser.reading.program import Program


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


def joined(program: Program, parts: Sequence[tuple[Operand, Dim]], whole: Dim) -> Operand | None:
    """The operand that `parts` are, one after the other: the axes given with each make up `whole`.

    None when they differ in type, or in the scale that was taken off.
    """
    first = parts[0][0]
    if len({(part.value.dtype, part.dtype, part.number) for part, _ in parts}) > 1:
        return None
    uncut = _uncut(program, parts, whole)
    if uncut is not None:
        return uncut
    own = dict.fromkeys(axis for part, along in parts for axis in axes_of(part.dims) if axis not in axes_of([along]))
    dims = tuple((axis,) for axis in (*own, *axes_of([whole])))
    return Operand(first.value, dims, first.dtype, first.number, tuple(parts))


def _uncut(program: Program, parts: Sequence[tuple[Operand, Dim]], whole: Dim) -> Operand | None:
    """The array that `parts` are cut from, when they are all of it in order."""
    first, column = parts[0][0], axes_of([parts[0][1]])
    dims = _resolved(first)
    if not column or column not in dims or first.value.node.op not in ("Slice", "Split"):
        return None
    place, (source, *_), end = dims.index(column), program.operands(first.value), 0
    for part, along in parts:
        cut = _resolved(part)
        alike = len(cut) == len(dims) and all(
            one == (axes_of([along]) if i == place else other)
            for i, (one, other) in enumerate(zip(cut, dims, strict=True))
        )
        if not alike or program.operands(part.value)[:1] != (source,) or _start(part.value, place) != end:
            return None
        end += part.value.shape[place]
    if end != source.shape[place] or first.value.shape[:place] != source.shape[:place]:
        return None
    if first.value.shape[place + 1 :] != source.shape[place + 1 :]:
        return None
    uncut = Operand(source, (*dims[:place], whole, *dims[place + 1 :]), first.dtype, first.number)
    found = operand(program, source, uncut.dims)
    # the scales that were taken off are counted already
    return replace(found, dtype=first.dtype, number=first.number) if found.number == 1 else uncut


def _start(value: Value, place: int) -> int | None:
    """Where along an axis a piece begins that is all of its source along the others."""
    node = value.node
    if node.op == "Split":
        ends, axis = node.arguments
        return (0, *ends)[value.index] if axis == place else None
    if node.op != "Slice" or any(step != 1 for step in node.arguments[2]):
        return None
    begin = node.arguments[0][place]
    return begin if not any(start for i, start in enumerate(node.arguments[0]) if i != place) else None


def _resolved(operand: Operand) -> Dims:
    return tuple(axes_of([dim]) for dim in operand.dims)
