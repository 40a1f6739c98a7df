"""Softmax: any axis, decomposed, normalised late, cast, guarded against NaN, with a sink."""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn

from tests.spellings_base import (
    FLOOR,
    INF,
    KEEP,
    QKV,
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
    keep,
    sm,
)

ROOT = 8**-0.5
HALF, BRAIN, FULL = mx.float16, mx.bfloat16, mx.float32
HALVES = args(Q, K, K, dtype=HALF)
BRAINS = args(Q, K, K, dtype=BRAIN)
PAD = args(Q, K, K, keep(2, 1, 1, 7))
ADD = args(Q, K, K, fill(2, 1, 1, 7))
SQUARE = args(X, X, X)
TRI = causal(6, 6)
SINKS = args(Q, K, K, bias(4))


def F(name, fn, make=QKV, level=1, **more):
    return S(name, fn, make, scale=ROOT, level=level, **more)


def L(name, fn, make=QKV, **more):
    """A form of the second level."""
    return F(name, fn, make, 2, **more)


def Z(name, fn, make=SINKS, **more):
    """A sink: one more logit for each head, which has no value."""
    return S(name, fn, make, scale=ROOT, level=2, ref=more.pop("ref", sunk), heads=more.pop("heads", (4, 4)), **more)


def sunk(q, k, v, sinks):
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=ROOT, sinks=sinks)


def sunk_at_zero(q, k, v):
    return sunk(q, k, v, mx.zeros(q.shape[1], dtype=q.dtype))


def einsum_late(q, k, v):
    x = scores(q, k)
    w = mx.exp(x - x.max(axis=-1, keepdims=True))
    return mx.einsum("bhqk,bhkd->bhqd", w, v) / w.sum(axis=-1, keepdims=True)


def split_heads(q, k, v, sinks):
    k, v = (mx.broadcast_to(x[:, :, None], (6, 2, 2, 8)) for x in (k, v))
    column = mx.broadcast_to(sinks.reshape(2, 2, 1, 1), (2, 2, 6, 1))
    x = mx.einsum("qhmd,khmd->hmqk", q, k) * ROOT + mx.triu(mx.full((6, 6), -INF), 1)
    p = sm(mx.concatenate([x, column], axis=-1))[..., :-1]
    return mx.einsum("hmqk,khmd->qhmd", p, v)


def split_heads_plainly(q, k, v, sinks):
    k, v = (x.transpose(1, 0, 2)[None] for x in (k, v))
    q = q.transpose(1, 2, 0, 3).reshape(1, 4, 6, 8)
    output = mx.fast.scaled_dot_product_attention(q, k, v, scale=ROOT, mask="causal", sinks=sinks)
    return output.reshape(2, 2, 6, 8).transpose(2, 0, 1, 3)


def small(number):
    """A softmax with a number below the line, against a division by zero that cannot be."""

    def soft(x):
        e = mx.exp(x - x.max(axis=-1, keepdims=True))
        return e / (e.sum(axis=-1, keepdims=True) + number)

    return soft


def scores(q, k):
    return q @ T(k) * ROOT


def total(x):
    return mx.sum(x, axis=-1, keepdims=True)


def top(x):
    return mx.max(x, axis=-1, keepdims=True)


def exp(x):
    return mx.exp(x - top(x))


def decomposed(x):
    e = exp(x)
    return e / total(e)


def guarded(x):
    p = sm(x)
    return mx.where(mx.isnan(p), 0.0, p)


def late(x, v):
    e = exp(x)
    return (e @ v) / total(e)


def column(q, sinks):
    return mx.broadcast_to(sinks[None, :, None, None], (*q.shape[:3], 1))


def with_sink(q, k, v, sinks, shift=False):
    x = mx.concatenate([scores(q, k), column(q, sinks)], axis=-1)
    return sm(x - top(x) if shift else x)[..., :-1] @ v


def plus_one(q, k, v):
    e = mx.exp(scores(q, k))
    return (e / (1.0 + total(e))) @ v


def plus_one_stable(q, k, v):
    x = scores(q, k)
    m = mx.maximum(top(x), 0.0)
    e = mx.exp(x - m)
    return (e / (total(e) + mx.exp(-m))) @ v


USUAL = [
    F("axis 3", lambda q, k, v: mx.softmax(scores(q, k), axis=3) @ v),
    F("axis in a list", lambda q, k, v: mx.softmax(scores(q, k), axis=[-1]) @ v),
    F("precise", lambda q, k, v: mx.softmax(scores(q, k), axis=-1, precise=True) @ v),
    F("nn.softmax", lambda q, k, v: nn.softmax(scores(q, k), axis=-1) @ v),
    F("half", lambda q, k, v: sm(scores(q, k)) @ v, HALVES),
    F("bfloat16", lambda q, k, v: sm(scores(q, k)) @ v, BRAINS),
    F("half, precise", lambda q, k, v: mx.softmax(scores(q, k), axis=-1, precise=True) @ v, HALVES),
    F("cast up and down", lambda q, k, v: sm(scores(q, k).astype(FULL)).astype(HALF) @ v, HALVES),
    F(
        "cast up and down, bfloat16",
        lambda q, k, v: sm(scores(q, k).astype(FULL)).astype(q.dtype) @ v,
        BRAINS,
    ),
    F("cast before the scale", lambda q, k, v: sm((q @ T(k)).astype(FULL) * ROOT).astype(HALF) @ v, HALVES),
    F(
        "cast down, up and down",
        lambda q, k, v: sm(scores(q, k).astype(HALF).astype(FULL)).astype(HALF) @ v,
        HALVES,
    ),
    F("q and k cast up", lambda q, k, v: sm(scores(q.astype(FULL), k.astype(FULL))).astype(HALF) @ v, HALVES),
    F(
        "all cast up, the output down",
        lambda q, k, v: (sm(scores(q.astype(FULL), k.astype(FULL))) @ v.astype(FULL)).astype(HALF),
        HALVES,
    ),
    F(
        "the output stays up",
        lambda q, k, v: sm(scores(q, k).astype(FULL)) @ v.astype(FULL),
        HALVES,
    ),
    F(
        "weights cast down before v of half",
        lambda q, k, v: sm(scores(q, k)).astype(HALF) @ v,
        args(Q, K, lambda rng: mx.array(rng.standard_normal(K)).astype(HALF)),
    ),
    F("cast to what it is", lambda q, k, v: sm(scores(q, k).astype(FULL)).astype(FULL) @ v),
    F(
        "NaN guard, isnan",
        lambda q, k, v, m: guarded(mx.where(m, scores(q, k), -INF)) @ v,
        PAD,
        mask=KEEP,
        m=lambda m: m,
    ),
    F(
        "NaN guard, added mask",
        lambda q, k, v, m: guarded(scores(q, k) + m) @ v,
        ADD,
        mask=KEEP,
        m=lambda m: m,
    ),
    F("NaN guard without a mask", lambda q, k, v: guarded(scores(q, k)) @ v),
    F(
        "NaN guard on causal",
        lambda q, k, v: guarded(mx.where(TRI, scores(q, k), -INF)) @ v,
        SQUARE,
        mask="causal",
    ),
    F(
        "NaN guard by inequality",
        lambda q, k, v, m: (lambda p: mx.where(p != p, 0.0, p))(sm(scores(q, k) + m)) @ v,
        ADD,
        mask=KEEP,
        m=lambda m: m,
        level=2,
    ),
    F(
        "NaN guard by nan_to_num",
        lambda q, k, v: mx.nan_to_num(sm(mx.where(TRI, scores(q, k), -INF))) @ v,
        SQUARE,
        mask="causal",
        level=2,
    ),
    F(
        "NaN guard by equal scores (JAX)",
        lambda q, k, v, m: (
            (lambda x: mx.where(mx.all(x == -INF, axis=-1, keepdims=True), 0.0, sm(x)))(scores(q, k) + m) @ v
        ),
        ADD,
        mask=KEEP,
        m=lambda m: m,
        level=2,
    ),
    F(
        "NaN guard by any key",
        lambda q, k, v, m: mx.where(m.any(-1, keepdims=True), sm(mx.where(m, scores(q, k), -INF)), 0.0) @ v,
        PAD,
        mask=KEEP,
        m=lambda m: m,
        level=2,
    ),
    F("flat weights reshaped", lambda q, k, v: sm(scores(q, k).reshape(40, 7)).reshape(2, 4, 5, 7) @ v),
]

DECOMPOSED = [
    L("max, exp, sum, divide", lambda q, k, v: decomposed(scores(q, k)) @ v),
    L("without the max", lambda q, k, v: (lambda e: e / total(e))(mx.exp(scores(q, k))) @ v),
    L("times the reciprocal", lambda q, k, v: (lambda e: e * (1.0 / total(e)))(exp(scores(q, k))) @ v),
    L("times mx.reciprocal", lambda q, k, v: (lambda e: e * mx.reciprocal(total(e)))(exp(scores(q, k))) @ v),
    L(
        "less logsumexp",
        lambda q, k, v: (lambda x: mx.exp(x - mx.logsumexp(x, axis=-1, keepdims=True)))(scores(q, k)) @ v,
    ),
    L("exp of log_softmax", lambda q, k, v: mx.exp(nn.log_softmax(scores(q, k), axis=-1)) @ v),
    L("max first, then softmax", lambda q, k, v: (lambda x: sm(x - top(x)))(scores(q, k)) @ v),
    L(
        "max stopped, then softmax",
        lambda q, k, v: (lambda x: sm(x - mx.stop_gradient(top(x))))(scores(q, k)) @ v,
    ),
    L(
        "mean first, then softmax",
        lambda q, k, v: (lambda x: sm(x - x.mean(-1, keepdims=True)))(scores(q, k)) @ v,
    ),
    L("number first, then softmax", lambda q, k, v: sm(scores(q, k) - 5.0) @ v),
    L("normalised after the product", lambda q, k, v: late(scores(q, k), v)),
    L(
        "normalised after, without the max",
        lambda q, k, v: (lambda e: (e @ v) / total(e))(mx.exp(scores(q, k))),
    ),
    L(
        "normalised after, by the reciprocal",
        lambda q, k, v: (lambda e: (e @ v) * (1 / total(e)))(exp(scores(q, k))),
    ),
    L(
        "axes kept by hand",
        lambda q, k, v: (lambda e: e / mx.expand_dims(e.sum(-1), -1))(exp(scores(q, k))) @ v,
    ),
    L(
        "cast up, decomposed, cast down",
        lambda q, k, v: decomposed(scores(q, k).astype(FULL)).astype(HALF) @ v,
        HALVES,
    ),
    L(
        "decomposed with a mask",
        lambda q, k, v, m: decomposed(mx.where(m, scores(q, k), -1e9)) @ v,
        PAD,
        mask=KEEP,
        m=lambda m: m,
    ),
    L(
        "decomposed, causal",
        lambda q, k, v: decomposed(mx.where(TRI, scores(q, k), -INF)) @ v,
        SQUARE,
        mask="causal",
    ),
    L(
        "decomposed and guarded",
        lambda q, k, v: (lambda p: mx.where(mx.isnan(p), 0, p))(decomposed(scores(q, k))) @ v,
    ),
    S(
        "a power of two",
        lambda q, k, v: (lambda e: e / e.sum(-1, keepdims=True))(2.0 ** scores(q, k)) @ v,
        scale=ROOT * math.log(2),
        level=2,
    ),
    L("normalised after an einsum", einsum_late),
    L("plus a number too small to count", lambda q, k, v: small(1e-9)(scores(q, k)) @ v),
    L(
        "a number too small to count, plus",
        lambda q, k, v: (
            (lambda e: e / (1e-12 + e.sum(-1, keepdims=True)))(
                mx.exp(scores(q, k) - scores(q, k).max(-1, keepdims=True))
            )
            @ v
        ),
    ),
]

TRANSPOSED = [
    L("axis -2 of keys by queries", lambda q, k, v: T(mx.softmax(k @ T(q) * ROOT, axis=-2)) @ v),
    L(
        "axis 2 of keys by queries",
        lambda q, k, v: mx.softmax(k @ T(q) * ROOT, axis=2).transpose(0, 1, 3, 2) @ v,
    ),
    L(
        "axis 2 with heads last",
        lambda q, k, v: mx.softmax((scores(q, k)).transpose(0, 2, 3, 1), axis=2).transpose(0, 3, 1, 2) @ v,
    ),
    L(
        "axis 1 with keys first",
        lambda q, k, v: mx.softmax(scores(q, k).transpose(0, 3, 1, 2), axis=1).transpose(0, 2, 3, 1) @ v,
    ),
    L(
        "axis 0 of a permuted product",
        lambda q, k, v: mx.softmax(scores(q, k).transpose(3, 0, 1, 2), axis=0).transpose(1, 2, 3, 0) @ v,
    ),
]

SINK = [
    Z("sink column", with_sink),
    Z("sink column less the max (gpt-oss)", lambda q, k, v, s: with_sink(q, k, v, s, shift=True)),
    Z(
        "sink column first",
        lambda q, k, v, s: sm(mx.concatenate([column(q, s), scores(q, k)], axis=-1))[..., 1:] @ v,
    ),
    Z(
        "sink column with a causal mask",
        lambda q, k, v, s: sm(mx.concatenate([mx.where(TRI, scores(q, k), -INF), column(q, s)], -1))[..., :6] @ v,
        args(X, X, X, bias(4)),
        mask="causal",
        ref=lambda q, k, v, s: mx.fast.scaled_dot_product_attention(q, k, v, scale=ROOT, sinks=s, mask="causal"),
    ),
    Z(
        "sink column beside an added mask",
        lambda q, k, v, s, m: (
            sm(mx.concatenate([scores(q, k) + m, mx.broadcast_to(s[:, None, None], (2, 4, 5, 1))], -1))[..., :-1] @ v
        ),
        args(Q, K, K, bias(4), bias(2, 1, 5, 7)),
        mask="additive",
        ref=lambda q, k, v, s, m: mx.fast.scaled_dot_product_attention(q, k, v, scale=ROOT, sinks=s, mask=m),
    ),
    Z(
        "captured sinks",
        lambda q, k, v: with_sink(q, k, v, mx.array([0.5, 1.0, -1.0, 0.0])),
        QKV,
        ref=lambda q, k, v: sunk(q, k, v, mx.array([0.5, 1.0, -1.0, 0.0])),
    ),
    Z("zero column (add_zero_attn)", lambda q, k, v: with_sink(q, k, v, mx.zeros(4)), QKV, ref=sunk_at_zero),
    Z("plus one in the denominator", plus_one, QKV, ref=sunk_at_zero),
    Z("plus one in the denominator, stable", plus_one_stable, QKV, ref=sunk_at_zero),
    Z(
        "a key of zeros with a value of zeros",
        lambda q, k, v: (lambda z: sm(scores(q, mx.concatenate([k, z], axis=2))) @ mx.concatenate([v, z], axis=2))(
            mx.zeros((2, 4, 1, 8))
        ),
        QKV,
        ref=sunk_at_zero,
    ),
    Z(
        "heads on two axes, no batch, as gpt-oss spells it",
        split_heads,
        args((6, 2, 2, 8), (6, 2, 8), (6, 2, 8), bias(4)),
        ref=split_heads_plainly,
        mask="causal",
        heads=(4, 2),
    ),
]

LOWER = [
    L(
        "not below the lowest, decomposed",
        lambda q, k, v, m: decomposed(mx.maximum(scores(q, k) + m, FLOOR)) @ v,
        args(Q, K, K, bias(2, 1, 5, 7)),
        mask="additive",
        m=lambda m: m,
    ),
    L(
        "weights scaled and scaled back",
        lambda q, k, v: (sm(scores(q, k)) * 2.0) @ v * 0.5,
        ref=lambda q, k, v: attend(q, k, v, ROOT),
        heads=(4, 4),
    ),
]

SPELLINGS = [*USUAL, *DECOMPOSED, *TRANSPOSED, *SINK, *LOWER]
