"""Arrays that are known before the program runs, as the formula that a person would write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from fuser.export.python_ir import Op, Shape, is_one
from fuser.export.python_rules import Rules

Array = NDArray[Any]
# a table that is no longer than this is stored, even where a formula gives it
SHORT = 4


def closed(rules: Rules, arrays: Sequence[Array], shape: Shape, dtype: mx.Dtype, *, weight: bool) -> Op | None:
    """One number, positions in steps, or a triangle, when the arrays of all traces are that; else None."""
    if any(array.size == 0 for array in arrays) or arrays[0].dtype.kind == "c":
        return None
    return (
        _number(rules, arrays, shape, dtype, weight)
        or _positions(rules, arrays, shape, dtype)
        or _vector(rules, arrays, shape, dtype)
        or _triangle(rules, arrays, shape, dtype)
    )


def _number(rules: Rules, arrays: Sequence[Array], shape: Shape, dtype: mx.Dtype, weight: bool) -> Op | None:
    firsts = [array.reshape(-1)[0] for array in arrays]
    if not all(
        ((array == first) | ((array != array) & (first != first))).all()
        for array, first in zip(arrays, firsts, strict=True)
    ):
        return None
    # weights that happen to be all ones are weights still
    if weight and arrays[0].size > 1 and arrays[0].dtype.kind == "f":
        return None
    if all(first == firsts[0] or (first != first and firsts[0] != firsts[0]) for first in firsts):
        return rules.full(rules.number(firsts[0].item(), dtype), shape)
    if all(first and abs(1 / first - round(1 / first)) < 1e-4 and abs(first) < 1 for first in firsts):
        # what a mean over an axis multiplies by
        counts = rules.size(tuple(round(1 / float(first)) for first in firsts), dtype)
        return rules.full(rules.op("divide", (rules.number(1.0, dtype), counts), (), (), dtype), shape)
    if all(float(first).is_integer() for first in firsts):
        return rules.full(rules.size(tuple(int(first) for first in firsts), dtype), shape)
    return None


def _positions(rules: Rules, arrays: Sequence[Array], shape: Shape, dtype: mx.Dtype) -> Op | None:
    """`base + i * a + j * b` in the indices."""
    if arrays[0].dtype.kind not in "iuf" or arrays[0].size <= SHORT:
        return None
    bases, rows = [], []
    for array in arrays:
        if array.dtype.kind == "f" and not all(float(x).is_integer() for x in array.reshape(-1)[:2]):
            return None
        base = array[(0,) * array.ndim]
        expected = np.full(array.shape, base, dtype=np.float64)
        steps = []
        for axis, size in enumerate(array.shape):
            step = 0.0
            if size > 1:
                unit = tuple(1 if each == axis else 0 for each in range(array.ndim))
                step = float(array[unit]) - float(base)
            steps.append(step)
            ramp = np.arange(size) * step
            expected = expected + ramp.reshape([-1 if each == axis else 1 for each in range(array.ndim)])
        if not (expected == array).all() or not all(step.is_integer() for step in steps):
            return None
        bases.append(int(base))
        rows.append([int(step) for step in steps])
    if all(step == 0 for step in rows[0]) or any(step < 0 for row in rows for step in row):
        return None
    steps_by_axis = tuple(zip(*rows, strict=True))
    # axes that it does not move along are left to broadcasting
    small = tuple(dim if any(step) else rules.dim(1) for dim, step in zip(shape, steps_by_axis, strict=True))
    return rules.expand(rules.op("affine", (), (tuple(bases), steps_by_axis), small, dtype), shape)


def _vector(rules: Rules, arrays: Sequence[Array], shape: Shape, dtype: mx.Dtype) -> Op | None:
    """A few sizes, as an output that tells a shape."""
    if len(shape) != 1 or arrays[0].dtype.kind not in "iu" or not all(0 < array.size <= 8 for array in arrays):
        return None
    if all(np.array_equal(array, arrays[0]) for array in arrays):
        return None
    dims = tuple(zip(*(map(int, array) for array in arrays), strict=True))
    return rules.op("vector", (), (dims,), shape, dtype)


def _triangle(rules: Rules, arrays: Sequence[Array], shape: Shape, dtype: mx.Dtype) -> Op | None:
    """What is on or below a diagonal of the last two axes."""
    if dtype != mx.bool_ or len(shape) < 2 or not all(map(is_one, shape[:-2])):
        return None
    offsets = []
    for array in arrays:
        rows, columns = int(array.shape[-2]), int(array.shape[-1])
        square = array.reshape(rows, columns)
        offset = int(square[0].sum()) - 1
        if not np.array_equal(square, np.tri(rows, columns, offset, dtype=np.bool_)):
            return None
        offsets.append(offset)
    triangle = rules.op("tri", (), (tuple(offsets),), shape[-2:], dtype)
    return rules.reshape(triangle, shape)
