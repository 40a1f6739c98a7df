"""Masks recognised by value, constant or computed from shapes: "causal", nothing at all, or booleans."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from tests.spellings_base import (
    FLOOR,
    INF,
    LOWEST,
    SELF,
    S,
    T,
    X,
    args,
    bias,
    causal,
    fill,
    keep,
    sm,
)

ROOT = 8**-0.5
CHUNK = args((2, 4, 3, 8), (2, 4, 7, 8), (2, 4, 7, 8))
WIDE = args((2, 4, 7, 8), (2, 4, 5, 8), (2, 4, 5, 8))
STEP = args((2, 4, 1, 8), (2, 4, 7, 8), (2, 4, 7, 8))
BUFFER = mx.tril(mx.ones((16, 16))).reshape(1, 1, 16, 16)
BYTES = mx.array(np.tril(np.ones((16, 16), dtype=np.uint8)))
NUMPY = np.triu(np.full((6, 6), -np.inf, dtype=np.float32), 1)
TRI, UPPER = causal(6, 6), mx.logical_not(causal(6, 6))


def C(name, fn, make=SELF, level=1):
    """A causal mask."""
    return S(name, fn, make, scale=ROOT, mask="causal", level=level)


def V(name, fn, mask, m, make=SELF, level=1):
    """A mask of another known value."""
    return S(name, fn, make, scale=ROOT, mask=mask, m=m, level=level)


def scores(q, k):
    return q @ T(k) * ROOT


def plus(m, make=SELF):
    """A program that adds what `m(rows, columns)` gives."""
    return lambda q, k, v: sm(scores(q, k) + m(q.shape[2], k.shape[2])) @ v


def only(m, value=-INF):
    """A program that selects by what `m(rows, columns)` gives."""
    return lambda q, k, v: sm(mx.where(m(q.shape[2], k.shape[2]), scores(q, k), value)) @ v


def steps(t):
    return mx.arange(t)


def window(rows, columns, size=3):
    i, j = mx.arange(rows)[:, None] + columns - rows, mx.arange(columns)
    return mx.logical_and(i >= j, i - j < size)


def sliced_chain(rows, columns):
    return BUFFER[:, :, :12, :12][:, :, 2 : 2 + rows, 2 : 2 + columns]


def running(rows, columns):
    ones = mx.cumsum(mx.ones((rows, columns)), axis=-1)
    return ones <= mx.cumsum(mx.ones((rows, 1)), axis=0)


CAUSAL = [
    C("triu of -inf added", plus(lambda t, _: mx.triu(mx.full((t, t), -INF), k=1))),
    C("triu of -1e9 added", plus(lambda t, _: mx.triu(mx.full((t, t), LOWEST), k=1))),
    C("triu of the lowest number added", plus(lambda t, _: mx.triu(mx.full((t, t), FLOOR), k=1))),
    C("MLX's own additive mask", plus(lambda t, _: nn.MultiHeadAttention.create_additive_causal_mask(t))),
    C("numpy's triu captured", plus(lambda t, _: mx.array(NUMPY))),
    C("indices compared, times a number", plus(lambda t, _: (steps(t)[:, None] < steps(t)[None]) * LOWEST)),
    C("chosen 0 or -inf, added", plus(lambda t, _: mx.where(steps(t)[:, None] >= steps(t), 0.0, -INF))),
    C("ones less a triangle, times a number", plus(lambda t, _: (1.0 - mx.tril(mx.ones((t, t)))) * LOWEST)),
    C("logarithm of a triangle", plus(lambda t, _: mx.log(mx.tri(t, t)))),
    C("rank four, added", plus(lambda t, _: mx.triu(mx.full((1, 1, t, t), -INF), k=1))),
    C(
        "repeated for every head, added",
        plus(lambda t, _: mx.repeat(mx.triu(mx.full((1, t, t), -INF), 1), 4, 0)),
    ),
    C("where tril", only(lambda t, _: mx.tril(mx.ones((t, t), dtype=mx.bool_)))),
    C("where tri", only(lambda t, _: mx.tri(t, t, dtype=mx.bool_))),
    C("where indices", only(lambda t, _: steps(t)[:, None] >= steps(t)[None, :])),
    C("where indices, turned round", only(lambda t, _: steps(t)[None, :] <= steps(t)[:, None], LOWEST)),
    C("where indices, strictly", only(lambda t, _: steps(t)[None, :] < steps(t)[:, None] + 1)),
    C("where indices, the lowest number", only(lambda t, _: steps(t)[:, None] >= steps(t), FLOOR)),
    C("where not triu", only(lambda t, _: mx.logical_not(mx.triu(mx.ones((t, t)), k=1).astype(mx.bool_)))),
    C("where captured", only(lambda t, _: TRI)),
    C("where captured drop", lambda q, k, v: sm(mx.where(UPPER, -INF, scores(q, k))) @ v),
    C(
        "buffer equal to zero (nanoGPT)",
        lambda q, k, v: sm(mx.where(BUFFER[:, :, :6, :6] == 0, -INF, scores(q, k))) @ v,
    ),
    C("buffer of bytes cast (GPT-2)", only(lambda t, _: BYTES[:t, :t].astype(mx.bool_), FLOOR)),
    C("buffer sliced twice", only(lambda t, _: sliced_chain(t, t) > 0)),
    C("running sums", only(running), level=2),
    C("window wider than the text", only(lambda t, n: window(t, n, 100)), level=2),
    C("both triangles and everything", only(lambda t, _: TRI & mx.ones((t, t), dtype=mx.bool_)), level=2),
    C("added twice", plus(lambda t, _: mx.triu(mx.full((t, t), -INF), 1) + mx.zeros((t, t))), level=2),
    C(
        "causal, then zeros",
        lambda q, k, v: sm(mx.where(TRI, scores(q, k), -INF) + mx.zeros((6, 6))) @ v,
        level=2,
    ),
    C(
        "multiplied and filled (GPT)",
        lambda q, k, v: sm(scores(q, k) * BUFFER[:, :, :6, :6] - 1e9 * (1 - BUFFER[:, :, :6, :6])) @ v,
        level=2,
    ),
    C("a chunk after a cache", only(lambda t, n: mx.arange(n - t, n)[:, None] >= mx.arange(n)), CHUNK),
    C("a chunk, tri with an offset", only(lambda t, n: mx.tri(t, n, n - t, dtype=mx.bool_)), CHUNK),
    C("a chunk, triu added", plus(lambda t, n: mx.triu(mx.full((t, n), -INF), k=n - t + 1)), CHUNK),
    C("a chunk, rows of a buffer", only(lambda t, n: BUFFER[:, :, n - t : n, :n] != 0), CHUNK),
]

NOTHING = [
    V("zeros added", plus(lambda t, n: mx.zeros((t, n))), "none", None),
    V("a zero added", lambda q, k, v: sm(scores(q, k) + 0.0) @ v, "none", None),
    V("where everything", only(lambda t, n: mx.ones((t, n), dtype=mx.bool_)), "none", None),
    V("where arange is not negative", only(lambda t, n: mx.arange(n) >= 0), "none", None),
    V(
        "ones less ones, times a number",
        plus(lambda t, n: (1.0 - mx.ones((1, 1, 1, n))) * LOWEST),
        "none",
        None,
    ),
    V("multiplied by ones", lambda q, k, v: sm(scores(q, k) * mx.ones((6, 6))) @ v, "none", None),
    V("the last row of causal", only(lambda t, n: BUFFER[:, :, n - t : n, :n] == 1), "none", None, STEP),
    V(
        "one query, indices compared",
        only(lambda t, n: mx.arange(n - t, n)[:, None] >= mx.arange(n)),
        "none",
        None,
        STEP,
    ),
    V("triu of one row", plus(lambda t, n: mx.triu(mx.full((t, t), -INF), k=1)), "none", None, STEP),
    V("a number added everywhere", lambda q, k, v: sm(scores(q, k) + 3.0) @ v, "none", None, level=2),
]

BOOLEAN = [
    V("sliding window", only(window), "boolean", lambda: window(6, 6)),
    V("sliding window, chunk", only(window), "boolean", lambda: window(3, 7), CHUNK),
    V(
        "sliding window added",
        plus(lambda t, n: mx.where(window(t, n), 0.0, -INF)),
        "boolean",
        lambda: window(6, 6),
    ),
    V(
        "sliding window added, finite",
        plus(lambda t, n: mx.where(window(t, n), 0.0, LOWEST)),
        "boolean",
        lambda: window(6, 6),
    ),
    V(
        "triu and tril",
        only(lambda t, n: mx.triu(mx.tril(mx.ones((t, t)), 1), -1) > 0),
        "boolean",
        lambda: mx.abs(mx.arange(6)[:, None] - mx.arange(6)) <= 1,
    ),
    V(
        "prefix, then causal",
        only(lambda t, n: mx.logical_or(steps(t)[:, None] >= steps(t), steps(t) < 3)),
        "boolean",
        lambda: mx.logical_or(TRI, mx.arange(6) < 3),
    ),
    V("anti-causal", only(lambda t, n: steps(t)[:, None] <= steps(t)), "boolean", lambda: T(TRI)),
    V(
        "causal, not strictly the kernel's: upper left",
        only(lambda t, n: mx.tri(t, n, dtype=mx.bool_)),
        "boolean",
        lambda: mx.tri(3, 7, dtype=mx.bool_),
        CHUNK,
    ),
    V(
        "causal, more queries than keys, upper left",
        only(lambda t, n: mx.tri(t, n, dtype=mx.bool_)),
        "boolean",
        lambda: mx.tri(7, 5, dtype=mx.bool_),
        WIDE,
    ),
    V(
        "shifted by one",
        only(lambda t, n: steps(t)[:, None] + 1 >= steps(t)),
        "boolean",
        lambda: mx.arange(6)[:, None] + 1 >= mx.arange(6),
    ),
    V(
        "blocks on the diagonal",
        only(lambda t, n: steps(t)[:, None] // 2 == steps(t) // 2),
        "boolean",
        lambda: mx.arange(6)[:, None] // 2 == mx.arange(6) // 2,
    ),
    V(
        "constant padding",
        only(lambda t, n: mx.array([1, 1, 1, 1, 0, 0]) > 0),
        "boolean",
        lambda: mx.arange(6) < 4,
    ),
    V(
        "constant padding added",
        plus(lambda t, n: mx.array([0.0, 0.0, 0.0, 0.0, -INF, -INF])[None, None, None]),
        "boolean",
        lambda: mx.arange(6) < 4,
    ),
    V(
        "every second key",
        only(lambda t, n: mx.arange(n) % 2 == 0),
        "boolean",
        lambda: mx.arange(6) % 2 == 0,
    ),
    V(
        "triangle of -1e4, as good as causal or not",
        plus(lambda t, _: mx.triu(mx.full((t, t), -1e4), k=1)),
        "additive|boolean|causal",
        lambda: TRI,
    ),
    V(
        "where tril, -1e4 (GPT-2)",
        only(lambda t, _: mx.tril(mx.ones((t, t), dtype=mx.bool_)), -1e4),
        "additive|boolean|causal",
        lambda: TRI,
    ),
]

MIXED = [
    V(
        "causal and ALiBi",
        plus(lambda t, n: mx.triu(mx.full((t, t), -INF), 1) - 0.5 * mx.abs(steps(t)[:, None] - steps(t))),
        "additive",
        lambda: mx.where(TRI, -0.5 * mx.abs(mx.arange(6)[:, None] - mx.arange(6)), -INF),
    ),
    V(
        "causal, then padding at run time",
        lambda q, k, v, m: sm(mx.where(m, mx.where(TRI, scores(q, k), -INF), LOWEST)) @ v,
        "boolean|additive",
        lambda m: TRI & m,
        args(X, X, X, keep(2, 1, 1, 6)),
        level=2,
    ),
    V(
        "causal added, bias at run time",
        lambda q, k, v, m: sm(scores(q, k) + mx.triu(mx.full((6, 6), -INF), 1) + m) @ v,
        "additive",
        lambda m: mx.where(TRI, m, -INF),
        args(X, X, X, bias(4, 6, 6)),
    ),
    V(
        "zeros and padding at run time",
        lambda q, k, v, m: sm(scores(q, k) + mx.zeros((6, 6)) + m) @ v,
        "additive",
        lambda m: m,
        args(X, X, X, fill(2, 1, 1, 6)),
    ),
    V(
        "all True and padding at run time",
        lambda q, k, v, m: sm(mx.where(m & mx.ones((6, 6), dtype=mx.bool_), scores(q, k), -INF)) @ v,
        "boolean|additive",
        lambda m: m,
        args(X, X, X, keep(2, 1, 1, 6)),
    ),
]

SPELLINGS = [*CAUSAL, *NOTHING, *BOOLEAN, *MIXED]
