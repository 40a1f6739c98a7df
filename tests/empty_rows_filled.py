"""Rows in which a triangle and padding leave no key, where the triangle fills with a number that is not so low."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from tests.empty_rows import KEPT, Case, less_logarithm, scores, where
from tests.spellings_base import FLOOR, INF, X, args, bias, sm

TRIANGLE = np.tril(np.ones((6, 6), np.float32))


def left(dtype: mx.Dtype):
    """Tokens padded on the left: the first rows see padding alone; the second batch entry is nothing else."""
    return lambda rng: mx.array([[1, 1, 1, 1, 0, 0], [0] * 6, [0, 0, 1, 0, 1, 1]]).astype(dtype)


X3 = (3, *X[1:])
TOKENS = args(X3, X3, X3, left(mx.int32))
FLOATS = args(X3, X3, X3, left(mx.float32))
SUNK = args(X3, X3, X3, left(mx.bool_), bias(3, 4, 6, 1))


def product(fill: float, low: float, folded: bool = False):
    """OpenAI's GPT: `w * b + fill * (1 - b)`, and padding added."""

    def fn(q, k, v, tokens):
        b = mx.array(TRIANGLE)
        shut = mx.array((1 - TRIANGLE) * fill) if folded else fill * (1 - b)
        return sm(scores(q, k) * b + shut + (1.0 - tokens.astype(mx.float32))[:, None, None] * low) @ v

    return fn


def selected(fill: float, low: float):
    def fn(q, k, v, tokens):
        w = mx.where(mx.array(TRIANGLE) > 0, scores(q, k), fill)
        return sm(w + mx.where(tokens[:, None, None] > 0, 0.0, low)) @ v

    return fn


def late(q, k, v, tokens, sink):
    x = mx.where(tokens[:, None, None], scores(q, k), -INF)
    most = mx.maximum(x.max(-1, keepdims=True), sink)
    e = mx.exp(x - most)
    return (e @ v) / (e.sum(-1, keepdims=True) + mx.exp(sink - most))


CASES = [
    *(
        Case(f"{fn.__name__} {fill:g} under {low:g}", fn(fill, low), TOKENS, "any", fuses=True)
        for fn in (product, selected)
        for fill, low in ((-1e4, FLOOR), (-2e4, -1e31))
    ),
    Case("product folded", product(-1e4, FLOOR, folded=True), TOKENS, "any", fuses=True),
    Case("product -1e4 under -1e4", product(-1e4, -1e4), TOKENS, "any"),
    Case("product -1e4 under any number", product(-1e4, FLOOR), FLOATS, "any"),
    Case("selected -1e4 under -1e5", selected(-1e4, -1e5), TOKENS, "any"),
    Case("less its LogSumExp, where -1e5", where(-1e5, less_logarithm), KEPT, "any"),
    Case("a sink for each query takes the row", late, SUNK, "zero", fuses=True),
]
