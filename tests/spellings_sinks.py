"""Sinks that queries or batches differ in, and other logits without a value of their own."""

from __future__ import annotations

import mlx.core as mx

from tests.spellings_base import INF, K, Q, S, T, X, args, attend, bias, causal, const, keep, sm
from tests.spellings_shapes import ROOT

EACH = args(Q, K, K, bias(2, 4, 5, 1))


def beside(q, k, v, sink, mask=None):
    """A key and a value of zeros more, the score of which is the sink."""
    zero = mx.zeros((*k.shape[:2], 1, k.shape[3]), k.dtype)
    kept = mx.zeros((1, 1, q.shape[2], k.shape[2]), q.dtype) if mask is None else mask
    if kept.dtype == mx.bool_:
        kept = mx.where(kept, mx.array(0, q.dtype), mx.array(-INF, q.dtype))
    outer = (q.shape[0], q.shape[1], q.shape[2])
    whole = [mx.broadcast_to(x, (*outer, x.shape[-1])) for x in (kept, sink)]
    return attend(q, mx.concatenate([k, zero], 2), mx.concatenate([v, zero], 2), ROOT, mx.concatenate(whole, -1))


def W(name, fn, make=EACH, *, ref=beside, mask="none", heads=(4, 4)):
    return S(name, fn, make, scale=ROOT, level=2, ref=ref, mask=mask, heads=heads)


def scores(q, k):
    return q @ T(k) * ROOT


def column(x, sink):
    """The weights beside a column of the sinks, which is then left off."""
    return sm(mx.concatenate([x, mx.broadcast_to(sink, (*x.shape[:-1], 1))], -1))[..., :-1]


def by_hand(x, sink):
    most = mx.maximum(x.max(-1, keepdims=True), sink)
    power = mx.exp(x - most)
    return power / (power.sum(-1, keepdims=True) + mx.exp(sink - most))


def in_logarithm(x, sink):
    return mx.exp(x - mx.logaddexp(mx.logsumexp(x, axis=-1, keepdims=True), sink))


SPELLINGS = [
    W("a sink for each query", lambda q, k, v, s: column(scores(q, k), s) @ v),
    W("a sink for each query, first", lambda q, k, v, s: sm(mx.concatenate([s, scores(q, k)], -1))[..., 1:] @ v),
    W("a sink for each query, by hand", lambda q, k, v, s: by_hand(scores(q, k), s) @ v),
    W(
        "a sink for each query, no maximum",
        lambda q, k, v, s: (lambda e: (e @ v) / (e.sum(-1, keepdims=True) + mx.exp(s)))(mx.exp(scores(q, k))),
    ),
    W("a sink made of the queries", lambda q, k, v, w: column(scores(q, k), q @ w) @ v, args(Q, K, K, bias(8, 1)),
      ref=lambda q, k, v, w: beside(q, k, v, q @ w)),
    W("a known sink for each query", lambda q, k, v: column(scores(q, k), const(5, 1)) @ v, args(Q, K, K),
      ref=lambda q, k, v: beside(q, k, v, const(5, 1).astype(q.dtype))),
    W(
        "a sink for each query and a causal mask",
        lambda q, k, v, s: column(mx.where(causal(6, 6), scores(q, k), -INF), s) @ v,
        args(X, X, X, bias(2, 1, 6, 1)),
        ref=lambda q, k, v, s: beside(q, k, v, s, causal(6, 6)[None, None]),
        mask="causal",
    ),
    W(
        "a sink for each query and keys that are hidden",
        lambda q, k, v, s, m: column(mx.where(m, scores(q, k), -INF), s) @ v,
        args(Q, K, K, bias(2, 4, 5, 1), keep(2, 1, 1, 7)),
        ref=beside,
        mask="boolean",
    ),
    W(
        "a sink for each query beside a bias",
        lambda q, k, v, s, m: column(scores(q, k) + m, s) @ v,
        args(Q, K, K, bias(1, 1, 5, 1), bias(2, 4, 5, 7)),
        ref=beside,
        mask="additive",
    ),
    W(
        "a sink for each query, grouped heads",
        lambda q, k, v, s: column(scores(q, mx.repeat(k, 2, 1)), s) @ mx.repeat(v, 2, 1),
        args(Q, (2, 2, 7, 8), (2, 2, 7, 8), bias(2, 4, 5, 1)),
        ref=lambda q, k, v, s: beside(q, mx.repeat(k, 2, 1), mx.repeat(v, 2, 1), s),
        heads=(4, 2),
    ),
    W(
        "a sink in the logarithm of the sum",
        lambda q, k, v, s: in_logarithm(scores(q, k), s[:, None, None]) @ v,
        args(Q, K, K, bias(4)),
        ref=lambda q, k, v, s: mx.fast.scaled_dot_product_attention(q, k, v, scale=ROOT, sinks=s),
    ),
    W(
        "a sink for each batch and head",
        lambda q, k, v, s: column(scores(q, k), s) @ v,
        args(Q, K, K, bias(2, 4, 1, 1)),
        heads=(None, None),
    ),
]  # fmt: skip
