"""Repeated heads: what an array repeats of its source by index or by concatenation, read as axes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fuser.ir.graph import Value
from fuser.reading.axes import Dim, Dims, axes_of, regroup, resolve, size_of
from fuser.reading.program import Program


def repeated(program: Program, value: Value, dims: Dims) -> tuple[Value, Dims] | None:
    """What `value` takes each element of, all equally often, and what the dimensions of that mean."""
    if value.node.op == "Gather":
        return _gathered(program, value, resolve(dims))
    if value.node.op == "Concatenate":
        return _concatenated(program, value, resolve(dims))
    return None


def taken(dim: Dim, order: Sequence[int], size: int) -> Dim | None:
    """The axes of a source's dimension of `size`, when the places `order` of it make the dimension `dim`.

    `0 0 1 1` repeats each place (the repeat is the inner axis), `0 1 0 1` repeats the whole (it is the outer one).
    """
    times, rest = divmod(len(order), size)
    if rest or size_of(dim) != len(order):
        return None
    if list(order) == [i // times for i in range(len(order))]:
        split = regroup([dim], (size, times))
        return split[0] if split is not None else None
    if list(order) == [i % size for i in range(len(order))]:
        split = regroup([dim], (times, size))
        return split[1] if split is not None else None
    return None


def _gathered(program: Program, value: Value, dims: Dims) -> tuple[Value, Dims] | None:
    source, *indices = program.operands(value)
    axes, sizes = value.node.arguments
    count = len(indices[0].shape)
    given = list(dims[count:])
    for axis, size in enumerate(sizes):
        if axis not in axes and size != source.shape[axis]:
            return None
    for axis, index in zip(axes, indices, strict=True):
        places = program.known.array(index)
        if places is None:
            return None
        varies = [i for i in range(count) if places.shape[i] > 1 and (np.diff(places, axis=i) != 0).any()]
        if len(varies) > 1:
            return None
        along = varies[0] if varies else None
        order = (
            places.reshape(-1)[:1]
            if along is None
            else np.moveaxis(places, along, 0).reshape(places.shape[along], -1)[:, 0]
        )
        kept = taken(dims[along] if along is not None else (), [int(i) for i in order], source.shape[axis])
        if kept is None:
            return None
        program.known.rely(index)
        given[axis] = kept
    own = axes_of(given)
    # two indices that run together take a diagonal
    return (source, resolve(given)) if len(set(own)) == len(own) else None


def _concatenated(program: Program, value: Value, dims: Dims) -> tuple[Value, Dims] | None:
    (axis,) = value.node.arguments
    order: list[int] = []
    sources: set[Value] = set()
    for operand in program.operands(value):
        source, start = operand, 0
        if operand.node.op == "Slice":
            (source,) = program.operands(operand)
            first, _, steps = operand.node.arguments
            if any(begin for i, begin in enumerate(first) if i != axis) or any(step != 1 for step in steps):
                return None
            start = first[axis]
        sources.add(source)
        order += range(start, start + operand.shape[axis])
    if len(sources) > 1:
        return None
    (source,) = sources
    kept = taken(dims[axis], order, source.shape[axis])
    if kept is None or any(a != b for i, (a, b) in enumerate(zip(source.shape, value.shape, strict=True)) if i != axis):
        return None
    return source, (*dims[:axis], kept, *dims[axis + 1 :])
