"""Near-attentions whose scores are assigned to, whose weights are added to others, whose sums hold more."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from tests.negatives_base import ROOT, N, scores, trap, weights
from tests.spellings_base import INF, K, Q, T, X, args, attend, bias, const, keep, sm

SQUARE = args(X, X, X)
CUBE = args((4, 4, 4, 4), (4, 4, 4, 4), (4, 4, 4, 4))
BOTH = args(Q, K, K, Q, K)
HIDDEN = args(Q, K, K, Q, K, lambda _: mx.array([[True] * 7, [False] * 7])[:, None, None])
MIX, MIXED = const(4, 1, 1, 4), const(8, 3)


def in_place(change):
    def fn(q, k, v, *rest):
        x = scores(q, k)
        change(x, *rest)
        return sm(x) @ v

    return fn


def scaled(x):
    x[..., 2:] *= 0.25


def copied(x):
    x[..., :2] = x[..., 2:4]


def turned(x):
    x[..., 1:] = x.swapaxes(0, 1)[..., 1:]


def opened(x):
    x[..., 2:] = 0.0


def mirrored(x, m):
    x[:, ::-1, :, 2:] += m


def best(q, k):
    x = scores(q, k)
    return sm(mx.where(x < mx.topk(x, 3, axis=-1).min(-1, keepdims=True), -INF, x))


def guarded(q, k, v, p, c, m):
    """NaN of either is replaced in the difference, where the other's weights go with them."""
    both = sm(mx.where(m, scores(q, k), -INF)) - 0.5 * weights(p, c)
    return mx.where(mx.isnan(both), 0.0, both) @ v


def difference(q, k, v, p, c, *_):
    return attend(q, k, v, ROOT) - 0.5 * attend(p, c, v, ROOT)


def unshifted_sink(q, k, v, s):
    x = scores(q, k)
    e = mx.exp(x - x.max(-1, keepdims=True))
    return (e / (e.sum(-1, keepdims=True) + mx.exp(s))) @ v


def shifted_sink(q, k, v, s):
    """A sink less what is taken off the scores, which is not the same for all keys."""
    top = (v @ MIXED).max(-1)[:, :, None]
    e = mx.exp(scores(q, k) - top)
    return (e / (e.sum(-1, keepdims=True) + mx.exp(s - top))) @ v


def one_more(e):
    return e / (e.sum(-1, keepdims=True) + 0.5)


def floored(q, k, v, m):
    p = weights(q, k) * m
    return (p / mx.maximum(p.sum(-1, keepdims=True), 0.6)) @ v


def over_heads(q, k, v):
    p = weights(q, k)
    return (p / p.sum(1, keepdims=True)) @ v


def mixed(q, k, v):
    return sm(mx.conv2d(scores(q, k).transpose(0, 2, 3, 1), MIX).transpose(0, 3, 1, 2)) @ v


def distances(x):
    q, k, v = (x @ const(32, 32, seed=seed) for seed in (1, 2, 3))
    return sm(-mx.sqrt(mx.square(q[:, :, None] - k[:, None]).sum(-1))) @ v


def additive(x):
    q, k, v = (x @ const(32, 32, seed=seed) for seed in (1, 2, 3))
    return sm((mx.tanh(q[:, :, None] + k[:, None]) @ const(32, 1))[..., 0]) @ v


def selective(q, k, v):
    x = scores(q, k)
    return sm(x - mx.cumsum(nn.relu(x[:, :1]), axis=-2)) @ v


ASSIGNED = [
    N("assigned: a piece scaled in place", in_place(scaled), "assigned"),
    N("assigned: scores of other keys", in_place(copied), "assigned"),
    N("assigned: scores of other heads", in_place(turned), "assigned", CUBE),
    N("assigned: heads in turn", in_place(mirrored), "assigned", args(Q, K, K, bias(4, 5, 5))),
    N("assigned: a number of weight", in_place(opened), "weight"),
    N("assigned: multiplied at some keys", lambda q, k, v: sm(scores(q, k).at[..., 2:].multiply(0)) @ v, "assigned"),
    N(
        "assigned: padded on both sides",
        lambda q, k, v: sm(mx.pad(scores(q, k), 1))[..., 1:-1, 1:-1][1:-1, 1:-1] @ v,
        "padded",
    ),
]
ADDED = [
    N(
        "added: the best scores of another",
        lambda q, k, v, p, c: (weights(q, k) - 0.5 * best(p, c)) @ v,
        "top-k",
        BOTH,
        like=difference,
    ),
    N(
        "added: weights turned round",
        lambda q, k, v: (lambda p: (p + T(p)) @ v)(weights(q, k)),
        "another axis|added",
        SQUARE,
    ),
    N("added: weights squared", lambda q, k, v: (lambda p: (p + p * p) @ v)(weights(q, k)), "added"),
    N("added: NaN replaced in the difference", guarded, "another mask", HIDDEN, like=difference),
    N(
        "added: an array",
        lambda q, k, v, b: (weights(q, k) - b) @ v,
        "subtracted",
        args(Q, K, K, bias(5, 7)),
    ),
    N(
        "parted: one head of several",
        lambda q, k, v: weights(q, k)[:, :1] @ v,
        "slice",
        like=lambda q, k, v: attend(q, k, v, ROOT),
    ),
]
SUMS = [
    N("sums: a sink without the shift", unshifted_sink, "own sum", args(Q, K, K, (4, 1, 1))),
    N("sums: a sink less what varies along the keys", shifted_sink, "along the keys", args(Q, K, K, (4, 1, 1))),
    N(
        "sums: a number above the line",
        lambda q, k, v: (lambda e: ((e + 0.5) / e.sum(-1, keepdims=True)) @ v)(mx.exp(scores(q, k))),
        "own sum",
    ),
    N(
        "sums: powers of two over more than their sum",
        lambda q, k, v: one_more(mx.power(2.0, (x := scores(q, k)) - x.max(-1, keepdims=True))) @ v,
        "own sum",
    ),
    N(
        "sums: over more than their sum, of half of the heads",
        lambda q, k, v: (
            (lambda p: p[:, :2] - p[:, 2:])(one_more(mx.exp((x := scores(q, k)) - x.max(-1, keepdims=True)))) @ v[:, :2]
        ),
        "own sum",
        like=None,
    ),
    N("sums: no smaller than a large number", floored, "weights", args(Q, K, K, keep(2, 1, 1, 7))),
    N("sums: normalised over the heads", over_heads, "weights", CUBE),
]
WORDS = [
    N("words: heads mixed by a convolution", mixed, "convolution"),
    N("words: distances", distances, "sqrt", args((2, 6, 32)), like=None),
    N("words: scores made pair by pair", additive, "for each row", args((2, 6, 32)), like=None),
    N("words: a mask made from the scores", selective, "scores themselves", SQUARE),
    N("words: a threshold", lambda q, k, v: sm(mx.where((x := scores(q, k)) < 0, -INF, x)) @ v, "scores themselves"),
]
NEGATIVES = [*ASSIGNED, *ADDED, *SUMS, *WORDS]
TRAPS = [
    trap(
        "every other head, less the others of the next",
        lambda q, k, v: (lambda p: p[:, ::2] - 0.5 * p[:, ::-1][:, ::2])(weights(q, k)) @ v[:, :2],
        args(Q, K, K),
        like=None,
    ),
    trap(
        "heads parted across their halves",
        lambda q, k, v: (lambda p: p[:, :2] - 0.5 * p[:, 1:3])(weights(q, k)) @ v[:, :2],
        args(Q, K, K),
        like=None,
    ),
]
