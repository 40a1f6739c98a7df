"""Slices, gathers and scatters, replayed bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from tests.test_ops_replay import Case, check, grad, numbers, vmap

DTYPES = (mx.float32, mx.float16, mx.bfloat16, mx.int8, mx.int64, mx.uint32, mx.bool_, mx.complex64)
SLICES = [
    (slice(None), slice(1, 3)),
    (slice(None, None, -1),),
    (slice(None), slice(None, None, -1), slice(3, 0, -2)),
    (slice(None), slice(3, -4, -1), slice(-1, -6, -1)),
    (slice(None), slice(10, -10, -1), slice(None, 2, -1)),
    (slice(1, 5), slice(-2, None), slice(0, 0)),
    (..., slice(None, None, 2)),
    (0, slice(1, None), 2),
    (slice(1, 1), slice(2, 0)),
    (slice(None), slice(0, 1, -1)),
]


def assigned(*key: Any) -> Callable[..., mx.array]:
    """A program that puts its second argument there; arrays of the key are its further arguments."""

    def program(x: mx.array, update: mx.array, *indices: mx.array) -> mx.array:
        rest = iter(indices)
        y = x[...]
        full = tuple(next(rest) if part is mx.array else part for part in key)
        y[full if len(full) > 1 else full[0]] = update  # a mask must stand alone
        return y

    return program


def at(kind: str, *key: Any) -> Callable[..., mx.array]:
    """The same with one of `add`, `multiply`, `maximum` and `minimum`."""

    def program(x: mx.array, update: mx.array, *indices: mx.array) -> mx.array:
        rest = iter(indices)
        place = x.at[tuple(next(rest) if part is mx.array else part for part in key)]
        result: mx.array = getattr(place, kind)(update)
        return result

    return program


def slices() -> list[Case]:
    cases = [
        Case("Slice", lambda a, key=key: a[key], (numbers(2, 3, 5, dtype=dtype),))
        for key in SLICES
        for dtype in DTYPES[:3]
    ]
    for key in [*SLICES[:7], (slice(0, 2, -1), slice(1, 3))]:
        for dtype in DTYPES:
            x = numbers(2, 3, 5, dtype=dtype)
            update = numbers(*x[key].shape, dtype=dtype, seed=1)
            if update.size == 0:
                continue
            cases.append(Case("SliceUpdate", assigned(*key), (x, update)))
            kinds = ["add", "multiply", "maximum", "minimum"] if dtype not in (mx.bool_, mx.complex64) else []
            cases += [Case("SliceUpdate", at(kind, *key), (x, update)) for kind in kinds]
    x, two = numbers(2, 3, 5), mx.array([1, 2])
    cases += [
        Case("DynamicSlice", lambda a, i: mx.slice(a, i, (0, 2), (1, 3, 2)), (x, two)),
        Case("DynamicSlice", lambda a, i: mx.slice(a, i, (1,), (2, 1, 5)), (x, two[:1])),
        Case("DynamicSliceUpdate", lambda a, u, i: mx.slice_update(a, u, i, (0, 2)), (x, x[:1, :, :2], two)),
        # The program changes a handle more than once, and reads what it was before.
        Case("SliceUpdate", twice, (x, numbers(1, 3, 5, seed=1))),
    ]
    return cases


def twice(x: mx.array, update: mx.array) -> list[mx.array]:
    y = x[...]
    y[:1] = update
    z = y[...]
    z[1:, 1:2] += 1
    return [x + 0, y, z]


def gathers() -> list[Case]:
    cases = []
    i, j = mx.array([2, 0, -1, 2]), mx.array([[1], [0]])
    for dtype in DTYPES:
        x = numbers(3, 4, 5, dtype=dtype)
        for axis in range(3):
            cases.append(Case("Gather", lambda a, k, axis=axis: mx.take(a, k, axis=axis), (x, i)))
            pick = lambda a, k, axis=axis: mx.take_along_axis(a, k, axis=axis)  # noqa: E731
            cases.append(Case("GatherAxis", pick, (x, numbers(3, 4, 5, dtype=mx.uint8) % 3)))
    x = numbers(3, 4, 5)
    cases += [
        Case("Gather", lambda a, k: mx.take(a, k), (x, j)),
        Case("Gather", lambda a, k: a[k], (x, j)),
        Case("Gather", lambda a, k: a[k], (x, j.astype(mx.uint8))),
        Case("Gather", lambda a, k: a[k], (x, mx.array(1))),
        Case("Gather", lambda a, k: a[k], (x, mx.zeros((0,), mx.int32))),
        Case("Gather", lambda a, k, m: a[k, m], (x, i, j)),
        Case("Gather", lambda a, k, m: a[:, k, m], (x, i, j)),
        Case("Gather", lambda a, k, m: a[k, :, m], (x, i, j)),
        Case("Gather", lambda a, k: a[k, 1:3, ::2], (x, i)),
        Case("Gather", lambda a, k, m: a[k, m, k], (x, i, j)),
        Case("Gather", lambda a, k: a[None, k, ..., None], (x, i)),
        Case("Gather", lambda a, k: vmap(lambda b, n: b[n])(a, k), (x, mx.array([[0], [3], [-1]]))),
        Case("Gather", lambda a, k: vmap(lambda b: b[:, k], in_axes=1)(a), (x, i)),
        Case("Gather", lambda a, k: vmap(lambda b: b[k], in_axes=2, out_axes=1)(a), (x, i)),
        Case("GatherAxis", lambda a, k: mx.take_along_axis(a, k, axis=None), (x, i)),
        Case("GatherAxis", lambda a, k: mx.take_along_axis(a, k, axis=1), (x, mx.array([[[1]]]))),
    ]
    return cases


def scatters() -> list[Case]:
    cases = []
    i, j = mx.array([2, 0, 2, -1]), mx.array([[1], [0]])
    for dtype in DTYPES:
        x = numbers(3, 4, 5, dtype=dtype)
        kinds = ["add", "multiply", "maximum", "minimum"] if dtype not in (mx.bool_, mx.complex64) else ["add"]
        for key, indices in [
            ((mx.array,), (i,)),
            ((slice(None), mx.array), (i,)),
            ((mx.array, mx.array), (i, j)),
            ((slice(None), mx.array, mx.array), (i, j)),
            ((mx.array, slice(None), mx.array), (i, j)),
            ((mx.array, slice(1, 3)), (i,)),
            ((..., mx.array), (i,)),
        ]:
            rest = iter(indices)
            shape = x[tuple(next(rest) if part is mx.array else part for part in key)].shape
            update = numbers(*shape, dtype=dtype, seed=1)
            cases.append(Case("Scatter", assigned(*key), (x, update, *indices)))
            cases += [Case("Scatter", at(kind, *key), (x, update, *indices)) for kind in kinds]
        put = lambda a, k, v: mx.put_along_axis(a, k, v, axis=1)  # noqa: E731
        places = numbers(3, 2, 5, dtype=mx.uint32) % 4
        cases.append(Case("ScatterAxis", put, (x, places, numbers(3, 2, 5, dtype=dtype, seed=1))))
    x = numbers(3, 4, 5)
    places = numbers(3, 7, 5, dtype=mx.uint32) % 4
    cases += [
        Case("Scatter", assigned(mx.array), (x, mx.array(2.0), mx.array(1))),
        Case("Scatter", grad(lambda a, k: (mx.take(a, k, axis=2) ** 2).sum()), (x, i)),
        Case("Scatter", grad(lambda a, k: (mx.take(a, k, axis=1) ** 2).sum()), (x, j)),
        Case("Scatter", grad(lambda a, k, m: (a[:, k, m] ** 2).sum()), (x, i, j)),
        Case("Scatter", grad(lambda a, k, m: (a[m, :, k] ** 2).sum()), (x, i, j)),
        Case(
            "Scatter",
            lambda a, u, k: vmap(at("add", mx.array))(a, u, k),
            (x, x[:, :2], mx.array([[0, 3], [1, 1], [2, -1]])),
        ),
        Case("Scatter", lambda a, u, k: vmap(lambda b, v: b.at[k].add(v), in_axes=1)(a, u), (x, x, i[:3])),
        Case("Scatter", assigned(slice(0, 2), mx.array, slice(1, 4)), (x, numbers(2, 4, 3, seed=1), i)),
        Case("Scatter", at("add", mx.array, slice(1, 3), mx.array), (x, numbers(4, 2, seed=1), i, -i)),
        Case("ScatterAxis", grad(lambda a, k: (mx.take_along_axis(a, k, axis=1) ** 3).sum()), (x, places)),
        Case("ScatterAxis", lambda a, k: mx.put_along_axis(a, k, mx.array(1.0), axis=None), (x, i)),
        Case("ScatterAxis", gradients_into_one, (x, places)),
    ]
    for dtype in DTYPES[:5]:
        x = numbers(3, 4, 5, dtype=dtype)
        mask = numbers(3, 4, 5, dtype=mx.bool_)
        some = numbers(int(np.asarray(mask).sum()), dtype=dtype, seed=1)
        cases += [
            Case("MaskedScatter", assigned(mx.array), (x, some, mask)),
            Case("MaskedScatter", assigned(mx.array), (x, some[:1].reshape(()), mask)),
            Case("MaskedScatter", assigned(mx.array), (x, some[:5], mask[:, 0, 0])),
            Case(
                "MaskedScatter",
                vmap(assigned(mx.array), in_axes=(0, 0, None)),
                (x, x.reshape(3, 20), mask[0]),
            ),
            Case("MaskedScatter", vmap(assigned(mx.array)), (x, x[:, 0, 0], mask)),
        ]
    return cases


def gradients_into_one(x: mx.array, places: mx.array) -> mx.array:
    """Sums along an axis where every place is met more than once: the order of the additions shows."""
    zero = mx.zeros_like(x)
    cotangent = mx.take_along_axis(x, places, axis=1) * 1e3 + 1e-3
    return mx.vjp(lambda a: mx.take_along_axis(a, places, axis=1), [zero], [cotangent])[1][0]


CASES = [*slices(), *gathers(), *scatters()]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_indexing(case: Case):
    check(case)
