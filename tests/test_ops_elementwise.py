"""Elementwise primitives, casts, reductions, scans, sorts and changes of shape, replayed bit for bit."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from tests.test_ops_replay import FLOATS, INTEGERS, Case, check, numbers

COMPLEX = (mx.complex64,)
BOOL = (mx.bool_,)
SIGNED = INTEGERS[:4]

UNARY: dict[str, tuple[Any, tuple[mx.Dtype, ...]]] = {
    "Abs": (mx.abs, FLOATS + INTEGERS + COMPLEX),
    "ArcCos": (mx.arccos, FLOATS + COMPLEX),
    "ArcCosh": (mx.arccosh, FLOATS + COMPLEX),
    "ArcSin": (mx.arcsin, FLOATS + COMPLEX),
    "ArcSinh": (mx.arcsinh, FLOATS + COMPLEX),
    "ArcTan": (mx.arctan, FLOATS + COMPLEX),
    "ArcTanh": (mx.arctanh, FLOATS + COMPLEX),
    "Ceil": (mx.ceil, FLOATS),
    "Conjugate": (mx.conjugate, COMPLEX),
    "Cos": (mx.cos, FLOATS + COMPLEX),
    "Cosh": (mx.cosh, FLOATS + COMPLEX),
    "Erf": (mx.erf, FLOATS),
    "ErfInv": (mx.erfinv, FLOATS),
    "Exp": (mx.exp, (*FLOATS, mx.int32, *COMPLEX)),
    "Expm1": (mx.expm1, FLOATS),
    "Floor": (mx.floor, FLOATS),
    "Imag": (mx.imag, COMPLEX),
    "Log1p": (mx.log1p, FLOATS),
    "LogicalNot": (mx.logical_not, (*FLOATS, mx.int32, *BOOL)),
    "Negative": (mx.negative, FLOATS + INTEGERS + COMPLEX),
    "Real": (mx.real, COMPLEX),
    "Round": (mx.round, FLOATS + COMPLEX),
    "Sigmoid": (mx.sigmoid, FLOATS),
    "Sign": (mx.sign, FLOATS + INTEGERS + COMPLEX),
    "Sin": (mx.sin, FLOATS + COMPLEX),
    "Sinh": (mx.sinh, FLOATS + COMPLEX),
    "Sqrt": (mx.sqrt, FLOATS + COMPLEX),
    "Square": (mx.square, FLOATS + INTEGERS + COMPLEX),
    "Tan": (mx.tan, FLOATS + COMPLEX),
    "Tanh": (mx.tanh, FLOATS + COMPLEX),
}
BINARY: dict[str, tuple[Any, tuple[mx.Dtype, ...]]] = {
    "Add": (mx.add, FLOATS + INTEGERS + BOOL + COMPLEX),
    "ArcTan2": (mx.arctan2, FLOATS),
    "Divide": (mx.divide, (*FLOATS, mx.int32, *COMPLEX)),
    "DivMod": (mx.divmod, FLOATS),
    "Equal": (mx.equal, FLOATS + INTEGERS + BOOL + COMPLEX),
    "FloorDivide": (mx.floor_divide, FLOATS),
    "Greater": (mx.greater, FLOATS + INTEGERS + BOOL),
    "GreaterEqual": (mx.greater_equal, FLOATS + INTEGERS + BOOL),
    "Less": (mx.less, FLOATS + INTEGERS + BOOL),
    "LessEqual": (mx.less_equal, FLOATS + INTEGERS + BOOL),
    "LogAddExp": (mx.logaddexp, FLOATS),
    "LogicalAnd": (mx.logical_and, (mx.float32, mx.int32, *BOOL)),
    "LogicalOr": (mx.logical_or, (mx.float32, mx.int32, *BOOL)),
    "Maximum": (mx.maximum, FLOATS + INTEGERS + BOOL + COMPLEX),
    "Minimum": (mx.minimum, FLOATS + INTEGERS + BOOL + COMPLEX),
    "Multiply": (mx.multiply, FLOATS + INTEGERS + BOOL + COMPLEX),
    "NotEqual": (mx.not_equal, FLOATS + INTEGERS + BOOL + COMPLEX),
    "Power": (mx.power, FLOATS + COMPLEX),
    "Remainder": (mx.remainder, FLOATS),
    "Subtract": (mx.subtract, FLOATS + INTEGERS + COMPLEX),
}


def wide(dtype: mx.Dtype, seed: int = 0) -> mx.array:
    return numbers(3, 17, dtype=dtype, seed=seed, special=True)


def elementwise() -> list[Case]:
    cases = [Case(op, f, (wide(dtype),)) for op, (f, dtypes) in UNARY.items() for dtype in dtypes]
    cases += [Case(op, f, (wide(dtype), wide(dtype, seed=1))) for op, (f, dtypes) in BINARY.items() for dtype in dtypes]
    for dtype in INTEGERS:
        divisor = mx.maximum(wide(dtype, seed=1), mx.array(3, dtype))
        for op, f in [("DivMod", mx.divmod), ("FloorDivide", mx.floor_divide), ("Remainder", mx.remainder)]:
            cases.append(Case(op, f, (wide(dtype), divisor)))
        cases.append(Case("Power", mx.power, (wide(dtype), divisor % mx.array(4, dtype))))
        for f in (mx.bitwise_and, mx.bitwise_or, mx.bitwise_xor, mx.left_shift, mx.right_shift):
            cases.append(Case("BitwiseBinary", f, (wide(dtype), divisor % mx.array(7, dtype))))
    for dtype in FLOATS:
        cases += [Case("Log", f, (wide(dtype),)) for f in (mx.log, mx.log2, mx.log10)]
        cases.append(Case("Sqrt", mx.rsqrt, (wide(dtype),)))
    for f in (mx.bitwise_and, mx.bitwise_or, mx.bitwise_xor):
        cases.append(Case("BitwiseBinary", f, (wide(mx.bool_), wide(mx.bool_, seed=1))))
    for dtype in (*FLOATS, mx.int32, mx.bool_, mx.complex64):
        pair = (wide(dtype), wide(dtype, seed=1))
        cases.append(Case("Select", mx.where, (wide(mx.bool_, seed=2), *pair)))
        cases.append(Case("Equal", lambda a: mx.array_equal(a, a, equal_nan=True), pair[:1]))
        cases.append(Case("Equal", lambda a, b: mx.array_equal(a, b, equal_nan=True), pair))
    # A scalar beside an array: the trace broadcasts it, and its type is weak.
    cases.append(Case("Multiply", lambda a: a * 0.1, (wide(mx.float16),)))
    cases.append(Case("Add", lambda a, b: a + b, (wide(mx.bfloat16), mx.array(2.5))))
    return cases


def casts() -> list[Case]:
    every = (*FLOATS, *INTEGERS, mx.bool_)
    cases = [
        Case("AsType", lambda a, to=to: a.astype(to), (numbers(3, 5, dtype=source),))
        for source in (*every, mx.complex64)
        for to in (mx.float32, mx.bfloat16, mx.int32, mx.uint8, mx.bool_, mx.complex64)
        if source != to
    ]
    cases += [
        Case("View", lambda a, to=to: a.view(to), (numbers(3, 8, dtype=source),))
        for source in (mx.float32, mx.float16, mx.int8, mx.bool_, mx.uint64)
        for to in (mx.uint8, mx.int16, mx.uint32)
    ]
    return [case for case in cases if case.arguments[0].dtype != mx.uint8]


def reductions() -> list[Case]:
    cases = []
    some = [(mx.float32, 3), (mx.bfloat16, 3), (mx.int8, 3), (mx.uint64, 3), (mx.bool_, 3), (mx.complex64, 3)]
    for dtype, n in some:
        x = numbers(n, 5, 33, dtype=dtype)
        for f in (mx.sum, mx.prod, mx.all, mx.any, mx.max, mx.min):
            if dtype == mx.complex64 and f in (mx.all, mx.any):
                continue
            cases.append(Case("Reduce", f, (x,)))
            cases.append(Case("Reduce", lambda a, f=f: f(a, axis=(0, -1)), (x,)))
            cases.append(Case("Reduce", lambda a, f=f: f(a, axis=1, keepdims=True), (x,)))
    for dtype in (*FLOATS, mx.int32, mx.uint8):
        x = numbers(4, 7, dtype=dtype, special=True)
        for scan in (mx.cumsum, mx.cumprod, mx.cummax, mx.cummin):
            for reverse in (False, True):
                for inclusive in (False, True):
                    options = {"axis": -1, "reverse": reverse, "inclusive": inclusive}
                    cases.append(Case("Scan", lambda a, f=scan, o=options: f(a, **o), (x,)))
        cases.append(Case("Scan", lambda a: mx.cumsum(a, axis=0), (x,)))
        for axis in (0, 1):
            cases.append(Case("ArgReduce", lambda a, axis=axis: mx.argmax(a, axis=axis), (x,)))
            cases.append(Case("ArgReduce", lambda a, axis=axis: mx.argmin(a, axis=axis, keepdims=True), (x,)))
            cases.append(Case("Sort", lambda a, axis=axis: mx.sort(a, axis=axis), (x,)))
            cases.append(Case("ArgSort", lambda a, axis=axis: mx.argsort(a, axis=axis), (x,)))
            cases.append(Case("Partition", lambda a, axis=axis: mx.partition(a, 2, axis=axis), (x,)))
            cases.append(Case("ArgPartition", lambda a, axis=axis: mx.argpartition(a, -3, axis=axis), (x,)))
        for side in ("left", "right"):
            find = lambda s, v, side=side: mx.searchsorted(s, v, side=side)  # noqa: E731
            cases.append(Case("SearchSorted", find, (mx.sort(numbers(9, dtype=dtype)), x)))
    for dtype in FLOATS:
        x = numbers(2, 5, 33, dtype=dtype)
        for precise in (False, True):
            cases.append(Case("Softmax", lambda a, p=precise: mx.softmax(a, axis=-1, precise=p), (x,)))
        cases.append(Case("LogSumExp", lambda a: mx.logsumexp(a, axis=-1), (x,)))
    # Over other axes there is no primitive, but the tower must replay all the same.
    cases.append(Case("Exp", lambda a: mx.softmax(a, axis=(0, 1)), (numbers(2, 5, 3),)))
    cases.append(Case("Select", lambda a: mx.logsumexp(a, axis=0), (numbers(2, 5, special=True),)))
    return cases


def shapes() -> list[Case]:
    x = numbers(2, 3, 4)
    none = mx.zeros((0, 3, 4))
    return [
        Case("Transpose", lambda a: mx.transpose(a, (2, 0, 1)), (x,)),
        Case("Transpose", lambda a: mx.swapaxes(a, -1, -2) + 1, (numbers(2, 3, 4, dtype=mx.bfloat16),)),
        Case("Squeeze", lambda a: mx.squeeze(a[:, :1, :1]), (x,)),
        Case("ExpandDims", lambda a: mx.expand_dims(a, (0, -1)), (x,)),
        Case("Flatten", lambda a: mx.flatten(a, 1), (x,)),
        Case("Flatten", mx.flatten, (none,)),
        Case("Unflatten", lambda a: mx.unflatten(a, -1, (2, 2)), (x,)),
        Case("Unflatten", lambda a: mx.unflatten(a, 0, (-1, 1)), (x,)),
        Case("Reshape", lambda a: mx.reshape(a, (4, 6)), (x,)),
        Case("Reshape", lambda a: mx.reshape(mx.transpose(a), (-1, 3)), (x,)),
        Case("Reshape", lambda a: mx.reshape(a, ()), (numbers(1, 1),)),
        Case("Reshape", lambda a: mx.reshape(a, (3, 0)), (none,)),
        Case("Broadcast", lambda a: mx.broadcast_to(a, (5, 2, 3, 4)), (x,)),
        Case("Broadcast", lambda a: a + a[:1], (x,), shapeless=True),
        Case("Broadcast", lambda a: mx.broadcast_to(a, (0, 2)), (mx.array(1.0),)),
        Case("Concatenate", lambda a: mx.concatenate([a, a, a[:, :, :1]], axis=2), (x,)),
        Case("Concatenate", lambda a, b: mx.concatenate([a, b]), (x, none)),
        Case("Split", lambda a: mx.split(a, 3, axis=1), (x,)),
        Case("Split", lambda a: mx.split(a, [1, 1, 3], axis=-1), (x,)),
        Case("Split", lambda a: mx.split(a, [2], axis=0)[0], (numbers(4, 2, dtype=mx.bool_),)),
        Case("Pad", lambda a: mx.pad(a, [(1, 2), (0, 0), (3, 0)], constant_values=2), (x,)),
        Case("Pad", lambda a: mx.pad(a, 1), (numbers(2, 3, dtype=mx.int8),)),
        Case("Pad", lambda a, v: mx.pad(a, [(0, 0), (0, 1), (1, 0)], constant_values=v), (x, mx.array(-mx.inf))),
        Case("AsStrided", lambda a: mx.as_strided(a, (3, 2), (1, 5), 2), (x,)),
        Case("AsStrided", lambda a: mx.as_strided(mx.transpose(a), (2, 2), (-1, 0), 3), (x,)),
        Case("Depends", lambda a: mx.depends(a, a + 1), (x,)),
        Case("Depends", lambda a: mx.depends([a * 2, a[0]], [a + 1, a - 1]), (x,)),
        Case("Full", lambda a: mx.full((2, 3), a[0, 0, 0]), (x,)),
        Case("Full", lambda a: mx.zeros_like(a) + mx.ones(a.shape, mx.float16), (x,)),
        Case("Full", lambda a: mx.full((2, 4), a[0, 0], dtype=mx.bfloat16), (x,)),
        Case("NumberOfElements", lambda a: mx.mean(a, axis=(0, 2)), (x,), shapeless=True),
        Case("NumberOfElements", mx.var, (numbers(2, 3, dtype=mx.float16),), shapeless=True),
        Case("BroadcastAxes", lambda a, b: a @ b, (x, numbers(1, 4, 5)), shapeless=True),
        *(
            Case("Arange", lambda a, f=f: a[0, 0, 0] + f(), (x,))
            for f in (
                lambda: mx.arange(7),
                lambda: mx.arange(2, 9, 3),
                lambda: mx.arange(0.0, 1.0, 0.1),
                lambda: mx.arange(5, 0, -2),
                lambda: mx.arange(0, 3, 0.7, dtype=mx.float16),
                lambda: mx.arange(1, 4, dtype=mx.uint8),
                lambda: mx.linspace(0, 1, 7),
                lambda: mx.arange(3, 3),
                lambda: mx.arange(2**40, 2**40 + 3, dtype=mx.int64),
            )
        ),
    ]


CASES = [*elementwise(), *casts(), *reductions(), *shapes()]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_elementwise(case: Case):
    check(case)
