"""Masks that are written into some of the scores: `scores[..., :2] = -inf`, where it is known which those are."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np

from fuser.ir.graph import Value
from fuser.ir.ops import rebuild
from fuser.masks.mask import Mask, Scale
from fuser.reading.axes import Dim, Dims, axes_of, fresh, resolve
from fuser.reading.program import Program, Term, most

# how MLX numbers what becomes of that which was there
ADDED = {"SliceUpdate": 2, "Scatter": 2, "ScatterAxis": 0}
REPLACED = {"SliceUpdate": 4, "Scatter": 4, "ScatterAxis": 1}
# more scores than these are not looked at one by one
LARGEST = 1 << 26


def assignment(program: Program, value: Value, dims: Dims, scale: Scale) -> Mask | None:
    """The mask that `value` puts on the array that it assigns to: a number in some places, or known numbers added.

    None when it is no such mask, or not known.
    """
    node, dims, (source, *indices, update) = value.node, resolve(dims), program.operands(value)
    number, arrays = program.known.number(update), [program.known.array(index) for index in indices]
    if any(array is None for array in arrays) or scale.traced:
        return None
    for index in indices:
        program.known.rely(index)
    if node.arguments[0] == REPLACED[node.op] and number is not None:
        fill = number * scale.number
        if math.isfinite(number) and abs(fill) > most(value):
            return None
        if node.op == "SliceUpdate":
            # alike along the axes that it fills: one place stands for all
            _, start, stop, by = node.arguments
            along = [n != m for n, m in zip(source.shape, update.shape, strict=True)]
            box = np.zeros([n if a else 1 for n, a in zip(source.shape, along, strict=True)], bool)
            box[tuple(slice(*each) if a else 0 for a, *each in zip(along, start, stop, by, strict=True))] = True
            part = tuple(dim if a else () for dim, a in zip(dims, along, strict=True))
            return Mask("keep", Term(update, part), scale, fill, inverted=True, array=box)
        written = _replayed(value, arrays, mx.ones(update.shape, mx.bool_))
        return None if written is None else Mask("keep", Term(update, dims), scale, fill, inverted=True, array=written)
    if node.arguments[0] == ADDED[node.op] and program.known.is_known(update) and not program.known.is_given(update):
        added = program.known.array(update)
        written = None if added is None else _replayed(value, arrays, mx.array(added))
        return None if written is None else Mask("add", Term(update, dims), scale, array=written)
    return None


def _replayed(value: Value, indices: list[Any], update: mx.array) -> Any:
    """What the assignment makes of zeros."""
    if value.type.size > LARGEST:
        return None
    node = value.node
    arrays = [mx.zeros(value.shape, update.dtype), *map(mx.array, indices), update]
    return np.array(rebuild(node.op, node.arguments, arrays, node.outputs)[0])


def assigned_piece(program: Program, value: Value, dims: Dims, keys: Dim) -> tuple[Dims, int, Dim] | None:
    """Of an assignment to a piece of the keys: what the dimensions of the piece mean, where it begins, and its axes."""
    if value.node.op != "SliceUpdate":
        return None
    dims, (source, update), (_, start, _, by) = resolve(dims), program.operands(value), value.node.arguments
    places = [i for i, (n, m) in enumerate(zip(source.shape, update.shape, strict=True)) if n != m]
    if len(places) != 1 or dims[places[0]] != axes_of([keys]) or set(by) != {1}:
        return None
    (place,) = places
    column = fresh(update.shape[place], "keys")
    return (*dims[:place], column, *dims[place + 1 :]), start[place], column
