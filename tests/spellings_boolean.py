"""Boolean masks known at run time: selected, multiplied, inverted, cast, combined, of every fill."""

from __future__ import annotations

import mlx.core as mx

from tests.spellings_base import (
    FLOOR,
    INF,
    KEEP,
    LOWEST,
    K,
    Q,
    S,
    T,
    X,
    args,
    attend,
    bias,
    causal,
    fill,
    ints,
    keep,
    sm,
)

ROOT = 8**-0.5
PAD = args(Q, K, K, keep(2, 1, 1, 7))
INT = args(Q, K, K, ints(2, 7))
ONES = args(Q, K, K, ints(2, 1, 1, 7, dtype=mx.float32))
FULL = args(Q, K, K, keep(2, 4, 5, 7))
SQUARE = args(X, X, X, keep(2, 1, 1, 6))
TRIANGLE = causal(6, 6)


def B(name, fn, make=PAD, m=lambda m: m, **more):
    """A boolean mask known at run time."""
    return S(name, fn, make, scale=ROOT, mask=more.pop("mask", KEEP), m=m, **more)


def scores(q, k):
    return q @ T(k) * ROOT


def seen(m):
    return (m != 0)[:, None, None, :]


def assigned(q, k, v, m):
    x = scores(q, k)
    x[mx.logical_not(m)] = -INF
    return sm(x) @ v


def positions(q, p):
    """Each query's product with the positions before and after it, shifted into place, as Transformer-XL does it."""
    bias = q @ T(p)
    b, h, t, n = bias.shape
    padded = mx.concatenate([mx.zeros((b, h, t, 1)), bias], axis=-1)
    return padded.reshape(b, h, n + 1, t)[:, :, 1:].reshape(b, h, t, n)[..., : n // 2 + 1]


def shifted(q, k, v, p, m):
    x = mx.where(m, (q @ T(k) + positions(q, p)) * ROOT, -INF)
    return mx.where(m, sm(x), 0.0) @ v


def shifted_plainly(q, k, v, p, m):
    return attend(q, k, v, ROOT, mx.where(m, positions(q, p) * ROOT, -INF))


def zero_one(m):
    return seen(m).astype(mx.float32)


def nonzero(m):
    return m != 0


SELECTED = [
    B("where keep, -inf", lambda q, k, v, m: sm(mx.where(m, scores(q, k), -INF)) @ v),
    B("where keep, -1e9", lambda q, k, v, m: sm(mx.where(m, scores(q, k), LOWEST)) @ v),
    B("where keep, -1e4", lambda q, k, v, m: sm(mx.where(m, scores(q, k), -1e4)) @ v),
    B("where keep, the lowest number", lambda q, k, v, m: sm(mx.where(m, scores(q, k), FLOOR)) @ v),
    B("where keep, an array of fill", lambda q, k, v, m: sm(mx.where(m, scores(q, k), mx.array(LOWEST))) @ v),
    B(
        "where keep, a full array of fill",
        lambda q, k, v, m: sm(mx.where(m, scores(q, k), mx.full((2, 4, 5, 7), -INF))) @ v,
    ),
    B(
        "where drop",
        lambda q, k, v, m: sm(mx.where(m, -INF, scores(q, k))) @ v,
        args(Q, K, K, lambda rng: mx.logical_not(keep(2, 1, 1, 7)(rng))),
        m=mx.logical_not,
    ),
    B("where not keep", lambda q, k, v, m: sm(mx.where(mx.logical_not(m), -INF, scores(q, k))) @ v),
    B("where not keep, finite", lambda q, k, v, m: sm(mx.where(mx.logical_not(m), LOWEST, scores(q, k))) @ v),
    B("full mask", lambda q, k, v, m: sm(mx.where(m, scores(q, k), -INF)) @ v, FULL),
    B(
        "one mask a batch entry",
        lambda q, k, v, m: sm(mx.where(m, scores(q, k), -INF)) @ v,
        args(Q, K, K, keep(2, 1, 5, 7)),
    ),
    B(
        "one mask a head",
        lambda q, k, v, m: sm(mx.where(m, scores(q, k), -INF)) @ v,
        args(Q, K, K, keep(4, 5, 7)),
    ),
    B("rank two", lambda q, k, v, m: sm(mx.where(m, scores(q, k), -INF)) @ v, args(Q, K, K, keep(5, 7))),
    B("rank one", lambda q, k, v, m: sm(mx.where(m, scores(q, k), -INF)) @ v, args(Q, K, K, keep(7))),
    B(
        "broadcast by hand",
        lambda q, k, v, m: sm(mx.where(mx.broadcast_to(m, (2, 4, 5, 7)), scores(q, k), -INF)) @ v,
    ),
    B(
        "keys with axes",
        lambda q, k, v, m: sm(mx.where(m[:, None, None, :], scores(q, k), -INF)) @ v,
        args(Q, K, K, keep(2, 7)),
        m=lambda m: m[:, None, None, :],
    ),
    B(
        "integers equal to zero (DistilBERT)",
        lambda q, k, v, m: sm(mx.where((m == 0).reshape(2, 1, 1, 7), -INF, scores(q, k))) @ v,
        INT,
        m=seen,
    ),
    B(
        "integers equal to one",
        lambda q, k, v, m: sm(mx.where((m == 1)[:, None, None, :], scores(q, k), FLOOR)) @ v,
        INT,
        m=seen,
    ),
    B(
        "integers greater than zero",
        lambda q, k, v, m: sm(mx.where(m[:, None, None, :] > 0, scores(q, k), LOWEST)) @ v,
        INT,
        m=seen,
    ),
    B(
        "integers cast to bool",
        lambda q, k, v, m: sm(mx.where(m.astype(mx.bool_)[:, None, None], scores(q, k), LOWEST)) @ v,
        INT,
        m=seen,
    ),
    B(
        "floats cast to bool",
        lambda q, k, v, m: sm(mx.where(m.astype(mx.bool_), scores(q, k), LOWEST)) @ v,
        ONES,
        m=nonzero,
    ),
    B(
        "lengths",
        lambda q, k, v, n: sm(mx.where(mx.arange(7) < n[:, None, None, None], scores(q, k), -INF)) @ v,
        args(Q, K, K, lambda rng: mx.array([3, 6])),
        m=lambda n: mx.arange(7) < n[:, None, None, None],
    ),
    B(
        "keys by queries",
        lambda q, k, v, a, b: sm(mx.where(a[:, None, :, None] * b[:, None, None, :], scores(q, k), LOWEST)) @ v,
        args(Q, K, K, lambda rng: mx.ones((2, 5), dtype=mx.bool_), keep(2, 7)),
        m=lambda a, b: mx.logical_and(a[:, None, :, None], b[:, None, None, :]),
        level=2,
    ),
    B(
        "same document",
        lambda q, k, v, a, b: sm(mx.where(a[:, None, :, None] == b[:, None, None, :], scores(q, k), -INF)) @ v,
        args(
            Q,
            K,
            K,
            lambda rng: mx.array([[0, 0, 1, 1, 2]] * 2),
            lambda rng: mx.array([[0, 0, 1, 1, 1, 2, 2]] * 2),
        ),
        m=lambda a, b: a[:, None, :, None] == b[:, None, None, :],
    ),
    B(
        "half",
        lambda q, k, v, m: sm(mx.where(m, scores(q, k), -INF)) @ v,
        args(Q, K, K, keep(2, 1, 1, 7), dtype=mx.float16),
    ),
    B(
        "half, finite",
        lambda q, k, v, m: sm(mx.where(m, scores(q, k), -65504.0)) @ v,
        args(Q, K, K, keep(2, 1, 1, 7), dtype=mx.float16),
    ),
]

ADDED = [
    B(
        "integers of BERT",
        lambda q, k, v, m: sm(scores(q, k) + (1.0 - m[:, None, None, :].astype(mx.float32)) * -10000.0) @ v,
        INT,
        m=lambda m: mx.where(seen(m), 0.0, -1e4),
    ),
    B(
        "integers of BERT, the lowest number",
        lambda q, k, v, m: sm(scores(q, k) + (1.0 - m[:, None, None, :].astype(mx.float32)) * FLOOR) @ v,
        INT,
        m=seen,
    ),
    B(
        "ones less a mask, subtracted",
        lambda q, k, v, m: sm(scores(q, k) - 1e9 * (1.0 - m)) @ v,
        ONES,
        m=nonzero,
    ),
    B(
        "bool cast and multiplied",
        lambda q, k, v, m: sm(scores(q, k) + m.astype(mx.float32) * LOWEST) @ v,
        m=mx.logical_not,
    ),
    B("chosen 0 or -inf, added", lambda q, k, v, m: sm(scores(q, k) + mx.where(m, 0.0, -INF)) @ v),
    B(
        "chosen 0 or -1e9, added on the left",
        lambda q, k, v, m: sm(mx.where(m, 0.0, LOWEST) + scores(q, k)) @ v,
    ),
    B(
        "chosen -inf or 0, added",
        lambda q, k, v, m: sm(scores(q, k) + mx.where(m, -INF, 0.0)) @ v,
        m=mx.logical_not,
    ),
    B(
        "inverted by where (Hugging Face)",
        lambda q, k, v, m: sm(scores(q, k) + inverted(m[:, None, None, :].astype(mx.float32))) @ v,
        INT,
        m=seen,
    ),
    B(
        "half floats, inverted",
        lambda q, k, v, m: sm(scores(q, k) + (1.0 - m.astype(mx.float16))[:, None, None, :] * -1e4) @ v,
        args(Q, K, K, ints(2, 7), dtype=mx.float16),
        m=seen,
    ),
]


def inverted(m):
    drop = 1.0 - m
    return mx.where(drop.astype(mx.bool_), FLOOR, drop)


# the numbers must be ones and zeros for all that can be known: made by a comparison, or from booleans
MULTIPLIED = [
    B(
        "multiplied, and the rest filled",
        lambda q, k, v, m: (lambda n: sm(scores(q, k) * n + (1.0 - n) * LOWEST))(zero_one(m)) @ v,
        INT,
        m=seen,
        level=2,
    ),
    B(
        "multiplied, and the rest subtracted (GPT-2)",
        lambda q, k, v, m: (lambda n: sm(scores(q, k) * n - 1e9 * (1 - n)))(zero_one(m)) @ v,
        INT,
        m=seen,
        level=2,
    ),
    B(
        "multiplied by booleans",
        lambda q, k, v, m: sm(scores(q, k) * m + mx.logical_not(m) * LOWEST) @ v,
        m=lambda m: m,
        level=2,
    ),
    B(
        "multiplied on the left, booleans cast",
        lambda q, k, v, m: sm(m.astype(q.dtype) * scores(q, k) - (1 - m.astype(q.dtype)) * 1e9) @ v,
        m=lambda m: m,
        level=2,
    ),
]

COMBINED = [
    B(
        "two in turn",
        lambda q, k, v, a, b: sm(mx.where(b, mx.where(a, scores(q, k), -INF), -INF)) @ v,
        args(Q, K, K, keep(2, 1, 1, 7), keep(5, 7)),
        m=mx.logical_and,
        level=2,
    ),
    B(
        "and",
        lambda q, k, v, a, b: sm(mx.where(mx.logical_and(a, b), scores(q, k), -INF)) @ v,
        args(Q, K, K, keep(2, 1, 1, 7), keep(5, 7)),
        m=mx.logical_and,
    ),
    B(
        "and by a sign",
        lambda q, k, v, a, b: sm(mx.where(a & b, scores(q, k), -INF)) @ v,
        args(Q, K, K, keep(2, 1, 1, 7), keep(5, 7)),
        m=mx.logical_and,
    ),
    B(
        "or",
        lambda q, k, v, a, b: sm(mx.where(a | b, scores(q, k), -INF)) @ v,
        args(Q, K, K, keep(2, 1, 1, 7), keep(5, 7)),
        m=mx.logical_or,
    ),
    B(
        "causal and padding",
        lambda q, k, v, m: sm(mx.where(m & TRIANGLE, scores(q, k), -INF)) @ v,
        SQUARE,
        m=lambda m: m & TRIANGLE,
    ),
    B(
        "causal, then padding",
        lambda q, k, v, m: sm(mx.where(m, mx.where(TRIANGLE, scores(q, k), -INF), -INF)) @ v,
        SQUARE,
        m=lambda m: m & TRIANGLE,
        level=2,
    ),
    B(
        "selected, then added (GPT-2)",
        lambda q, k, v, m: sm(mx.where(TRIANGLE, scores(q, k), FLOOR) + m) @ v,
        args(X, X, X, fill(2, 1, 1, 6)),
        mask="additive",
        m=lambda m: mx.where(TRIANGLE, m, -INF),
    ),
    B(
        "added, then selected (MPT)",
        lambda q, k, v, m, a: sm(mx.where(m, scores(q, k) + a, FLOOR)) @ v,
        args(Q, K, K, keep(2, 1, 1, 7), bias(4, 5, 7)),
        mask="additive",
        m=lambda m, a: mx.where(m, a, -INF),
    ),
    B(
        "causal added, padding added",
        lambda q, k, v, m: sm(scores(q, k) + mx.where(TRIANGLE, 0.0, -INF) + m) @ v,
        args(X, X, X, fill(2, 1, 1, 6)),
        mask="additive",
        m=lambda m: mx.where(TRIANGLE, m, -INF),
    ),
    B(
        "causal and padding as integers",
        lambda q, k, v, m: sm(scores(q, k) + (1.0 - m[:, None, None].astype(mx.float32) * TRIANGLE) * LOWEST) @ v,
        args(X, X, X, ints(2, 6)),
        m=lambda m: seen(m) & TRIANGLE,
    ),
    B(
        "selected before the scale",
        lambda q, k, v, m: sm(mx.where(m, q @ T(k), -INF) * ROOT) @ v,
    ),
    B(
        "selected, in merged heads",
        lambda q, k, v, m: (sm(mx.where(m, scores(q, k), -INF).reshape(8, 5, 7)) @ v.reshape(8, 7, 8)).reshape(
            2, 4, 5, 8
        ),
    ),
    B(
        "mask shared by a second use",
        lambda q, k, v, m: (sm(mx.where(m, scores(q, k), -INF)) @ v, m.astype(mx.float32).sum()),
        ref=lambda q, k, v, m: (attend(q, k, v, ROOT, m), m.astype(mx.float32).sum()),
        m=None,
        heads=(4, 4),
    ),
    B(
        "shifted positions, masked twice",
        shifted,
        args(X, X, X, (1, 4, 11, 8), keep(2, 1, 1, 6)),
        ref=shifted_plainly,
        m=None,
        heads=(4, 4),
        mask="additive",
    ),
    B("scores assigned to where the mask does not hold", assigned, FULL),
    B("weights masked again", lambda q, k, v, m: mx.where(m, sm(mx.where(m, scores(q, k), -INF)), 0.0) @ v),
    B("weights times the mask", lambda q, k, v, m: (sm(mx.where(m, scores(q, k), LOWEST)) * m) @ v),
    B(
        "weights filled where the mask is zero",
        lambda q, k, v, m: mx.where(seen(m) == False, 0.0, sm(mx.where(seen(m) == False, LOWEST, scores(q, k)))) @ v,  # noqa: E712
        INT,
        seen,
    ),
]

SPELLINGS = [*SELECTED, *ADDED, *MULTIPLIED, *COMBINED]
