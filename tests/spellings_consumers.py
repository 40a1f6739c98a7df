"""Consumers: outputs read twice, weights and scores returned, shared operands, several regions."""

from __future__ import annotations

import mlx.core as mx

from tests.spellings_base import (
    INF,
    K,
    Q,
    S,
    T,
    X,
    args,
    attend,
    causal,
    const,
    heads_first,
    keep,
    merge,
    sm,
    split,
)

ROOT = 8**-0.5
W = const(32, 32)
TRI = causal(6, 6)
SQUARE = args(X, X, X)


def U(name, fn, ref, make=None, level=1, heads=(4, 4), **more):
    return S(name, fn, make, scale=ROOT, ref=ref, heads=heads, level=level, **more)


def naive(q, k, v):
    return sm(scores(q, k)) @ v


def scores(q, k):
    return q @ T(k) * ROOT


def kernel(q, k, v, mask=None):
    return attend(q, k, v, ROOT, mask)


def weights(q, k):
    return sm(scores(q, k))


def with_weights(q, k, v):
    p = weights(q, k)
    return p @ v, p


def with_scores(q, k, v):
    x = scores(q, k)
    return sm(x) @ v, x


def masked_with_weights(q, k, v):
    p = sm(mx.where(TRI, scores(q, k), -INF))
    return p @ v, p


def layer(x, w):
    q, k, v = (split(x @ w[i], 4) for i in range(3))
    return x + merge(naive(q, k, v)) @ w[3]


def kernel_layer(x, w):
    q, k, v = (split(x @ w[i], 4) for i in range(3))
    return x + merge(kernel(q, k, v)) @ w[3]


def stacked(step):
    def run(x, w):
        for _ in range(3):
            x = step(x, w)
        return x

    return run


def sequence(step):
    """A Python loop over single queries, each with its own attention."""
    return lambda q, k, v: mx.concatenate([step(q[:, :, i : i + 1], k, v) for i in range(3)], axis=2)


LAYERS = args((2, 6, 32), lambda rng: mx.array((rng.standard_normal((4, 32, 32)) * 0.2).astype("float32")))

SPELLINGS = [
    U(
        "output read twice",
        lambda q, k, v: (lambda o: o + mx.tanh(o))(naive(q, k, v)),
        lambda q, k, v: (lambda o: o + mx.tanh(o))(kernel(q, k, v)),
    ),
    U("output returned twice", lambda q, k, v: (naive(q, k, v),) * 2, lambda q, k, v: (kernel(q, k, v),) * 2),
    U(
        "output and its sum",
        lambda q, k, v: (lambda o: (o, o.sum(-1)))(naive(q, k, v)),
        lambda q, k, v: (lambda o: (o, o.sum(-1)))(kernel(q, k, v)),
    ),
    U(
        "output in a dictionary",
        lambda q, k, v: {"out": naive(q, k, v)},
        lambda q, k, v: {"out": kernel(q, k, v)},
    ),
    U("residual", lambda q, k, v: q + naive(q, k, v), lambda q, k, v: q + kernel(q, k, v)),
    U("projected", lambda q, k, v: merge(naive(q, k, v)) @ W, lambda q, k, v: merge(kernel(q, k, v)) @ W),
    U(
        "gated after",
        lambda q, k, v: naive(q, k, v) * mx.sigmoid(q),
        lambda q, k, v: kernel(q, k, v) * mx.sigmoid(q),
    ),
    U(
        "keys and values returned",
        lambda q, k, v: (naive(q, k, v), k, v),
        lambda q, k, v: (kernel(q, k, v), k, v),
    ),
    U(
        "keys turned and returned",
        lambda q, k, v: (lambda t: (sm(q @ t * ROOT) @ v, t))(T(k)),
        lambda q, k, v: (kernel(q, k, v), T(k)),
    ),
    U(
        "scaled queries returned",
        lambda q, k, v: (lambda s: (sm(s @ T(k)) @ v, s))(q * ROOT),
        lambda q, k, v: (kernel(q, k, v), q * ROOT),
    ),
    U("weights returned", with_weights, lambda q, k, v: (kernel(q, k, v), weights(q, k)), level=2),
    U(
        "weights averaged over heads",
        lambda q, k, v: (lambda p: (p @ v, p.mean(1)))(weights(q, k)),
        lambda q, k, v: (kernel(q, k, v), weights(q, k).mean(1)),
        level=2,
    ),
    U("scores returned", with_scores, lambda q, k, v: (kernel(q, k, v), scores(q, k)), level=2),
    U(
        "weights returned, causal",
        masked_with_weights,
        lambda q, k, v: (kernel(q, k, v, "causal"), sm(mx.where(TRI, scores(q, k), -INF))),
        SQUARE,
        mask="causal",
        level=2,
    ),
    U(
        "shared keys, two regions",
        lambda q, k, v: naive(q, k, v) + naive(q * 2.0 + 1.0, k, v),
        lambda q, k, v: kernel(q, k, v) + kernel(q * 2.0 + 1.0, k, v),
        count=2,
    ),
    U(
        "self, then cross",
        lambda q, k, v: naive(naive(q, q, q), k, v),
        lambda q, k, v: kernel(kernel(q, q, q), k, v),
        count=2,
    ),
    U("three layers", stacked(layer), stacked(kernel_layer), LAYERS, count=3),
    U("a loop over queries", sequence(naive), sequence(kernel), count=3),
    U(
        "the same mask for two regions",
        lambda q, k, v, m: (lambda a: sm(mx.where(m, scores(a, k), -INF)) @ v)(sm(mx.where(m, scores(q, k), -INF)) @ v),
        lambda q, k, v, m: kernel(kernel(q, k, v, m), k, v, m),
        args(Q, K, K, keep(2, 1, 1, 7)),
        mask="boolean|additive",
        count=2,
    ),
    U("inside mx.compile", lambda q, k, v: mx.compile(naive)(q, k, v), lambda q, k, v: kernel(q, k, v)),
    U(
        "turned and merged after",
        lambda q, k, v: heads_first(naive(q, k, v)).reshape(2, 5, 32),
        lambda q, k, v: merge(kernel(q, k, v)),
    ),
    U(
        "cast after",
        lambda q, k, v: naive(q, k, v).astype(mx.float16),
        lambda q, k, v: kernel(q, k, v).astype(mx.float16),
    ),
    U(
        "operands computed",
        lambda q, k, v: naive(mx.tanh(q), mx.sin(k), v * v),
        lambda q, k, v: kernel(mx.tanh(q), mx.sin(k), v * v),
    ),
    U(
        "values turned before",
        lambda q, k, v: naive(q, k, T(v)),
        lambda q, k, v: kernel(q, k, T(v)),
        args(Q, K, (2, 4, 8, 7)),
    ),
    U(
        "zero added, twice turned",
        lambda q, k, v: T(T(naive(q, k, v))) + 0.0,
        lambda q, k, v: kernel(q, k, v),
    ),
]
