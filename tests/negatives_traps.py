"""Traps: programs that the kernel can express, but where a careless rewrite gives the answer of another one.

Whether they are fused is not asked here, only that their answer stays: shapes agree on all sides on purpose.
"""

from __future__ import annotations

import mlx.core as mx

from tests.negatives_base import ROOT, scores, trap, weights
from tests.spellings_base import (
    INF,
    LOWEST,
    QKV,
    K,
    Q,
    T,
    args,
    attend,
    bias,
    causal,
    fill,
    heads_first,
    keep,
    num,
    sm,
)

SIDE = (4, 4, 4, 4)
CUBE = args(SIDE, SIDE, SIDE)
CUBE_ADD = args(SIDE, SIDE, SIDE, bias(4, 4))
CUBE_ADD3 = args(SIDE, SIDE, SIDE, bias(4, 4, 4))
GQA = args(Q, (2, 2, 7, 8), (2, 2, 7, 8))
TALL = args((2, 4, 7, 8), (2, 4, 5, 8), (2, 4, 5, 8))
SQUARE = args((2, 4, 6, 8), (2, 4, 6, 8), (2, 4, 6, 8))
HALF = mx.float16


def naive(q, k, v):
    return weights(q, k) @ v


def both(change):
    """Keys and values changed alike."""
    return lambda q, k, v: naive(q, change(k), change(v))


def tile(x):
    return mx.tile(x, (1, 2, 1, 1))


def expand(x):
    return mx.broadcast_to(x[:, None], (2, 2, 2, 7, 8)).reshape(2, 4, 7, 8)


def taken(*heads):
    return both(lambda x: mx.take(x, mx.array(heads), axis=1))


def wrong_groups(q, k, v):
    x = q.reshape(2, 2, 2, 5, 8) @ T(k[:, None]) * ROOT
    return (sm(x) @ v[:, None]).reshape(2, 4, 5, 8)


def groups_turned(q, k, v):
    x = q.reshape(2, 2, 2, 5, 8) @ T(k[:, :, None]) * ROOT
    return (sm(x) @ v[:, :, None]).swapaxes(1, 2).reshape(2, 4, 5, 8)


def merged_turned(q, k, v):
    """Merged as batch by heads, split as heads by batch."""
    q, k, v = (x.reshape(16, 4, 4) for x in (q, k, v))
    return naive(q, k, v).reshape(4, 4, 4, 4).swapaxes(0, 1)


def permuted(*axes):
    return lambda q, k, v: sm(q @ k.transpose(*axes) * ROOT) @ v


def masked(value, make=lambda x: x):
    return lambda q, k, v, m: sm(make(mx.where(m, scores(q, k), value))) @ v


def shifted(by, value=-INF):
    """A triangle whose first rows are empty."""
    return lambda q, k, v: sm(mx.where(mx.tri(6, 6, -by, dtype=mx.bool_), scores(q, k), value)) @ v


def kept(q, k, v, m):
    return attend(q, k, v, ROOT, m)


def grouped(q, k, v):
    return attend(q, k, v, ROOT)


PADDED = args(Q, K, K, keep(2, 1, 1, 7))


def additive_attention(q, k, v, w):
    return sm((mx.tanh(q[:, :, :, None] + k[:, :, None]) @ w)[..., 0]) @ v


def lower_right(value):
    """More queries than keys: the first rows are empty."""
    return lambda q, k, v: sm(mx.where(causal(7, 5), scores(q, k), value)) @ v


def beside(change):
    """A sink beside scores that are changed."""
    sink = mx.broadcast_to(mx.array([0.5, -0.5, 1, 0]).reshape(4, 1, 1), (2, 4, 5, 1))
    return lambda q, k, v: sm(mx.concatenate([change(scores(q, k)), sink], -1))[..., :-1] @ v


def one_more(change=lambda x: x, turn=lambda x: x):
    """One more below the line, less the largest score."""

    def fn(q, k, v):
        x = change(scores(q, k))
        top = x.max(-1, keepdims=True)
        e = mx.exp(x - top)
        return (e / (e.sum(-1, keepdims=True) + mx.exp(-turn(top)))) @ v

    return fn


def kept_finite(turn):
    """Less the largest score of another row, the sum may be as small as what keeps it from zero."""

    def fn(q, k, v):
        x = q @ T(k) * 12
        e = mx.exp(x - turn(x.max(-1, keepdims=True)))
        return (e / (e.sum(-1, keepdims=True) + 1e-9)) @ v

    return fn


def two_pieces(change):
    def fn(q, k, v):
        p = sm(mx.concatenate([change(scores(q, k[:, :, :4])), scores(q, k[:, :, 4:])], -1))
        return p[..., :4] @ v[:, :, :4] + p[..., 4:] @ v[:, :, 4:]

    return fn


def batch_turned(x):
    return x.swapaxes(0, 1)


def largest_off(x):
    return x - x.max(-1, keepdims=True)


TRAPS = [
    trap("a number added beside a sink", beside(lambda x: x + 2.0), QKV),
    trap("the largest subtracted beside a sink", beside(largest_off), QKV),
    trap("a number added beside one more", one_more(lambda x: x + 2.0), QKV),
    trap("the largest subtracted beside one more", one_more(largest_off), QKV),
    trap("one more, less the largest of another head", one_more(turn=batch_turned), CUBE),
    trap("kept from zero, less the largest of another head", kept_finite(batch_turned), CUBE),
    trap("a number added to one piece", two_pieces(lambda x: x + 2.0), QKV),
    trap("the largest subtracted in one piece", two_pieces(largest_off), QKV),
    trap("a number added inside of a cap", lambda q, k, v: sm(mx.tanh(scores(q, k) + 1.0) * 3.0) @ v, QKV),
    trap(
        "the largest subtracted inside of a cap", lambda q, k, v: sm(mx.tanh(largest_off(scores(q, k))) * 3.0) @ v, QKV
    ),
    trap("a capped product and another", lambda q, k, v: sm(mx.tanh(scores(q, k)) * 3.0 + scores(q * q, k)) @ v, QKV),
    trap("a product and a capped one", lambda q, k, v: sm(scores(q, k) + mx.tanh(scores(q * q, k)) * 3.0) @ v, QKV),
    trap("weights divided by zero", lambda q, k, v: sm(scores(q, k)) / 0.0 @ mx.abs(v), QKV),
    trap(
        "a sink that has a value",
        lambda q, k, v, s, u: (lambda p: p[..., :-1] @ v + p[..., -1:] * u)(
            sm(mx.concatenate([scores(q, k), mx.broadcast_to(s, (2, 4, 5, 1))], -1))
        ),
        args(Q, K, K, bias(4, 1, 1), bias(8)),
    ),
    trap(
        "heads and batch of the weights swapped",
        lambda q, k, v: weights(q, k).transpose(1, 0, 2, 3) @ v,
        CUBE,
    ),
    trap(
        "heads and batch of the scores swapped",
        lambda q, k, v: sm(scores(q, k).transpose(1, 0, 2, 3)) @ v,
        CUBE,
    ),
    trap("additive attention (Bahdanau)", additive_attention, args(Q, K, K, bias(8, 1))),
    trap("more queries than keys, lower right, -inf", lower_right(-INF), TALL),
    trap("more queries than keys, lower right, -1e9", lower_right(LOWEST), TALL),
    trap(
        "more queries than keys, triu added",
        lambda q, k, v: sm(scores(q, k) + mx.triu(mx.full((7, 5), -INF), k=-1)) @ v,
        TALL,
    ),
    trap("tile is no repeat", both(tile), GQA, grouped),
    trap(
        "tile of the keys, repeat of the values",
        lambda q, k, v: naive(q, tile(k), mx.repeat(v, 2, 1)),
        GQA,
        grouped,
    ),
    trap("expanded before the heads", both(expand), GQA, grouped),
    trap("heads taken in turn", taken(0, 1, 0, 1), GQA, grouped),
    trap("heads taken backwards", taken(1, 1, 0, 0), GQA, grouped),
    trap("heads taken unevenly", taken(0, 0, 0, 1), GQA, grouped),
    trap("heads concatenated in turn", both(lambda x: mx.concatenate([x, x], axis=1)), GQA, grouped),
    trap("heads stacked first", both(lambda x: mx.stack([x, x], axis=1).reshape(2, 4, 7, 8)), GQA, grouped),
    trap("groups outside", wrong_groups, GQA, grouped),
    trap("groups turned at the end", groups_turned, GQA, grouped),
    trap(
        "keys repeated along the text",
        both(lambda x: mx.repeat(x, 2, axis=2)),
        args(Q, K, K, seed=4),
        None,
    ),
    trap(
        "repeated along the batch",
        both(lambda x: mx.repeat(x, 2, axis=0)),
        args(Q, (1, 4, 7, 8), (1, 4, 7, 8)),
        None,
    ),
    trap(
        "tiled along the batch",
        both(lambda x: mx.tile(x, (2, 1, 1, 1))),
        args(SIDE, (2, 4, 4, 4), (2, 4, 4, 4)),
        None,
    ),
    trap("keys not transposed", lambda q, k, v: sm(q @ k * ROOT) @ v, CUBE),
    trap("queries transposed", lambda q, k, v: sm(T(q) @ T(k) * ROOT) @ v, CUBE),
    trap("values transposed", lambda q, k, v: weights(q, k) @ T(v), CUBE),
    trap("keys permuted 0312", permuted(0, 3, 1, 2), CUBE),
    trap("keys permuted 0213", permuted(0, 2, 1, 3), CUBE),
    trap("keys permuted 1032", permuted(1, 0, 3, 2), CUBE),
    trap("keys permuted 3210", permuted(3, 2, 1, 0), CUBE),
    trap("keys permuted 0321", permuted(0, 3, 2, 1), CUBE),
    trap("values permuted", lambda q, k, v: weights(q, k) @ v.transpose(2, 0, 3, 1), CUBE),
    trap("only the queries have the heads first", lambda q, k, v: naive(heads_first(q), k, v), CUBE),
    trap("the output turned", lambda q, k, v: heads_first(naive(q, k, v)), CUBE),
    trap("the output transposed", lambda q, k, v: T(naive(q, k, v)), CUBE),
    trap("merged, then turned", merged_turned, CUBE),
    trap("scores turned, queries for keys", lambda q, k, v: sm(T(q @ T(k)) * ROOT) @ v, CUBE),
    trap("a mask under a transpose", lambda q, k, v, m: sm(T(T(scores(q, k)) + m)) @ v, CUBE_ADD, kept),
    trap("a transposed mask", lambda q, k, v, m: sm(scores(q, k) + T(m)) @ v, CUBE_ADD, kept),
    trap("a mask for each batch entry", lambda q, k, v, m: sm(scores(q, k) + m[:, None]) @ v, CUBE_ADD3, kept),
    trap("a mask for each query", lambda q, k, v, m: sm(scores(q, k) + m[:, :, None]) @ v, CUBE_ADD3, kept),
    trap(
        "a mask under a permutation",
        lambda q, k, v, m: sm((scores(q, k).transpose(1, 0, 2, 3) + m).transpose(1, 0, 2, 3)) @ v,
        CUBE_ADD3,
        kept,
    ),
    trap(
        "a mask in the view of merged heads",
        lambda q, k, v, m: sm((scores(q, k).reshape(16, 4, 4) + mx.tile(m, (4, 1, 1))).reshape(SIDE)) @ v,
        CUBE_ADD3,
        lambda q, k, v, m: attend(q, k, v, ROOT, m[:, None]),
    ),
    trap(
        "a mask after the scale",
        lambda q, k, v, m: sm(q @ T(k) * ROOT + m) @ v,
        CUBE_ADD,
        lambda *a: kept(*a[:3], a[3] * ROOT),
    ),
    trap("a mask before the scale", lambda q, k, v, m: sm((q @ T(k) + m) * ROOT) @ v, CUBE_ADD, kept),
    trap(
        "a number for each head after the softmax",
        lambda q, k, v, h: (weights(q, k) * h) @ v,
        args(Q, K, K, bias(4, 1, 1)),
    ),
    trap(
        "a number for each key after the softmax",
        lambda q, k, v, w: (weights(q, k) * w) @ v,
        args(Q, K, K, bias(7)),
    ),
    trap("a number after the softmax", lambda q, k, v: (weights(q, k) * 0.5) @ v, args(Q, K, K)),
    trap(
        "a vector as wide as the heads are many",
        lambda q, k, v, w: sm((q * w) @ T(k) * ROOT) @ v,
        args(SIDE, SIDE, SIDE, bias(4)),
    ),
    trap(
        "a vector on the keys",
        lambda q, k, v, w: sm(q @ (T(k) * w) * ROOT) @ v,
        args(SIDE, SIDE, SIDE, bias(4)),
    ),
    trap(
        "a column on the turned keys",
        lambda q, k, v, w: sm(q @ (T(k) * w) * ROOT) @ v,
        args(SIDE, SIDE, SIDE, bias(4, 1)),
    ),
    trap(
        "upper left is not lower right",
        lambda q, k, v: sm(mx.where(mx.tri(5, 7, dtype=mx.bool_), scores(q, k), -INF)) @ v,
        args(Q, K, K),
        lambda *a: attend(*a, ROOT, "causal"),
    ),
    trap(
        "more queries than keys",
        lambda q, k, v: sm(mx.where(mx.tri(7, 5, dtype=mx.bool_), scores(q, k), -INF)) @ v,
        TALL,
        lambda *a: attend(*a, ROOT, "causal"),
    ),
    trap(
        "one key more than causal",
        lambda q, k, v: sm(mx.where(mx.tri(6, 6, 1, dtype=mx.bool_), scores(q, k), -INF)) @ v,
        SQUARE,
        lambda *a: attend(*a, ROOT, "causal"),
    ),
    trap("one key less than causal, -inf", shifted(1), SQUARE, lambda *a: attend(*a, ROOT, "causal")),
    trap("one key less than causal, finite", shifted(1, LOWEST), SQUARE, lambda *a: attend(*a, ROOT, "causal")),
    trap(
        "causal with one hole",
        lambda q, k, v: sm(mx.where(causal(6, 6) & (mx.arange(6) != 2), scores(q, k), -INF)) @ v,
        SQUARE,
        lambda *a: attend(*a, ROOT, "causal"),
    ),
    trap(
        "anti-causal",
        lambda q, k, v: sm(mx.where(T(causal(6, 6)), scores(q, k), -INF)) @ v,
        SQUARE,
        lambda *a: attend(*a, ROOT, "causal"),
    ),
    trap("a fill above all scores", masked(1e9), PADDED, kept),
    trap(
        "a fill that a traced scale turns, below",
        lambda q, k, v, m, s: sm(mx.where(m, scores(q, k), LOWEST) * s) @ v,
        args(Q, K, K, keep(2, 1, 1, 7), num(-0.5)),
        lambda q, k, v, m, s: attend(q * s, k, v, ROOT, m),
    ),
    trap(
        "a fill that a traced scale turns, without end",
        lambda q, k, v, m, s: sm(mx.where(m, scores(q, k), -INF) * s) @ v,
        args(Q, K, K, keep(2, 1, 1, 7), num(-0.5)),
        lambda q, k, v, m, s: attend(q * s, k, v, ROOT, m),
    ),
    trap(
        "a fill that a negative scale turns",
        masked(LOWEST, lambda x: -x),
        PADDED,
        lambda q, k, v, m: attend(q, k, v, -ROOT, m),
    ),
    trap(
        "a fill that a small scale brings back",
        masked(-100.0, lambda x: x * 0.01),
        PADDED,
        lambda q, k, v, m: attend(q, k, v, ROOT * 0.01, m),
    ),
    trap("a fill of little weight", masked(-1.0), PADDED, kept),
    trap("an added mask of ones and zeros", lambda q, k, v, m: sm(scores(q, k) + m) @ v, PADDED, kept),
    trap(
        "a fill that half precision cannot hold",
        masked(LOWEST),
        args(Q, K, K, keep(2, 1, 1, 7), dtype=HALF),
        None,
    ),
    trap(
        "two fills, one on top of the other",
        lambda q, k, v, a, b: sm(mx.where(b, mx.where(a, scores(q, k), -1e4), -1e9)) @ v,
        args(Q, K, K, keep(2, 1, 1, 7), keep(5, 7)),
        None,
    ),
    trap(
        "the mask is wider than the batch",
        lambda q, k, v, m: sm(scores(q, k) + m) @ v,
        args((1, 4, 5, 8), (1, 4, 7, 8), (1, 4, 7, 8), bias(2, 1, 5, 7)),
        None,
    ),
    trap(
        "the mask has more heads",
        lambda q, k, v, m: sm(scores(q, k) + m) @ v,
        args((2, 1, 5, 8), (2, 1, 7, 8), (2, 1, 7, 8), bias(4, 5, 7)),
        None,
    ),
    trap(
        "the mask is wider than the queries",
        lambda q, k, v, m: sm(scores(q, k) + m) @ v,
        args((2, 4, 1, 8), K, K, bias(5, 7)),
        None,
    ),
    trap(
        "the mask is wider than the keys",
        lambda q, k, v, m: sm(scores(q, k) + m) @ v,
        args(Q, (2, 4, 1, 8), K, bias(5, 7)),
        None,
    ),
    trap("only the values have the batch", naive, args((1, 4, 5, 8), (1, 4, 7, 8), K), None),
    trap("only the values have the heads", naive, args((2, 1, 5, 8), (2, 1, 7, 8), K), None),
    trap("scale of zero", lambda q, k, v: sm(q @ T(k) * 0.0) @ v, args(Q, K, K)),
    trap(
        "a row of the lowest numbers",
        lambda q, k, v, m: sm(mx.maximum(scores(q, k) + m, -1.0)) @ v,
        args(Q, K, K, fill(2, 1, 5, 7)),
        lambda q, k, v, m: kept(q, k, v, m),
    ),
]
