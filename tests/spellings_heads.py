"""Heads: keys and values repeated in every way; the kernel must get them as they were before."""

from __future__ import annotations

import mlx.core as mx

from tests.spellings_base import INF, S, T, args, attend, bias, causal, heads_first, keep, sm

ROOT = 8**-0.5
Q, K = (2, 4, 5, 8), (2, 2, 7, 8)
ONE = (2, 1, 7, 8)
GQA = args(Q, K, K)
MQA = args(Q, ONE, ONE)
SELF = args((2, 4, 6, 8), (2, 2, 6, 8), (2, 2, 6, 8))
BSHD = args((2, 5, 4, 8), (2, 7, 2, 8), (2, 7, 2, 8))
TRI = causal(6, 6)


def G(name, fn, make=GQA, heads=(4, 2), level=1, **more):
    return S(name, fn, make, scale=ROOT, heads=heads, level=level, **more)


def L(name, fn, make=GQA, heads=(4, 2), **more):
    return G(name, fn, make, heads, 2, **more)


def naive(q, k, v, mask=None):
    x = q @ T(k) * ROOT
    return sm(x if mask is None else x + mask) @ v


def both(repeat):
    """Keys and values repeated alike."""
    return lambda q, k, v: naive(q, repeat(k), repeat(v))


def expand(x, n=2):
    """Hugging Face's repeat_kv."""
    b, h, t, d = x.shape
    return mx.broadcast_to(x[:, :, None], (b, h, n, t, d)).reshape(b, h * n, t, d)


def grouped(q, k, v):
    x = q.reshape(2, 2, 2, 5, 8) @ k[:, :, None].swapaxes(-1, -2) * ROOT
    return (sm(x) @ v[:, :, None]).reshape(2, 4, 5, 8)


def grouped_with_mask(q, k, v, m):
    x = mx.unflatten(q * ROOT, 1, (2, 2)) @ T(mx.expand_dims(k, 2)) + mx.expand_dims(m, 2)
    return mx.flatten(sm(x) @ mx.expand_dims(v, 2), 1, 2)


def grouped_by_einsum(q, k, v):
    p = sm(mx.einsum("bhgqd,bhkd->bhgqk", q.reshape(2, 2, 2, 5, 8), k) * ROOT)
    return mx.einsum("bhgqk,bhkd->bhgqd", p, v).reshape(2, 4, 5, 8)


def grouped_bshd_by_einsum(q, k, v):
    p = sm(mx.einsum("btkgh,bskh->bkgts", q.reshape(2, 5, 2, 2, 8), k) * ROOT)
    return mx.einsum("bkgts,bskh->btkgh", p, v).reshape(2, 5, 4, 8)


def grouped_rows(q, k, v):
    """The queries of a group become rows of one product."""
    x = sm(q.reshape(2, 2, 10, 8) @ T(k) * ROOT)
    return (x @ v).reshape(2, 4, 5, 8)


def bshd(q, k, v):
    return heads_first(attend(*map(heads_first, (q, k, v)), ROOT))


def repeat_bshd(q, k, v):
    k, v = mx.repeat(k, 2, axis=2), mx.repeat(v, 2, axis=2)
    return heads_first(naive(*map(heads_first, (q, k, v))))


def expand_bshd(q, k, v):
    k, v = (mx.broadcast_to(x[:, :, :, None], (2, 7, 2, 2, 8)).reshape(2, 7, 4, 8) for x in (k, v))
    return heads_first(naive(*map(heads_first, (q, k, v))))


SPELLINGS = [
    G("repeat", both(lambda x: mx.repeat(x, 2, axis=1))),
    G("expand and reshape", both(expand)),
    G(
        "expand_dims, broadcast, flatten",
        both(lambda x: mx.flatten(mx.broadcast_to(mx.expand_dims(x, 2), (2, 2, 2, 7, 8)), 1, 2)),
    ),
    G("repeat of a new axis", both(lambda x: mx.repeat(x[:, :, None], 2, axis=2).reshape(2, 4, 7, 8))),
    G(
        "repeat of two and three",
        lambda q, k, v: naive(q, mx.repeat(k, 3, 1), mx.repeat(v, 3, 1)),
        args((2, 6, 5, 8), K, K),
        (6, 2),
    ),
    G(
        "multiplied by ones",
        both(lambda x: (x[:, :, None] * mx.ones((1, 1, 2, 1, 1))).reshape(2, 4, 7, 8)),
        level=2,
    ),
    G(
        "repeat before the turn",
        lambda q, k, v: sm(q @ mx.repeat(T(k), 2, axis=1) * ROOT) @ mx.repeat(v, 2, 1),
    ),
    G("repeat scaled keys", lambda q, k, v: sm(q @ T(mx.repeat(k * ROOT, 2, 1))) @ mx.repeat(v, 2, 1)),
    G("repeat, sequence before heads", repeat_bshd, BSHD, ref=bshd),
    G("expand, sequence before heads", expand_bshd, BSHD, ref=bshd),
    G(
        "repeat, causal",
        lambda q, k, v: sm(mx.where(TRI, q @ T(mx.repeat(k, 2, 1)) * ROOT, -INF)) @ mx.repeat(v, 2, 1),
        SELF,
        mask="causal",
    ),
    G(
        "expand, added mask",
        lambda q, k, v, m: naive(q, expand(k), expand(v), m),
        args(Q, K, K, bias(2, 1, 5, 7)),
        mask="additive",
        m=lambda m: m,
    ),
    G(
        "expand, mask of every head",
        lambda q, k, v, m: naive(q, expand(k), expand(v), m),
        args(Q, K, K, bias(2, 4, 5, 7)),
        mask="additive",
        m=lambda m: m,
    ),
    G(
        "expand, boolean mask",
        lambda q, k, v, m: sm(mx.where(m, q @ T(expand(k)) * ROOT, -INF)) @ expand(v),
        args(Q, K, K, keep(2, 1, 5, 7)),
        mask="boolean|additive",
        m=lambda m: m,
    ),
    G(
        "repeat, merged heads",
        lambda q, k, v: (
            sm(q.reshape(8, 5, 8) @ T(mx.repeat(k, 2, 1).reshape(8, 7, 8)) * ROOT) @ mx.repeat(v, 2, 1).reshape(8, 7, 8)
        ).reshape(2, 4, 5, 8),
        heads=(None, None),
    ),
    G(
        "repeat, cast up",
        lambda q, k, v: naive(q, mx.repeat(k, 2, 1), mx.repeat(v, 2, 1)).astype(mx.float32),
        args(Q, K, K, dtype=mx.float16),
    ),
    G("repeat, one step", both(lambda x: mx.repeat(x, 2, axis=1)), args((2, 4, 1, 8), K, K)),
    G(
        "expand after a cache",
        lambda q, k, v, c, w: naive(q, expand(mx.concatenate([c, k], 2)), expand(mx.concatenate([w, v], 2))),
        args((2, 4, 1, 8), (2, 2, 1, 8), (2, 2, 1, 8), bias(*K), bias(*K)),
        ref=lambda q, k, v, c, w: attend(q, mx.concatenate([c, k], 2), mx.concatenate([w, v], 2), ROOT),
    ),
    G("grouped, rank five", grouped),
    G(
        "grouped, rank five, mask",
        grouped_with_mask,
        args(Q, K, K, bias(2, 1, 5, 7)),
        mask="additive",
        m=lambda m: m,
    ),
    G(
        "grouped, rank five, from the projection",
        lambda q, k, v: (
            (
                sm(q.reshape(2, 5, 2, 2, 8).transpose(0, 2, 3, 1, 4) @ T(heads_first(k))[:, :, None] * ROOT)
                @ heads_first(v)[:, :, None]
            )
            .transpose(0, 3, 1, 2, 4)
            .reshape(2, 5, 32)
        ),
        BSHD,
        ref=lambda q, k, v: bshd(q, k, v).reshape(2, 5, 32),
    ),
    L("grouped, einsum", grouped_by_einsum, heads=(None, 2)),
    L("grouped, einsum, sequence before heads", grouped_bshd_by_einsum, BSHD, (None, 2), ref=bshd),
    L("grouped, queries of a group as rows", grouped_rows, heads=(None, 2)),
    L(
        "concatenated slices",
        both(lambda x: mx.concatenate([x[:, :1], x[:, :1], x[:, 1:], x[:, 1:]], axis=1)),
    ),
    L("stacked and reshaped", both(lambda x: mx.stack([x, x], axis=2).reshape(2, 4, 7, 8))),
    L("taken by index", both(lambda x: mx.take(x, mx.array([0, 0, 1, 1]), axis=1))),
    L("indexed", both(lambda x: x[:, mx.array([0, 0, 1, 1])])),
    L("taken by computed index", both(lambda x: mx.take(x, mx.arange(4) // 2, axis=1))),
    L("each in another way", lambda q, k, v: naive(q, mx.repeat(k, 2, 1), expand(v))),
    L(
        "repeated twice",
        lambda q, k, v: naive(q, expand(expand(k)), expand(expand(v))),
        args((2, 8, 5, 8), K, K),
        (8, 2),
    ),
    G("one head, broadcast by the product", naive, MQA, (4, 1)),
    G("one head, expanded", both(lambda x: mx.broadcast_to(x, (2, 4, 7, 8))), MQA, (4, 1)),
    G("one head, repeated", both(lambda x: mx.repeat(x, 4, axis=1)), MQA, (4, 1)),
    G("one head, tiled", both(lambda x: mx.tile(x, (1, 4, 1, 1))), MQA, (4, 1)),
    G(
        "one head, from rank three",
        lambda q, k, v: naive(q, k[:, None], v[:, None]),
        args(Q, (2, 7, 8), (2, 7, 8)),
        (4, 1),
        ref=lambda q, k, v: attend(q, k[:, None], v[:, None], ROOT),
    ),
    L(
        "one head, einsum",
        lambda q, k, v: mx.einsum("bhqk,bkd->bhqd", sm(mx.einsum("bhqd,bkd->bhqk", q, k) * ROOT), v),
        args(Q, (2, 7, 8), (2, 7, 8)),
        (None, 1),
        ref=lambda q, k, v: attend(q, k[:, None], v[:, None], ROOT),
    ),
    L(
        "one head, queries of all heads as rows (Falcon)",
        lambda q, k, v: (sm(q.reshape(2, 20, 8) @ T(k) * ROOT) @ v).reshape(2, 4, 5, 8),
        args(Q, (2, 7, 8), (2, 7, 8)),
        (None, 1),
        ref=lambda q, k, v: attend(q, k[:, None], v[:, None], ROOT),
    ),
    L(
        "two key heads, one value head",
        lambda q, k, v: naive(q, mx.repeat(k, 2, 1), v),
        args(Q, K, ONE),
        (4, None),
        ref=lambda q, k, v: attend(q, k, mx.repeat(v, 2, 1), ROOT),
    ),
    L(
        "one key head, all value heads",
        naive,
        args(Q, ONE, (2, 4, 7, 8)),
        (4, None),
        ref=lambda q, k, v: attend(q, mx.repeat(k, 4, 1), v, ROOT),
    ),
]
