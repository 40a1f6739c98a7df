"""Keys and values in pieces: scores of each piece joined, weights cut apart, the products added up."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from tests.spellings_base import INF, K, Q, T, args, attend, sm
from tests.spellings_shapes import ROOT, P

FEW = (2, 4, 3, 8)
ONE = (2, 4, 1, 8)
TWO = args(Q, K, K, FEW, FEW)
NEWEST = args(ONE, K, K, ONE, ONE)
GROUPED = args(Q, (2, 2, 7, 8), (2, 2, 7, 8), (2, 2, 3, 8), (2, 2, 3, 8))
NEW = args(Q, K, K, Q, Q)
TRIANGLE = mx.array(np.tri(5, 5, dtype=bool))
SINKS = mx.array(np.linspace(-1, 1, 4), dtype=mx.float32)


def both(q, k, v, c, w, mask=None):
    return attend(q, mx.concatenate([k, c], 2), mx.concatenate([v, w], 2), ROOT, mask)


def causal(q, k, v, c, w):
    return both(q, k, v, c, w, "causal")


def sunk(q, k, v, c, w):
    keys, values = mx.concatenate([k, c], 2), mx.concatenate([v, w], 2)
    return mx.fast.scaled_dot_product_attention(q, keys, values, scale=ROOT, sinks=SINKS)


def joined(q, *keys):
    return mx.concatenate([q @ T(each) for each in keys], -1) * ROOT


def cut(p, *values):
    """The weights of each piece times its values, added up."""
    total, start = None, 0
    for each in values:
        part = p[..., start : start + each.shape[2]] @ each
        total, start = part if total is None else total + part, start + each.shape[2]
    return total


def column(q):
    return mx.broadcast_to(SINKS.reshape(1, 4, 1, 1), (*q.shape[:3], 1))


def repeat(x):
    return mx.repeat(x, 2, axis=1)


def split(p, v, w):
    first, second = mx.split(p, [v.shape[2]], axis=-1)
    return first @ v + second @ w


def late(q, k, v, c, w):
    parts = [q @ T(k) * ROOT, mx.where(TRIANGLE, q @ T(c) * ROOT, -INF)]
    return cut(sm(mx.concatenate(parts, -1)), v, w)


def three(q, k, v, c, w):
    return cut(sm(joined(q, k, c, k)), v, w, v)


def three_together(q, k, v, c, w):
    return attend(q, mx.concatenate([k, c, k], 2), mx.concatenate([v, w, v], 2), ROOT)


BLOCKS = args((2, 4, 2, 3, 8), (2, 4, 5, 8), (2, 4, 5, 8), (2, 4, 2, 3, 8), (2, 4, 2, 3, 8))


def blocks(q, k, v, c, w):
    """Each block sees the global keys and its own, as Pegasus-X has it."""
    flat = q.reshape(2, 4, 6, 8)
    parts = [(flat @ T(k)).reshape(2, 4, 2, 3, 5), q @ T(c)]
    p = sm(mx.concatenate(parts, -1) * ROOT)
    return (p[..., :5].reshape(2, 4, 6, 5) @ v).reshape(2, 4, 2, 3, 8) + p[..., 5:] @ w


def blocks_together(q, k, v, c, w):
    keys, values = (
        mx.concatenate([mx.broadcast_to(x[:, :, None], (2, 4, 2, 5, 8)), y], 3) for x, y in ((k, c), (v, w))
    )
    one = (x.reshape(8, 2, -1, 8) for x in (q, keys, values))
    return attend(*one, ROOT).reshape(2, 4, 2, 3, 8)


def V(name, fn, make=TWO, **more):
    return P(name, fn, make, 2, **{"ref": both, "heads": (4, 4), **more})


SPELLINGS = [
    V("each piece scaled", lambda q, k, v, c, w: cut(sm(mx.concatenate([q @ T(k) * ROOT, q @ T(c) * ROOT], -1)), v, w)),
    V("scaled together", lambda q, k, v, c, w: cut(sm(joined(q, k, c)), v, w)),
    V("weights split", lambda q, k, v, c, w: split(sm(joined(q, k, c)), v, w)),
    V(
        "the second product first",
        lambda q, k, v, c, w: (lambda p: p[..., 7:] @ w + p[..., :7] @ v)(sm(joined(q, k, c))),
    ),
    V("one query, one new key", lambda q, k, v, c, w: cut(sm(joined(q, k, c)), v, w), NEWEST),
    V("heads last before the sum", lambda q, k, v, c, w: T(T(cut(sm(joined(q, k, c)), v, w)))),
    V("keys in pieces, values whole", lambda q, k, v, c, w: sm(joined(q, k, c)) @ mx.concatenate([v, w], 2)),
    V(
        "keys scaled, then cut",
        lambda q, k, v, c, w: (
            lambda x: sm(mx.concatenate([q @ T(x[:, :, :3]), q @ T(x[:, :, 3:])], -1)) @ mx.concatenate([v, w], 2)
        )(mx.concatenate([k, c], 2) * ROOT),
        scale=1.0,
    ),
    V("keys whole, values in pieces", lambda q, k, v, c, w: cut(sm(q @ T(mx.concatenate([k, c], 2)) * ROOT), v, w)),
    V(
        "grouped heads",
        lambda q, k, v, c, w: cut(sm(joined(q, repeat(k), repeat(c))), repeat(v), repeat(w)),
        GROUPED,
        heads=(4, 2),
    ),
    V("blocks with global keys", blocks, BLOCKS, ref=blocks_together, heads=(None, None)),
    V("three pieces", three, ref=three_together),
    V("the new keys masked alone", late, NEW, mask="causal", ref=causal),
    V(
        "a sink in three pieces",
        lambda q, k, v, c, w: cut(sm(mx.concatenate([joined(q, k, c), column(q)], -1)), v, w),
        ref=sunk,
    ),
    V(
        "a sink before two pieces",
        lambda q, k, v, c, w: cut(sm(mx.concatenate([column(q), joined(q, k, c)], -1))[..., 1:], v, w),
        ref=sunk,
    ),
    V(
        "a mask over all",
        lambda q, k, v, c, w, m: cut(sm(joined(q, k, c) + m), v, w),
        args(Q, K, K, FEW, FEW, (2, 1, 5, 10)),
        mask="additive",
        ref=both,
    ),
]
