"""Masks assigned to some of the scores, masks on a piece of the keys at run time, and sinks written by hand."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np

from tests.spellings_base import INF, KEEP, K, Q, S, T, X, args, attend, bias, keep, num, sm
from tests.spellings_shapes import ROOT

MASKED = args(Q, K, K, keep(2, 1, 1, 7))
SHIFTED = args(Q, K, K, bias(2, 1, 1, 5))
SQUARE = args(X, X, X)
FEW = (2, 4, 3, 8)
SINKS = mx.array(np.linspace(-1, 1, 4), dtype=mx.float32).reshape(4, 1, 1)
LAST = [(0, 0), (0, 0), (0, 0), (0, 1)]
ORDER = mx.array([1, 2, 3, 4, 5, 0])


def scores(q, k):
    return q @ T(k) * ROOT


def assigned(key, fill):
    """The attention whose scores at `key` are set to `fill`."""

    def fn(q, k, v):
        x = scores(q, k)
        x[key] = fill
        return sm(x) @ v

    return fn


def A(name, fn, make=None, *, mask="boolean", m=None, ref=None):
    return S(name, fn, make, scale=ROOT, mask=mask, m=m, ref=ref, level=2)


def shown(rows, columns, drop):
    mask = np.ones((rows, columns), bool)
    mask[drop] = False
    return mx.array(mask)


def triangle(q, k, v):
    x = scores(q, k)
    for i in range(5):
        x[:, :, i, i + 1 :] = -INF
    return sm(x) @ v


def next_one(q, k, v):
    x = scores(q, k)
    x[:, :, mx.arange(6), ORDER] = -INF
    return sm(x) @ v


def added(q, k, v, m):
    x = scores(q, k)
    x[..., 2:] += m
    return sm(x) @ v


def chosen(q, k, v, m):
    x = scores(q, k)
    x[..., 2:] = mx.where(m[..., 2:], x[..., 2:], -INF)
    return sm(x) @ v


def behind_two(m):
    return mx.concatenate([mx.zeros((*m.shape[:-1], 2)), m], -1)


def two_kept(m):
    return mx.concatenate([mx.ones((*m.shape[:-1], 2), dtype=mx.bool_), m[..., 2:]], -1)


def joint(q, k, v, c, w, m):
    x = mx.concatenate([scores(q, k), mx.where(m, scores(q, c), -INF)], -1)
    return sm(x) @ mx.concatenate([v, w], 2)


def joined(q, k, v, c, w, m):
    m = mx.concatenate([mx.ones((2, 1, 1, 7), dtype=mx.bool_), m], -1)
    return attend(q, mx.concatenate([k, c], 2), mx.concatenate([v, w], 2), ROOT, m)


def biased(q, k, v, c, w, m):
    p = sm(mx.concatenate([scores(q, k) + m, scores(q, c)], -1))
    return p[..., :7] @ v + p[..., 7:] @ w


def biased_together(q, k, v, c, w, m):
    m = mx.concatenate([m, mx.zeros((2, 1, 5, 3), m.dtype)], -1)
    return attend(q, mx.concatenate([k, c], 2), mx.concatenate([v, w], 2), ROOT, m)


def sunk(q, k, v, sinks=SINKS):
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=ROOT, sinks=mx.broadcast_to(sinks.reshape(-1), (4,)))


def number(x):
    return lambda q, k, v: sunk(q, k, v, mx.full((4,), x, dtype=q.dtype))


def by_hand(q, k, v, sinks=SINKS):
    x = scores(q, k)
    top = mx.maximum(x.max(-1, keepdims=True), sinks)
    e = mx.exp(x - top)
    return (e / (e.sum(-1, keepdims=True) + mx.exp(sinks - top))) @ v


def by_hand_unshifted(q, k, v, sinks):
    e = mx.exp(scores(q, k))
    return (e / (e.sum(-1, keepdims=True) + mx.exp(sinks))) @ v


def with_more(q, k, v):
    e = mx.exp(scores(q, k))
    return (e / (e.sum(-1, keepdims=True) + 0.25)) @ v


def shifted(q, k):
    x = scores(q, k)
    return mx.exp(x - x.max(-1, keepdims=True))


def masked_after(q, k, v, m):
    p = sm(scores(q, k)) * m
    return (p / p.sum(-1, keepdims=True)) @ v


def chosen_after(q, k, v, m):
    p = mx.where(m, sm(scores(q, k)), 0.0)
    return (p / p.sum(-1, keepdims=True)) @ v


ASSIGNED = [
    A(
        "fill assigned to some keys",
        assigned((..., slice(0, 2)), -INF),
        m=lambda: shown(5, 7, (slice(None), slice(0, 2))),
    ),
    A("fill assigned to the last key", assigned((..., -1), -1e9), m=lambda: shown(5, 7, (slice(None), -1))),
    A(
        "fill assigned to a block",
        assigned((slice(None), slice(None), slice(1, None), slice(3, None)), -INF),
        m=lambda: shown(5, 7, (slice(1, None), slice(3, None))),
    ),
    A(
        "fill assigned to every other key",
        assigned((..., slice(1, None, 2)), -INF),
        m=lambda: shown(5, 7, (slice(None), slice(1, None, 2))),
    ),
    A(
        "fill assigned by indices",
        assigned((slice(None), slice(None), slice(None), mx.array([0, 3])), -INF),
        m=lambda: shown(5, 7, (slice(None), [0, 3])),
    ),
    A("fill assigned row by row", triangle, SQUARE, mask="causal"),
    A("fill assigned to pairs of indices", next_one, SQUARE, m=lambda: shown(6, 6, (range(6), ORDER.tolist()))),
    A(
        "fill put along the axis",
        lambda q, k, v: (
            sm(mx.put_along_axis(scores(q, k), mx.full((2, 4, 5, 1), 3, dtype=mx.int32), mx.array(-INF), axis=-1)) @ v
        ),
        m=lambda: shown(5, 7, (slice(None), 3)),
    ),
    A(
        "numbers added at some keys",
        lambda q, k, v: sm(scores(q, k).at[..., 1:3].add(2.5)) @ v,
        mask="additive",
        m=lambda: mx.array([0, 2.5, 2.5, 0, 0, 0, 0]),
    ),
    A("a mask added to some keys", added, SHIFTED, mask="additive", m=behind_two),
    A(
        "a mask added at some keys",
        lambda q, k, v, m: sm(scores(q, k).at[..., 2:].add(m)) @ v,
        SHIFTED,
        mask="additive",
        m=behind_two,
    ),
    A("some keys chosen in place", chosen, MASKED, mask=KEEP, m=two_kept),
]
PIECES = [
    A(
        "one piece masked when the program runs",
        joint,
        args(Q, K, K, FEW, FEW, keep(2, 1, 1, 3)),
        mask=KEEP,
        ref=joined,
    ),
    A(
        "one piece shifted when the program runs",
        biased,
        args(Q, K, K, FEW, FEW, bias(2, 1, 5, 7)),
        mask="additive",
        ref=biased_together,
    ),
]
NORMALISED = [
    A("a sink by hand", by_hand, mask="none", ref=sunk),
    A("a sink by hand, at run time", by_hand, args(Q, K, K, (4, 1, 1)), mask="none", ref=sunk),
    A("a sink by hand, nothing subtracted", by_hand_unshifted, args(Q, K, K, (4, 1, 1)), mask="none", ref=sunk),
    A("a number below, nothing subtracted", with_more, mask="none", ref=number(math.log(0.25))),
    A(
        "a sink by padding",
        lambda q, k, v: sm(mx.pad(scores(q, k), LAST))[..., :-1] @ v,
        mask="none",
        ref=number(0.0),
    ),
    A(
        "a sink by padding, at run time",
        lambda q, k, v, s: sm(mx.pad(scores(q, k), LAST, constant_values=s))[..., :-1] @ v,
        args(Q, K, K, num(0.7)),
        mask="none",
        ref=sunk,
    ),
    A(
        "sums as a product with ones",
        lambda q, k, v: (lambda e: (e / (e @ mx.ones((7, 1)))) @ v)(shifted(q, k)),
        mask="none",
        ref=lambda q, k, v: attend(q, k, v, ROOT),
    ),
    A(
        "sums no smaller than a small number",
        lambda q, k, v: (lambda e: (e / mx.maximum(e.sum(-1, keepdims=True), 1e-9)) @ v)(shifted(q, k)),
        mask="none",
        ref=lambda q, k, v: attend(q, k, v, ROOT),
    ),
    A(
        "a small number below, after the product",
        lambda q, k, v: (lambda e: (e @ v) / (e.sum(-1, keepdims=True) + 1e-9))(shifted(q, k)),
        mask="none",
        ref=lambda q, k, v: attend(q, k, v, ROOT),
    ),
    A(
        "normalised twice",
        lambda q, k, v: (lambda p: (p / p.sum(-1, keepdims=True)) @ v)(sm(scores(q, k))),
        mask="none",
        ref=lambda q, k, v: attend(q, k, v, ROOT),
    ),
    A("masked after, normalised again", masked_after, MASKED, m=lambda m: m),
    A("chosen after, normalised again", chosen_after, MASKED, m=lambda m: m),
]
SPELLINGS = [*ASSIGNED, *PIECES, *NORMALISED]
