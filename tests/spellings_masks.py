"""Additive masks: every type, rank and place, several of them, positions from tables, ALiBi."""

from __future__ import annotations

import mlx.core as mx

from tests.spellings_base import (
    FLOOR,
    K,
    Q,
    S,
    T,
    args,
    attend,
    bias,
    const,
    fill,
    ints,
    sm,
)

ROOT = 8**-0.5
ADD = args(Q, K, K, bias(2, 1, 5, 7))
HALF = mx.float16


def A(name, fn, make=ADD, m=lambda m: m, **more):
    """An additive mask."""
    return S(name, fn, make, scale=more.pop("scale", ROOT), mask="additive", m=m, **more)


def scores(q, k):
    return q @ T(k) * ROOT


TABLE = const(4, 5, 7)
BUCKETS = mx.array([[abs(i - j) % 5 for j in range(7)] for i in range(5)])
LEARNED = const(5, 4, seed=5)
SLOPES = mx.array([2.0**-i for i in range(1, 5)])[:, None, None]
DISTANCE = (mx.arange(7)[None, :] - mx.arange(2, 7)[:, None]).astype(mx.float32)


def relative():
    return LEARNED[BUCKETS].transpose(2, 0, 1)[None]


ADDITIVE = [
    A("added on the right", lambda q, k, v, m: sm(scores(q, k) + m) @ v),
    A("added on the left", lambda q, k, v, m: sm(m + scores(q, k)) @ v),
    A("subtracted", lambda q, k, v, m: sm(scores(q, k) - m) @ v, m=lambda m: -m),
    A("subtracted from", lambda q, k, v, m: sm(m - scores(q, k)) @ v, scale=-ROOT, level=2),
    A("added, full", lambda q, k, v, m: sm(scores(q, k) + m) @ v, args(Q, K, K, bias(*Q[:3], 7))),
    A("added, keys only", lambda q, k, v, m: sm(scores(q, k) + m) @ v, args(Q, K, K, fill(2, 1, 1, 7))),
    A("added, heads only", lambda q, k, v, m: sm(scores(q, k) + m) @ v, args(Q, K, K, bias(1, 4, 5, 7))),
    A("added, rank one", lambda q, k, v, m: sm(scores(q, k) + m) @ v, args(Q, K, K, bias(7))),
    A("added, rank two", lambda q, k, v, m: sm(scores(q, k) + m) @ v, args(Q, K, K, bias(5, 7))),
    A("added, rank three", lambda q, k, v, m: sm(scores(q, k) + m) @ v, args(Q, K, K, bias(4, 5, 7))),
    A(
        "added, with axes",
        lambda q, k, v, m: sm(scores(q, k) + m[:, None, None, :]) @ v,
        args(Q, K, K, fill(2, 7)),
        m=lambda m: m[:, None, None, :],
    ),
    A(
        "added, expanded",
        lambda q, k, v, m: sm(scores(q, k) + mx.broadcast_to(m, (2, 4, 5, 7))) @ v,
        args(Q, K, K, fill(2, 1, 1, 7)),
    ),
    A(
        "added, sliced",
        lambda q, k, v, m: sm(scores(q, k) + m[:, :, :5, :7]) @ v,
        args(Q, K, K, bias(2, 1, 9, 9)),
        m=lambda m: m[:, :, :5, :7],
    ),
    A(
        "added, scaled itself",
        lambda q, k, v, m: sm(scores(q, k) + 0.5 * m) @ v,
        m=lambda m: m * 0.5,
    ),
    A(
        "two added",
        lambda q, k, v, a, b: sm(scores(q, k) + a + b) @ v,
        args(Q, K, K, bias(1, 4, 5, 7), fill(2, 1, 1, 7)),
        m=lambda a, b: a + b,
    ),
    A(
        "two added first",
        lambda q, k, v, a, b: sm(scores(q, k) + (a + b)) @ v,
        args(Q, K, K, bias(1, 4, 5, 7), fill(2, 1, 1, 7)),
        m=lambda a, b: a + b,
    ),
    A(
        "one on each side",
        lambda q, k, v, a, b: sm(b + (scores(q, k) + a)) @ v,
        args(Q, K, K, bias(1, 4, 5, 7), fill(2, 1, 1, 7)),
        m=lambda a, b: a + b,
    ),
    A(
        "three added",
        lambda q, k, v, a, b, c: sm(scores(q, k) + a + b + c) @ v,
        args(Q, K, K, bias(1, 4, 5, 7), fill(2, 1, 1, 7), bias(5, 7)),
        m=lambda a, b, c: a + b + c,
        level=2,
    ),
    A(
        "half mask on float scores",
        lambda q, k, v, m: sm(scores(q, k) + m) @ v,
        args(Q, K, K, fill(2, 1, 5, 7, dtype=HALF)),
        m=lambda m: m.astype(mx.float32),
    ),
    A(
        "half all through",
        lambda q, k, v, m: sm(scores(q, k) + m) @ v,
        args(Q, K, K, bias(2, 1, 5, 7, dtype=HALF), dtype=HALF),
    ),
    A(
        "float mask on half scores",
        lambda q, k, v, m: sm((scores(q, k) + m).astype(HALF)) @ v,
        args(Q, K, K, bias(2, 1, 5, 7), dtype=HALF),
    ),
    A(
        "bfloat16 all through",
        lambda q, k, v, m: sm(scores(q, k) + m) @ v,
        args(Q, K, K, bias(2, 1, 5, 7, dtype=mx.bfloat16), dtype=mx.bfloat16),
    ),
    A(
        "integers added",
        lambda q, k, v, m: sm(scores(q, k) + m) @ v,
        args(Q, K, K, ints(2, 1, 1, 7)),
        m=lambda m: m.astype(mx.float32),
        level=2,
    ),
    A(
        "logarithm of zeros and ones",
        lambda q, k, v, m: sm(scores(q, k) + mx.log(m)) @ v,
        args(Q, K, K, ints(2, 1, 1, 7, dtype=mx.float32)),
        m=mx.log,
    ),
    A(
        "shifted by a number",
        lambda q, k, v, m: sm(scores(q, k) + m + 3.0) @ v,
        m=lambda m: m + 3.0,
        level=2,
    ),
    A(
        "not below the lowest number (OPT)",
        lambda q, k, v, m: sm(mx.maximum(scores(q, k) + m, FLOOR)) @ v,
        args(Q, K, K, fill(2, 1, 5, 7, value=FLOOR)),
        level=2,
    ),
    A(
        "not below, number on the left",
        lambda q, k, v, m: sm(mx.maximum(mx.array(FLOOR), m + scores(q, k))) @ v,
        args(Q, K, K, fill(2, 1, 5, 7, value=FLOOR)),
        level=2,
    ),
    A(
        "in a view of rank five (Swin)",
        lambda q, k, v, m: sm((scores(q, k).reshape(1, 2, 4, 5, 7) + m[None, :, None]).reshape(2, 4, 5, 7)) @ v,
        args(Q, K, K, fill(2, 5, 7, value=-100.0)),
        m=lambda m: m[:, None],
        level=2,
    ),
    A(
        "static bias, then windows of rank five (Swin)",
        lambda q, k, v, m: (
            sm(((scores(q, k) + TABLE).reshape(1, 2, 4, 5, 7) + m.reshape(1, 2, 1, 5, 7)).reshape(2, 4, 5, 7)) @ v
        ),
        args(Q, K, K, fill(2, 5, 7, value=-100.0)),
        m=lambda m: TABLE + m[:, None],
        level=2,
    ),
    A(
        "rank five of ones",
        lambda q, k, v, m: sm((scores(q, k)[None] + m)[0]) @ v,
        args(Q, K, K, bias(1, 2, 1, 5, 7)),
        m=lambda m: m[0],
        level=2,
    ),
    A(
        "two views with a mask in each (LED, DETR)",
        lambda q, k, v, m: (
            sm((q.reshape(8, 5, 8) * ROOT @ T(k.reshape(8, 7, 8))).reshape(2, 4, 5, 7) + m).reshape(8, 5, 7)
            @ v.reshape(8, 7, 8)
        ).reshape(2, 4, 5, 8),
        ADD,
    ),
    S(
        "relative position by query (SAM)",
        lambda q, k, v, r: sm(scores(q, k) + q @ r) @ v,
        args(Q, K, K, bias(4, 8, 7)),
        # either product may be the scores, the other a mask; or the two are one product of concatenated keys
        mask="none|additive",
        scale=None,
        ref=lambda q, k, v, r: attend(q, k, v, ROOT, q @ r),
        heads=(4, 4),
        level=2,
    ),
]

POSITIONS = [
    A("constant bias", lambda q, k, v: sm(scores(q, k) + TABLE) @ v, args(Q, K, K), m=lambda: TABLE),
    A(
        "table of relative positions (T5)",
        lambda q, k, v: sm(scores(q, k) + relative()) @ v,
        args(Q, K, K),
        m=relative,
    ),
    A(
        "table taken, then a mask (MPNet)",
        lambda q, k, v, m: sm(scores(q, k) + mx.take(LEARNED, BUCKETS, axis=0).transpose(2, 0, 1) + m) @ v,
        args(Q, K, K, fill(2, 1, 1, 7)),
        m=lambda m: relative() + m,
    ),
    A(
        "table flat, reshaped (Swin)",
        lambda q, k, v: sm(scores(q, k) + LEARNED[BUCKETS.flatten()].reshape(5, 7, 4).transpose(2, 0, 1)[None]) @ v,
        args(Q, K, K),
        m=relative,
    ),
    A(
        "table given at run time",
        lambda q, k, v, t: sm(scores(q, k) + t[BUCKETS].transpose(2, 0, 1)) @ v,
        args(Q, K, K, bias(5, 4)),
        m=lambda t: t[BUCKETS].transpose(2, 0, 1),
    ),
    A(
        "ALiBi",
        lambda q, k, v: sm(scores(q, k) + SLOPES * DISTANCE) @ v,
        args(Q, K, K),
        m=lambda: SLOPES * DISTANCE,
    ),
    A(
        "ALiBi computed, and padding",
        lambda q, k, v, m: sm(scores(q, k) - SLOPES * mx.abs(mx.arange(5)[:, None] - mx.arange(7)) + m) @ v,
        args(Q, K, K, fill(2, 1, 1, 7)),
        m=lambda m: m - SLOPES * mx.abs(mx.arange(5)[:, None] - mx.arange(7)),
    ),
    A(
        "sigmoid of a table (Swin v2)",
        lambda q, k, v: sm(scores(q, k) + 16 * mx.sigmoid(LEARNED)[BUCKETS].transpose(2, 0, 1)) @ v,
        args(Q, K, K),
        m=lambda: 16 * mx.sigmoid(relative()),
    ),
]

SPELLINGS = [*ADDITIVE, *POSITIONS]
