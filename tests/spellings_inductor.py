"""The thirty shapes that PyTorch's Inductor looks for, as inference meets them, written as MLX functions."""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn

from tests.spellings_base import (
    FLOOR,
    INF,
    KEEP,
    K,
    Q,
    S,
    T,
    args,
    attend,
    bias,
    fill,
    heads_first,
    ints,
    keep,
    num,
    sm,
)

ROOT = 8**-0.5
HALF, FULL = mx.float16, mx.float32
B, BK = (2, 5, 4, 8), (2, 7, 4, 8)
PLAIN, PLAIN_HALF = args(Q, K, K), args(Q, K, K, dtype=HALF)
BSHD, BSHD_HALF = args(B, BK, BK), args(B, BK, BK, dtype=HALF)
BATCHED = args((8, 5, 8), (8, 7, 8), (8, 7, 8))
drop = nn.Dropout(0.5).eval()


def kernel(scale, mask=None):
    """The kernel on arguments that have the sequence before the heads."""

    def run(q, k, v, *rest):
        return attend(*map(heads_first, (q, k, v)), scale, mask(*rest) if mask else None)

    return run


def with_kv(run):
    """The same, with keys and values returned."""
    return lambda q, k, v, *rest: (run(q, k, v, *rest), heads_first(k), heads_first(v))


def scaled(q, k, v):
    return sm(q @ T(k) / math.sqrt(8)) @ v


def in_float(x, like):
    return sm(x.astype(FULL)).astype(like.dtype)


def half_after(q, k, v):
    q, k, v = map(heads_first, (q, k, v))
    return drop(sm((q @ T(k) / math.sqrt(8)).astype(FULL))).astype(HALF) @ v


def half_before(q, k, v):
    q, k, v = map(heads_first, (q, k, v))
    return drop(sm(((q / math.sqrt(8)) @ T(k)).astype(FULL))).astype(HALF) @ v


def divided(q, k, v):
    q, k, v = map(heads_first, (q, k, v))
    return drop(sm((q @ T(k)) / 4.0)) @ v


def bert(q, k, v, m):
    q, k, v = map(heads_first, (q, k, v))
    return drop(sm((q @ T(k)) / 4.0 + m)) @ v


def bert_cast(q, k, v, m):
    q, k, v = map(heads_first, (q, k, v))
    return drop(sm((q @ T(k)) / 4.0 + m)).astype(q.dtype) @ v


def distilbert(q, k, v, m):
    q, k, v = map(heads_first, (q, k, v))
    hidden = mx.broadcast_to((m == 0).reshape(2, 1, 1, 7), (2, 4, 5, 7))
    return drop(sm(mx.where(hidden, mx.array(-INF, dtype=q.dtype), (q @ T(k)) / 4.0))) @ v


def distilbert_scaled_first(q, k, v, m):
    q, k, v = map(heads_first, (q, k, v))
    hidden = mx.broadcast_to((m == 0).reshape(2, 1, 1, 7), (2, 4, 5, 7))
    return drop(sm(mx.where(hidden, mx.array(-INF, dtype=q.dtype), (q / 4.0) @ T(k)))) @ v


def gpt2(q, k, v, m):
    q, k, v = map(heads_first, (q, k, v))
    x = (q @ k.transpose(0, 1, 3, 2)) / mx.full((), v.shape[-1] ** 0.5, dtype=q.dtype)
    return drop(sm(mx.where(m, x, mx.array(FLOOR)))) @ v, k, v


def gpt2_two_masks(q, k, v, m, a):
    x = (q @ k.transpose(0, 1, 3, 2)) / mx.full((), 4.0, dtype=q.dtype)
    return drop(sm(mx.where(m, x, mx.array(FLOOR)) + a).astype(v.dtype)) @ v


def t5(q, k, v, m):
    q, k, v = map(heads_first, (q, k, v))
    x = (q @ k.transpose(0, 1, 3, 2) + m).astype(q.dtype)
    return in_float(x, q) @ v


def t5_kv(q, k, v, m):
    return t5(q, k, v, m), heads_first(k), heads_first(v)


def t5_plain(q, k, v):
    q, k, v = map(heads_first, (q, k, v))
    x = (q @ k.transpose(0, 1, 3, 2)).astype(FULL).astype(q.dtype)
    return in_float(x, q) @ v, k, v


def mbart(q, k, v, m):
    a, b, c = (x.reshape(8, -1, 8) for x in (q, k, v))
    x = ((a @ b.transpose(0, 2, 1)).reshape(2, 4, 5, 7) + m).reshape(8, 5, 7)
    return (sm(x) @ c).reshape(2, 4, 5, 8)


def t5_late_cast(q, k, v, m):
    q, k, v = map(heads_first, (q, k, v))
    return drop(in_float(q @ k.transpose(0, 1, 3, 2) + m, q)) @ v


def t5_late_cast_plain(q, k, v):
    q, k, v = map(heads_first, (q, k, v))
    return drop(in_float(q @ k.transpose(0, 1, 3, 2), q)) @ v, k, v


def both_scaled(q, k, v, m):
    return sm((q * 0.5) @ (T(k) * 0.5) + m) @ v


def both_scaled_guarded(q, k, v):
    p = sm((q * 0.5) @ (T(k) * 0.5))
    return mx.where(mx.isnan(p), 0.0, p) @ v


def additive(m):
    return m


def I(number, fn, make, scale, ref=None, mask="none", m=None, level=1, note=""):  # noqa: E743
    name = f"inductor {number}{note}"
    return S(name, fn, make, scale=scale, ref=ref, mask=mask, m=m, heads=(4, 4), level=level)


def seen(m):
    return (m != 0).reshape(2, 1, 1, 7)


def later(m, a):
    return mx.where(m, a, -INF)


MASK = (*(B, BK, BK), fill(2, 1, 1, 7))
MASK_HALF = (*(B, BK, BK), fill(2, 1, 1, 7, value=-1e4, dtype=HALF))
TABLE = args(B, BK, BK, bias(1, 4, 5, 7))
TABLE_HALF = args(B, BK, BK, bias(1, 4, 5, 7, dtype=HALF), dtype=HALF)
PADDING = args(B, BK, BK, ints(2, 7))

SPELLINGS = [
    I(
        1,
        lambda q, k, v, s: sm((q @ T(k)) / s) @ v,
        args(Q, K, K, num(4.0)),
        None,
        lambda q, k, v, s: attend(q / s, k, v),
    ),
    I(1, lambda q, k, v: sm((q @ T(k)) / 4.0) @ v, PLAIN, 0.25, note=", a number"),
    I(2, lambda q, k, v: sm((q @ T(k)) * 0.25) @ v, PLAIN, 0.25),
    I(3, lambda q, k, v: drop(sm((q @ T(k)) / 4.0)) @ v, PLAIN, 0.25),
    I(4, lambda q, k, v: drop(sm((q @ T(k)) * 0.25)) @ v, PLAIN, 0.25),
    I(
        5,
        lambda q, k, v, m: sm(q @ T(k) / math.sqrt(8) + m) @ v,
        args(Q, K, K, bias(1, 1, 5, 7)),
        ROOT,
        mask="additive",
        m=additive,
    ),
    I(
        6,
        lambda q, k, v, m: drop(sm(q @ T(k) / math.sqrt(8) + m)) @ v,
        args(Q, K, K, bias(1, 1, 5, 7)),
        ROOT,
        mask="additive",
        m=additive,
    ),
    I(7, half_after, BSHD_HALF, ROOT, kernel(ROOT)),
    I(
        8,
        lambda q, k, v: (lambda a, b, c: in_float(a @ T(b) / math.sqrt(8), a) @ c)(*map(heads_first, (q, k, v))),
        BSHD_HALF,
        ROOT,
        kernel(ROOT),
    ),
    I(9, half_before, BSHD_HALF, ROOT, kernel(ROOT)),
    I(
        10,
        lambda q, k, v: (lambda a, b, c: in_float((a / math.sqrt(8)) @ T(b), a) @ c)(*map(heads_first, (q, k, v))),
        BSHD_HALF,
        ROOT,
        kernel(ROOT),
    ),
    I(
        11,
        lambda q, k, v: sm(heads_first(q) @ T(heads_first(k)) / 4.0) @ heads_first(v),
        BSHD,
        0.25,
        kernel(0.25),
    ),
    I(12, divided, BSHD, 0.25, kernel(0.25)),
    S(
        "inductor 13",
        lambda q, k, v: drop(sm(q @ k.transpose(0, 2, 1))) @ v,
        BATCHED,
        ref=lambda q, k, v: attend(q[None], k[None], v[None])[0],
    ),
    I(14, lambda q, k, v, m: bert(q, k, v, m), args(*MASK), 0.25, kernel(0.25, additive), "additive"),
    I(15, distilbert, PADDING, 0.25, kernel(0.25, seen), KEEP),
    I(16, bert_cast, args(*MASK), 0.25, kernel(0.25, additive), "additive"),
    I(16, bert_cast, args(*MASK_HALF, dtype=HALF), 0.25, kernel(0.25, additive), "additive", note=", half"),
    I(
        16,
        bert_cast,
        args(*MASK, dtype=HALF),
        0.25,
        kernel(0.25, additive),
        "additive",
        note=", half with a float mask",
    ),
    I(17, lambda q, k, v, m: drop(distilbert(q, k, v, m)), PADDING, 0.25, kernel(0.25, seen), KEEP),
    I(18, gpt2, args(B, BK, BK, keep(1, 1, 5, 7)), ROOT, with_kv(kernel(ROOT, additive)), KEEP),
    I(19, gpt2_two_masks, args(Q, K, K, keep(1, 1, 5, 7), fill(2, 1, 1, 7)), 0.25, None, "additive", later),
    I(20, distilbert_scaled_first, PADDING, 0.25, kernel(0.25, seen), KEEP),
    I(21, t5, TABLE, 1.0, kernel(1.0, additive), "additive"),
    I(21, t5, TABLE_HALF, 1.0, kernel(1.0, additive), "additive", note=", half"),
    I(22, t5_kv, TABLE, 1.0, with_kv(kernel(1.0, additive)), "additive"),
    I(22, t5_kv, TABLE_HALF, 1.0, with_kv(kernel(1.0, additive)), "additive", note=", half"),
    I(23, t5_plain, BSHD_HALF, 1.0, with_kv(kernel(1.0))),
    I(24, mbart, args(Q, K, K, bias(2, 1, 5, 7)), 1.0, None, "additive", additive),
    I(25, t5_late_cast, TABLE_HALF, 1.0, kernel(1.0, additive), "additive"),
    I(
        26,
        lambda q, k, v, m: (t5_late_cast(q, k, v, m), heads_first(k), heads_first(v)),
        TABLE_HALF,
        1.0,
        with_kv(kernel(1.0, additive)),
        "additive",
    ),
    I(27, t5_late_cast_plain, BSHD_HALF, 1.0, with_kv(kernel(1.0))),
    I(
        28,
        lambda q, k, v: drop(sm((T(q) @ k) * 0.25)) @ T(v),
        args((2, 4, 8, 5), (2, 4, 8, 7), (2, 4, 8, 7)),
        0.25,
        lambda q, k, v: attend(T(q), T(k), T(v), 0.25),
    ),
    I(29, both_scaled, args(Q, K, K, fill(2, 1, 1, 7)), 0.25, None, "additive", additive),
    I(30, both_scaled_guarded, PLAIN, 0.25),
]
