"""Weights of several softmaxes added up, and weights whose heads are parted, before they meet the values."""

from __future__ import annotations

import mlx.core as mx

from tests.spellings_base import INF, K, Q, S, T, X, args, attend, num, sm
from tests.spellings_shapes import ROOT

# queries and keys of two attentions, with one array of values
BOTH = args(Q, K, K, Q, K)
SELVES = args(X, X, X, X, X)
PAIRS = args(Q, K, (2, 2, 7, 8))
LOWER = mx.array([[j <= i for j in range(6)] for i in range(6)])


def weights(q, k, mask=None):
    scores = q @ T(k) * ROOT
    return sm(scores if mask is None else mx.where(mask, scores, -INF))


def two(q, k, v, p, c, a=0.5, mask=None):
    return attend(q, k, v, ROOT, mask) - a * attend(p, c, v, ROOT, mask)


def parted(q, k, v, a=0.5):
    """Heads 0 and 2, less `a` times heads 1 and 3, which meet the same values."""
    v = mx.repeat(v, 2, axis=1)
    both = attend(q, k, v, ROOT)
    return both[:, ::2] - a * both[:, 1::2]


def official(q, k, v, a=0.5):
    p = weights(q, k).reshape(2, 2, 2, 5, 7)
    return (p[:, :, 0] - a * p[:, :, 1]) @ v


def chunks(q, k, v, a):
    first, second = mx.split(weights(q, k), 2, axis=1)
    return (first - a * second) @ v


def halves(q, k, v, a):
    both = attend(q, k, mx.concatenate([v, v], 1), ROOT)
    return both[:, :2] - a * both[:, 2:]


def D(name, fn, make=BOTH, *, ref=two, count=2, mask="none"):
    return S(name, fn, make, scale=ROOT, ref=ref, mask=mask, count=count, level=2)


def half(q, k, v, p, c):
    """Each row as a mean of both."""
    return (attend(q, k, v, ROOT) + attend(p, c, v, ROOT)) / 2


def gated(q, k, v, p, c, g):
    return g * attend(q, k, v, ROOT) + (1 - g) * attend(p, c, v, ROOT)


def keyed(q, k, v, p, c):
    return attend(q, k, v, ROOT) - 0.5 * attend(p, c, v, ROOT) + attend(q, c, v, ROOT)


SPELLINGS = [
    D("differential, two products", lambda q, k, v, p, c: (weights(q, k) - 0.5 * weights(p, c)) @ v),
    D(
        "differential, a number at run time",
        lambda q, k, v, p, c, a: (weights(q, k) - a * weights(p, c)) @ v,
        args(Q, K, K, Q, K, num(0.3)),
    ),
    D("differential, one softmax of all heads", official, PAIRS, ref=parted, count=1),
    D(
        "differential, every other head",
        lambda q, k, v: (lambda p: p[:, ::2] - 0.5 * p[:, 1::2])(weights(q, k)) @ v,
        PAIRS,
        ref=parted,
        count=1,
    ),
    D("differential, heads in halves", chunks, args(Q, K, (2, 2, 7, 8), (2, 1, 1)), ref=halves, count=1),
    D(
        "differential, causal",
        lambda q, k, v, p, c: (weights(q, k, LOWER) - 0.5 * weights(p, c, LOWER)) @ v,
        SELVES,
        ref=lambda q, k, v, p, c: two(q, k, v, p, c, mask="causal"),
        mask="causal",
    ),
    D("the mean of two", lambda q, k, v, p, c: ((weights(q, k) + weights(p, c)) / 2) @ v, ref=half),
    D(
        "a gate for each head",
        lambda q, k, v, p, c, g: (g * weights(q, k) + (1 - g) * weights(p, c)) @ v,
        args(Q, K, K, Q, K, (4, 1, 1)),
        ref=gated,
    ),
    D(
        "a gate for each query",
        lambda q, k, v, p, c, g: (g * weights(q, k) + (1 - g) * weights(p, c)) @ v,
        args(Q, K, K, Q, K, (2, 4, 5, 1)),
        ref=gated,
    ),
    D(
        "three, summed in turn",
        lambda q, k, v, p, c: ((weights(q, k) - 0.5 * weights(p, c)) + weights(q, c)) @ v,
        ref=keyed,
        count=3,
    ),
    D(
        "the difference, and one alone",
        lambda q, k, v, p, c: (lambda a, b: (a - b) @ v + a @ v)(weights(q, k), weights(p, c)),
        ref=lambda q, k, v, p, c: 2 * two(q, k, v, p, c, 0.5),
    ),
    D(
        "turned round, from the right",
        lambda q, k, v, p, c: T(T(v) @ T(weights(q, k) - 0.5 * weights(p, c))),
    ),
    D(
        "einsum, batch and time first",
        lambda q, k, v, p, c: mx.einsum("bhqk,bhkd->bqhd", weights(q, k) - 0.5 * weights(p, c), v),
        ref=lambda *a: two(*a).transpose(0, 2, 1, 3),
    ),
    D(
        "the same weights twice",
        lambda q, k, v: (lambda p: (p + 0.5 * p) @ v)(weights(q, k)),
        args(Q, K, K),
        ref=lambda q, k, v: 1.5 * attend(q, k, v, ROOT),
        count=1,
    ),
]
