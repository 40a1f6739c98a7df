"""The shapes that other compilers look for: OpenVINO, tt-mlir, burn-onnx, MIGraphX, XLA."""

from __future__ import annotations

import mlx.core as mx

from tests.spellings_base import (
    INF,
    KEEP,
    LOWEST,
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
    heads_first,
    keep,
    sm,
)

ROOT = 8**-0.5
BRAIN, FULL, HALF = mx.bfloat16, mx.float32, mx.float16
ADD = args(Q, K, K, bias(2, 1, 5, 7))
TRI = causal(6, 6)


def P(peer, name, fn, make=QKV, scale=ROOT, level=1, **more):
    return S(f"{peer}: {name}", fn, make, scale=scale, level=level, **more)


def same(m):
    return m


def total(x):
    return x.sum(axis=-1, keepdims=True)


def stable(x):
    e = mx.exp(x - mx.broadcast_to(x.max(axis=-1, keepdims=True), x.shape))
    return e / mx.broadcast_to(total(e), x.shape)


def expand(x, n):
    b, h, t, d = x.shape
    return mx.broadcast_to(x.reshape(b, h, 1, t, d), (b, h, n, t, d)).reshape(b, h * n, t, d)


def openvino_sinks(q, k, v, s):
    x = mx.concatenate([q @ T(k.reshape(2, 4, 7, 8)) * 0.25, mx.broadcast_to(s, (2, 4, 1, 1))], -1)
    return heads_first(sm(x - x.max(-1, keepdims=True))[..., :-1] @ v.reshape(2, 4, 7, 8))


def openvino_sinks_kernel(q, k, v, s):
    k, v = k.reshape(2, 4, 7, 8), v.reshape(2, 4, 7, 8)
    sinks = s.reshape(4).astype(q.dtype)
    return heads_first(mx.fast.scaled_dot_product_attention(q, k, v, scale=0.25, sinks=sinks))


def with_packed(q, k, v):
    a, b = mx.split(mx.concatenate([q, v], axis=3), 2, axis=3)
    return sm(a @ k) @ b


OPENVINO = [
    P(
        "openvino",
        "implicit transpose",
        lambda q, k, v, m: sm((q @ k) * 0.25 + m) @ v,
        args(Q, (2, 4, 8, 7), K, bias(4, 5, 7)),
        0.25,
        mask="additive",
        ref=lambda q, k, v, m: attend(q, T(k), v, 0.25, m),
        heads=(4, 4),
    ),
    P(
        "openvino",
        "softmax on axis 3",
        lambda q, k, v: mx.softmax((q @ T(k)) * 0.125, axis=3) @ v,
        QKV,
        0.125,
    ),
    P(
        "openvino",
        "keys in an odd order",
        lambda q, k, v: sm(q @ k.transpose(1, 2, 3, 0)) @ v,
        args((1, 8, 5, 8), (7, 1, 8, 8), (1, 8, 7, 8)),
        1.0,
        ref=lambda q, k, v: attend(q, k.transpose(1, 2, 0, 3), v),
        heads=(8, 8),
    ),
    P(
        "openvino",
        "rank three around",
        lambda q, k, v, m: (
            sm(q.reshape(4, 5, 8) @ k.reshape(4, 7, 8).transpose(0, 2, 1) + m) @ v.reshape(4, 7, 8)
        ).reshape(1, 4, 5, 8),
        args((1, 4, 5, 8), (1, 4, 7, 8), (1, 4, 7, 8), bias(4, 5, 7)),
        1.0,
        mask="additive",
        m=same,
        heads=(None, None),
    ),
    P(
        "openvino",
        "rank two around",
        lambda q, k, v, m: (sm(q.reshape(5, 8) @ k.reshape(8, 7) + m) @ v.reshape(7, 8)).reshape(1, 1, 5, 8),
        args((1, 1, 5, 8), (1, 8, 1, 7), (1, 1, 7, 8), bias(1, 1, 5, 7)),
        1.0,
        mask="additive",
        ref=lambda q, k, v, m: attend(q, T(k.reshape(1, 1, 8, 7)), v, 1.0, m),
        heads=(1, 1),
        level=2,
    ),
    P(
        "openvino",
        "concatenated and split",
        with_packed,
        args((1, 1, 5, 8), (1, 1, 8, 5), (1, 1, 5, 8)),
        1.0,
        ref=lambda q, k, v: attend(q, T(k), v),
        heads=(1, 1),
    ),
    P(
        "openvino",
        "reshapes in a chain",
        lambda q, k, v: (lambda a, b, c: sm(a @ T(b)) @ c)(
            *(x.reshape(1, 5, 1, 8).reshape(1, 1, 5, 8).reshape(1, 5, 8) for x in (q, k, v))
        )[None],
        args((1, 5, 8), (1, 5, 8), (1, 5, 8)),
        1.0,
        ref=lambda q, k, v: attend(q[None], k[None], v[None]),
    ),
    P(
        "openvino",
        "sinks",
        openvino_sinks,
        args((2, 4, 1, 8), (2, 2, 2, 7, 8), (2, 2, 2, 7, 8), bias(1, 4, 1, 1)),
        0.25,
        ref=openvino_sinks_kernel,
        level=2,
    ),
    P(
        "openvino",
        "v scaled",
        lambda q, k, v: sm((q * 0.5) @ T(k * 0.5)) @ (v * 3.0),
        QKV,
        0.25,
        ref=lambda q, k, v: attend(q, k, v * 3.0, 0.25),
        heads=(4, 4),
    ),
]


def tt_simple(q, k, v, m):
    x = (q @ T(k)) * mx.full((1, 1, 1, 1), 0.125, dtype=q.dtype) + m
    return stable(x.astype(FULL)).astype(q.dtype) @ v


def tt_safe(q, k, v, m):
    a, b = q.astype(FULL) * 0.5, T(k.astype(FULL)) * 0.5
    x = a @ b + m.astype(FULL)
    empty = mx.logical_not(mx.any(mx.logical_not(x == -INF), axis=-1, keepdims=True))
    p = mx.where(mx.broadcast_to(empty, x.shape), 0.0, stable(x))
    return (p @ v.astype(FULL)).astype(q.dtype)


def tt(name, fn, key_heads, scale):
    """tt-mlir's six tests: two softmax spellings, each with as many, one and fewer key heads."""
    make = args((1, 4, 5, 8), (1, key_heads, 7, 8), (1, key_heads, 7, 8), fill(1, 1, 5, 7, dtype=BRAIN), dtype=BRAIN)
    run = fn if key_heads == 4 else lambda q, k, v, m: fn(q, expand(k, 4 // key_heads), expand(v, 4 // key_heads), m)
    return P("tt-mlir", name, run, make, scale, mask=KEEP, m=same, level=2)


TT_MLIR = [
    tt("simple softmax, MHA", tt_simple, 4, 0.125),
    tt("simple softmax, MQA", tt_simple, 1, 0.125),
    tt("simple softmax, GQA", tt_simple, 2, 0.125),
    tt("safe softmax, MHA", tt_safe, 4, 0.25),
    tt("safe softmax, MQA", tt_safe, 1, 0.25),
    tt("safe softmax, GQA", tt_safe, 2, 0.25),
]

BURN = [
    P(
        "burn",
        "post scaled",
        lambda q, k, v, m: sm(q @ T(k) / 4.0 + m) @ v,
        ADD,
        0.25,
        mask="additive",
        m=same,
    ),
    P(
        "burn",
        "pre scaled, keys straight to columns (RF-DETR)",
        lambda q, k, v: sm((q.transpose(0, 2, 1, 3) * 0.5) @ (k.transpose(0, 2, 3, 1) * 0.5)) @ v.transpose(0, 2, 1, 3),
        args((2, 5, 4, 8), (2, 7, 4, 8), (2, 7, 4, 8)),
        0.25,
        ref=lambda *a: attend(*map(heads_first, a), 0.25),
        heads=(4, 4),
    ),
    P("burn", "scaled on q alone", lambda q, k, v: sm((q * ROOT) @ T(k)) @ v),
]

MIGRAPHX = [
    P("migraphx", "dot, softmax, dot", lambda q, k, v: sm(q @ T(k)) @ v, QKV, 1.0),
    P(
        "migraphx",
        "a literal broadcast over the scores",
        lambda q, k, v: sm((q @ T(k)) * mx.broadcast_to(mx.array(0.25), (2, 4, 5, 7))) @ v,
        QKV,
        0.25,
    ),
    P(
        "migraphx",
        "where a literal, then softmax",
        lambda q, k, v, m: sm(mx.where(m, (q @ T(k)) * 0.25, mx.broadcast_to(mx.array(LOWEST), (2, 4, 5, 7)))) @ v,
        args(Q, K, K, keep(2, 4, 5, 7)),
        0.25,
        mask=KEEP,
        m=same,
    ),
    P(
        "migraphx",
        "bias of every score",
        lambda q, k, v, m: sm(q @ T(k) + m) @ v,
        args(Q, K, K, bias(2, 4, 5, 7)),
        1.0,
        mask="additive",
        m=same,
    ),
    P(
        "migraphx",
        "cast around softmax",
        lambda q, k, v: sm((q @ T(k) * 0.25).astype(FULL)).astype(HALF) @ v,
        args(Q, K, K, dtype=HALF),
        0.25,
    ),
    P(
        "migraphx",
        "key values in a cache, lengths at run time",
        lambda q, k, v, n: sm(mx.where(mx.arange(7) > n, -INF, q @ T(k) * 0.25)) @ v,
        args((2, 4, 1, 8), K, K, lambda rng: mx.array(4)),
        0.25,
        mask=KEEP,
        m=lambda n: mx.arange(7) <= n,
    ),
]


def xla(q, k, v):
    return stable((q @ T(k)) * ROOT) @ v


XLA = [
    P("xla", "bmm, scale, softmax, bmm", xla, level=2),
    P(
        "xla",
        "bmm, scale, bias, softmax, bmm",
        lambda q, k, v, m: stable((q @ T(k)) * ROOT + m) @ v,
        ADD,
        mask="additive",
        m=same,
        level=2,
    ),
    P(
        "xla",
        "bmm, scale, bias, mask, softmax, bmm",
        lambda q, k, v, b, m: stable(mx.where(m, (q @ T(k)) * ROOT + b, LOWEST)) @ v,
        args(Q, K, K, bias(1, 4, 5, 7), keep(2, 1, 5, 7)),
        mask="additive",
        m=lambda b, m: mx.where(m, b, LOWEST),
        level=2,
    ),
    P(
        "xla",
        "half, softmax in float",
        lambda q, k, v: stable((q @ T(k)).astype(FULL) * ROOT).astype(HALF) @ v,
        args(Q, K, K, dtype=HALF),
        level=2,
    ),
    P(
        "xla",
        "sequence before heads, one einsum each",
        lambda q, k, v: mx.einsum("bhqk,bkhd->bqhd", stable(mx.einsum("bqhd,bkhd->bhqk", q, k) * ROOT), v),
        args((2, 5, 4, 8), (2, 7, 4, 8), (2, 7, 4, 8)),
        ref=lambda *a: heads_first(attend(*map(heads_first, a), ROOT)),
        heads=(4, 4),
        level=2,
    ),
    P(
        "xla",
        "causal by iotas",
        lambda q, k, v: stable(mx.where(mx.arange(6)[:, None] < mx.arange(6), -INF, (q @ T(k)) * ROOT)) @ v,
        args(X, X, X),
        mask="causal",
        level=2,
    ),
    P(
        "xla",
        "causal by iotas, added in bfloat16",
        lambda q, k, v: (
            sm(
                q @ T(k) * ROOT
                + mx.where(
                    mx.arange(6)[:, None] < mx.arange(6),
                    mx.array(-2.3819763e38, dtype=BRAIN),
                    mx.array(0.0, dtype=BRAIN),
                )
            )
            @ v
        ),
        args(X, X, X, dtype=BRAIN),
        mask="causal",
        level=2,
    ),
]

SPELLINGS = [*OPENVINO, *TT_MLIR, *BURN, *MIGRAPHX, *XLA]
