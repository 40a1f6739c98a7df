"""Slices, gathers and scatters."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import mlx.core as mx

from fuser.ir.ops_table import Rebuild, UnsupportedPrimitive

# MLX's enumeration of reductions for scatters and slice updates.
MAX, MIN, SUM, PROD, SET = range(5)


@lru_cache(maxsize=4096)
def _slices(start: Sequence[int], stop: Sequence[int], step: Sequence[int]) -> tuple[slice, ...]:
    # The stop of a negative step is traced as it was given (-size - 1: to the start): Python reads it alike.
    return tuple(map(slice, start, stop, step))


def _update(x: mx.array, key: Any, update: mx.array, kind: int) -> mx.array:
    if kind == SET:
        # Item assignment changes the handle that it is given. `x[...]` is another one over the same array;
        # `mx.array(x)` would be a copy.
        y = x[...]
        y[key] = update
        return y
    at = x.at[key]
    if kind == SUM:
        return at.add(update)
    if kind == PROD:
        return at.multiply(update)
    return at.maximum(update) if kind == MAX else at.minimum(update)


@lru_cache(maxsize=4096)
def _gather_plan(
    axes: Sequence[int], sizes: Sequence[int], shape: Sequence[int]
) -> tuple[list[int] | None, tuple[slice, ...] | None]:
    """The permutation of the source that brings `axes` first, and what to take of its other axes then."""
    if any(sizes[axis] != 1 for axis in axes):
        raise UnsupportedPrimitive("Gather", "it takes more than one element on an indexed axis")
    rest = [axis for axis in range(len(shape)) if axis not in axes]
    order = [*axes, *rest]
    whole = all(sizes[axis] == shape[axis] for axis in rest)
    key = (*[slice(None)] * len(axes), *(slice(0, sizes[axis]) for axis in rest))
    return None if order == sorted(order) else order, None if whole else key


def _gather(x: Sequence[mx.array], axes: Sequence[int], sizes: Sequence[int]) -> mx.array:
    source, indices = x[0], x[1:]
    order, key = _gather_plan(axes, sizes, source.shape)
    if order:
        source = mx.transpose(source, order)
    if key:
        source = source[key]
    out = mx.take(source, indices[0], axis=0) if len(indices) == 1 else source[tuple(indices)]
    return mx.reshape(out, (*indices[0].shape, *sizes))


def _indices(
    x: Sequence[mx.array], axes: Sequence[int], sizes: Sequence[int], shape: Sequence[int]
) -> tuple[list[mx.array], list[int]]:
    """The indices of `axes`, and those of these axes where an update is longer than one element.

    Such a window (a slice beside an index) has no public spelling with a start that is an array: it becomes
    a dimension of the indices, behind those they have.
    """
    windows = [axis for axis in axes if sizes[axis] != 1]
    if not windows:
        return list(x), windows
    indices = []
    for axis, index in zip(axes, x, strict=True):
        index = mx.reshape(index.astype(mx.int64), (*index.shape, *([1] * len(windows))))
        if axis in windows:
            place = [-1 if axis == window else 1 for window in windows]
            start = mx.where(index < 0, index + shape[axis], index)
            index = start + mx.reshape(mx.arange(sizes[axis], dtype=mx.int64), place)
        indices.append(index)
    return indices, windows


def _scatter(x: Sequence[mx.array], kind: int, axes: Sequence[int]) -> mx.array:
    source, updates = x[0], x[-1]
    lead = updates.ndim - source.ndim
    sizes = updates.shape[lead:]
    indices, windows = _indices(x[1:-1], axes, sizes, source.shape)
    key: list[Any] = [slice(None) if n == m else slice(0, n) for n, m in zip(sizes, source.shape, strict=True)]
    for axis, index in zip(axes, indices, strict=True):
        key[axis] = index
    kept = [axis for axis in range(source.ndim) if axis not in axes or axis in windows]
    update = mx.reshape(updates, (*updates.shape[:lead], *(sizes[axis] for axis in kept)))
    # Indices of neighbouring axes put their dimensions where they stand; otherwise these come first.
    first, last = min(axes), max(axes)
    stand = first if last - first + 1 == len(axes) else 0
    order = [
        *(lead + place for place, axis in enumerate(kept) if axis < stand),
        *range(lead),
        *(lead + kept.index(axis) for axis in windows),
        *(lead + place for place, axis in enumerate(kept) if axis >= stand and axis not in windows),
    ]
    if order != sorted(order):
        update = mx.transpose(update, order)
    return _update(source, tuple(key[: last + 1]) if last + 1 == len(axes) else tuple(key), update, kind)


def _scatter_axis(x: Sequence[mx.array], kind: int, axis: int) -> mx.array:
    source, index, updates = x
    if kind == 1:
        return mx.put_along_axis(source, index, updates, axis=axis)
    key: list[Any] = [
        index if i == axis else mx.reshape(mx.arange(n), [n if j == i else 1 for j in range(index.ndim)])
        for i, n in enumerate(index.shape)
    ]
    return source.at[tuple(key)].add(updates)


def _masked_scatter(source: mx.array, mask: mx.array, values: mx.array) -> mx.array:
    """The first axis is a batch; each row takes its own values in order."""

    def fill(row: mx.array, where: mx.array, what: mx.array) -> mx.array:
        y = row[...]
        y[where] = mx.reshape(what, (-1,))
        return y

    if source.shape[0] == 1:
        one = fill(mx.squeeze(source, 0), mx.squeeze(mask, 0), mx.squeeze(values, 0))
        return mx.expand_dims(one, 0)
    return mx.vmap(fill)(source, mask, values)


INDEX: dict[str, Rebuild] = {
    "Slice": lambda a, x, _: (x[0][_slices(*a)],),
    "SliceUpdate": lambda a, x, _: (_update(x[0], _slices(a[1], a[2], a[3]), x[1], a[0]),),
    "DynamicSlice": lambda a, x, _: (mx.slice(x[0], x[1], a[0], a[1]),),
    "DynamicSliceUpdate": lambda a, x, _: (mx.slice_update(x[0], x[1], x[2], a[0]),),
    "Gather": lambda a, x, _: (_gather(x, a[0], a[1]),),
    "GatherAxis": lambda a, x, _: (mx.take_along_axis(x[0], x[1], axis=a[0]),),
    "Scatter": lambda a, x, _: (_scatter(x, a[0], a[1]),),
    "ScatterAxis": lambda a, x, _: (_scatter_axis(x, a[0], a[1]),),
    "MaskedScatter": lambda a, x, _: (_masked_scatter(x[0], x[1], x[2]),),
}
