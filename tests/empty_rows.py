"""The table of rows in which every key is masked: one spelling a line, and what it gives there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from tests.spellings_base import FLOOR, INF, LOWEST, Args, Fn, T, args, sm

ROOT = 8**-0.5
Q, K = (2, 4, 5, 8), (2, 4, 7, 8)
HALF, BRAIN = mx.float16, mx.bfloat16


@dataclass(frozen=True)
class Case:
    """One spelling on rows without keys: NaN, the mean of the values, zeros, or what the scores decide."""

    name: str
    fn: Fn
    args: Args
    gives: str
    fuses: bool = False
    """Whether it must be fused: the guard makes the answer provable."""


def holes(rng: np.random.Generator) -> mx.array:
    """Two rows of the first batch entry and the whole second one see nothing."""
    mask = rng.random((2, 1, 5, 7)) < 0.6
    mask[..., 0] = True
    mask[0, :, 1:3] = False
    mask[1] = False
    return mx.array(mask)


def padding(rng: np.random.Generator) -> mx.array:
    """Ones and zeros of tokens; the second batch entry is all padding."""
    return mx.array([[1, 1, 1, 0, 0, 0, 0], [0] * 7])


KEPT = args(Q, K, K, holes)
TOKENS = args(Q, K, K, padding)
SHARED = args(Q, K, K, holes, (8, 7))
RELATIVE = args(Q, K, K, holes, (4, 5, 7))
HIDDEN = args(Q, K, K, holes, lambda rng: mx.where(mx.array(rng.random((2, 1, 5, 7)) < 0.5), 0.0, LOWEST))
INFINITE = args(Q, K, K, holes, lambda rng: mx.where(mx.array(rng.random((2, 1, 5, 7)) < 0.5), 0.0, -INF))
INFINITE_KEPT = args(Q, K, K, lambda rng: mx.where(holes(rng), 0.0, -INF))
SQUARE = args((2, 4, 6, 8), (2, 4, 6, 8), (2, 4, 6, 8))
TALL = args((2, 4, 7, 8), (2, 4, 5, 8), (2, 4, 5, 8))


def typed(dtype: mx.Dtype) -> Args:
    return args(Q, K, K, holes, dtype=dtype)


def scores(q, k):
    return q @ T(k) * ROOT


def where(value: float, soft: Callable[[mx.array], mx.array] = sm) -> Fn:
    return lambda q, k, v, m: soft(mx.where(m, scores(q, k), value)) @ v


def added(value: float, soft: Callable[[mx.array], mx.array] = sm) -> Fn:
    return lambda q, k, v, m: soft(scores(q, k) + mx.where(m, 0.0, value).astype(q.dtype)) @ v


def guarded(x):
    p = sm(x)
    return mx.where(mx.isnan(p), 0.0, p)


def guarded_by_scores(x):
    return mx.where(mx.all(x == -INF, axis=-1, keepdims=True), 0.0, sm(x))


def to_zero(x):
    return mx.nan_to_num(sm(x))


def decomposed(x):
    e = mx.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def in_float(x):
    return sm(x.astype(mx.float32)).astype(x.dtype)


def shifted(value: float, soft: Callable[[mx.array], mx.array] = sm) -> Fn:
    """A constant triangle below the diagonal: the first row is empty, as anyone can compute."""
    return lambda q, k, v: soft(mx.where(mx.tri(6, 6, -1, dtype=mx.bool_), scores(q, k), value)) @ v


def lower_right(value: float, soft: Callable[[mx.array], mx.array] = sm) -> Fn:
    return lambda q, k, v: soft(mx.where(mx.tri(7, 5, -2, dtype=mx.bool_), scores(q, k), value)) @ v


def zeroed(value: float) -> Fn:
    """The weights masked once more, as many speech models do it."""
    return lambda q, k, v, m: mx.where(m, sm(mx.where(m, scores(q, k), value)), 0.0) @ v


def times(value: float) -> Fn:
    return lambda q, k, v, m: (sm(mx.where(m, scores(q, k), value)) * m) @ v


def triangle_zeroed(q, k, v):
    m = mx.tri(6, 6, -1, dtype=mx.bool_)
    return mx.where(mx.logical_not(m), 0.0, sm(mx.where(mx.tri(6, 6, -1, dtype=mx.bool_), scores(q, k), LOWEST))) @ v


def layered(q, k, v, m, p):
    return sm(mx.where(m, scores(q, k) + q @ p, -1e4)) @ v


def positioned(q, k, v, m, p):
    bias = mx.concatenate([mx.zeros((2, 4, 5, 1)), q @ p], axis=-1)[..., :7]
    return sm(mx.where(m, scores(q, k) + bias, -1e4)) @ v


def relative(q, k, v, m, bias):
    x = mx.where(m, (q @ T(k) + mx.maximum(bias, -8.0)) * ROOT, LOWEST)
    return mx.where(mx.logical_not(m), 0.0, sm(x)) @ v


def hidden_twice(value: float) -> Fn:
    """A row of which one mask hides what the other keeps, and the weights zeroed by the one."""
    return lambda q, k, v, m, b: mx.where(m, sm(mx.where(m, scores(q, k) + b, value)), 0.0) @ v


def stacked(value: float, dtype: mx.Dtype = mx.float32) -> Fn:
    """A triangle added where a mask has set scores to the same number: left of the padding, keys are hidden twice."""

    def fn(q, k, v, m):
        x = mx.where(m, scores(q, k).astype(dtype), value) + mx.where(mx.tri(5, 7, 2, dtype=mx.bool_), 0.0, value)
        return sm(x).astype(q.dtype) @ v

    return fn


def added_twice(q, k, v, m):
    x = scores(q, k).astype(mx.float32)
    x = x + mx.where(m, 0.0, LOWEST) + mx.where(m[::-1, :, ::-1], 0.0, LOWEST)
    return sm(x).astype(q.dtype) @ v


def guarded_in_part(first: Fn, second: Fn) -> Fn:
    """NaN replaced in the weights of some keys only."""

    def fn(q, k, v, m):
        p = sm(mx.where(m, scores(q, k), -INF))
        return first(p[..., :4]) @ v[:, :, :4] + second(p[..., 4:]) @ v[:, :, 4:]

    return fn


def zeroed_in_part(q, k, v, m):
    p = sm(mx.where(m, scores(q, k), LOWEST))
    return mx.where(m, p, 0.0)[..., :4] @ v[:, :, :4] + p[..., 4:] @ v[:, :, 4:]


def no_nan(p):
    return mx.where(mx.isnan(p), 0.0, p)


def less_logarithm(x):
    return mx.exp(x - mx.logsumexp(x, axis=-1, keepdims=True))


def one_more(x):
    top = x.max(-1, keepdims=True)
    e = mx.exp(x - top)
    return e / (e.sum(-1, keepdims=True) + mx.exp(-top))


def same(p):
    return p


def less(shift: Callable[[mx.array], mx.array]) -> Fn:
    return lambda q, k, v, m: (lambda x: sm(x - shift(x)))(mx.where(m, scores(q, k), LOWEST)) @ v


def bert(value: float) -> Fn:
    return lambda q, k, v, m: sm(scores(q, k) + (1.0 - m[:, None, None].astype(q.dtype)) * value) @ v


def multiplied(q, k, v, m):
    m = m.astype(q.dtype)
    return sm(scores(q, k) * m + (1.0 - m) * LOWEST) @ v


def late(q, k, v, m):
    e = mx.exp(mx.where(m, scores(q, k), -INF))
    return (e @ v) / e.sum(-1, keepdims=True)


def safe(q, k, v, m):
    """torch's own decomposition, both sides scaled."""
    x = (q * ROOT**0.5) @ (T(k) * ROOT**0.5) + m
    return mx.where(mx.logical_not(mx.any(x != -INF, axis=-1, keepdims=True)), 0.0, sm(x)) @ v


def sunk(q, k, v, m):
    x = mx.concatenate([mx.where(m, scores(q, k), -INF), mx.zeros((2, 4, 5, 1))], axis=-1)
    return sm(x)[..., :-1] @ v


def kernel(q, k, v, m):
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=ROOT, mask=m)


def triangle_over(fill, padding):
    """A known fill over scores to which what a mask hides was added: in rows that both hide, it is the larger."""

    def fn(q, k, v, m):
        x = scores(q, k) + (1 - m.astype(mx.float32)) * padding
        return sm(mx.where(mx.tri(5, 7, 0) > 0, x, fill)) @ v

    return fn


CASES = [
    Case("added -inf", added(-INF), KEPT, "nan"),
    Case(
        "added -inf, given",
        lambda q, k, v, m: sm(scores(q, k) + m) @ v,
        args(Q, K, K, lambda rng: mx.where(holes(rng), 0.0, -INF)),
        "nan",
    ),
    Case("added -1e9", added(LOWEST), KEPT, "uniform"),
    Case("added the lowest number", added(FLOOR), KEPT, "uniform"),
    Case("added -1e4", added(-1e4), KEPT, "scores"),
    Case("added -1e4 by BERT", bert(-1e4), TOKENS, "scores"),
    Case("added the lowest number by Hugging Face", bert(FLOOR), TOKENS, "uniform"),
    Case("where -inf", where(-INF), KEPT, "nan"),
    Case("where -1e9", where(LOWEST), KEPT, "mean"),
    Case("where -1e4", where(-1e4), KEPT, "mean"),
    Case("where the lowest number", where(FLOOR), KEPT, "mean"),
    Case("multiplied and filled", multiplied, KEPT, "mean"),
    Case("where -inf, NaN guard", where(-INF, guarded), KEPT, "zero", fuses=True),
    Case("added -inf, NaN guard", added(-INF, guarded), KEPT, "zero", fuses=True),
    Case("where -inf, nan_to_num", where(-INF, to_zero), KEPT, "zero"),
    Case("where -inf, guard by the scores", where(-INF, guarded_by_scores), KEPT, "zero"),
    Case("torch's safe softmax", safe, args(Q, K, K, lambda rng: mx.where(holes(rng), 0.0, -INF)), "zero"),
    Case("where -1e9, NaN guard that guards nothing", where(LOWEST, guarded), KEPT, "mean"),
    Case("decomposed, -inf", where(-INF, decomposed), KEPT, "nan"),
    Case("decomposed, -1e9", where(LOWEST, decomposed), KEPT, "mean"),
    Case("normalised late", late, KEPT, "nan"),
    Case("precise, -inf", where(-INF, lambda x: mx.softmax(x, -1, precise=True)), KEPT, "nan"),
    Case("half, where -1e9, which is -inf", where(LOWEST), typed(HALF), "nan"),
    Case("half, where -65504", where(-65504.0), typed(HALF), "mean"),
    Case("half, where -1e4", where(-1e4), typed(HALF), "mean"),
    Case("half, added -65504", added(-65504.0), typed(HALF), "uniform"),
    Case("half, added -inf, NaN guard", added(-INF, guarded), typed(HALF), "zero", fuses=True),
    Case("half, softmax in float, -1e9", where(LOWEST, in_float), typed(HALF), "nan"),
    Case("bfloat16, where -1e9, which is a number", where(LOWEST), typed(BRAIN), "mean"),
    Case("bfloat16, where the lowest number", where(FLOOR), typed(BRAIN), "nan"),
    Case("bfloat16, added -1e9", added(LOWEST), typed(BRAIN), "uniform"),
    Case("bfloat16, where -inf", where(-INF), typed(BRAIN), "nan"),
    Case("constant, -inf", shifted(-INF), SQUARE, "nan"),
    Case("constant, -1e9", shifted(LOWEST), SQUARE, "mean"),
    Case("constant, -1e4", shifted(-1e4), SQUARE, "mean"),
    Case("constant, -inf, NaN guard", shifted(-INF, guarded), SQUARE, "zero", fuses=True),
    Case("more queries than keys, -inf", lower_right(-INF), TALL, "nan"),
    Case("more queries than keys, -1e9", lower_right(LOWEST), TALL, "mean"),
    Case("more queries than keys, NaN guard", lower_right(-INF, guarded), TALL, "zero", fuses=True),
    Case(
        "two masks, only both empty a row",
        lambda q, k, v, m: sm(mx.where(m, mx.where(mx.arange(7) > 0, scores(q, k), -INF), -INF)) @ v,
        args(Q, K, K, lambda rng: mx.broadcast_to(mx.arange(7) == 0, (2, 1, 5, 7))),
        "nan",
    ),
    Case("where -inf, zeroed after", zeroed(-INF), KEPT, "zero", fuses=True),
    Case("where -1e9, zeroed after", zeroed(LOWEST), KEPT, "zero", fuses=True),
    Case("where -1e4, zeroed after", zeroed(-1e4), KEPT, "zero", fuses=True),
    Case("where -inf, times the mask after", times(-INF), KEPT, "nan", fuses=True),
    Case("where -1e9, times the mask after", times(LOWEST), KEPT, "zero", fuses=True),
    Case("half, where -65504, zeroed after", zeroed(-65504.0), typed(HALF), "zero", fuses=True),
    Case("bfloat16, where the lowest number, zeroed after", zeroed(FLOOR), typed(BRAIN), "zero", fuses=True),
    Case("constant, -1e9, zeroed after", triangle_zeroed, SQUARE, "zero", fuses=True),
    Case("a product more, where -1e4", layered, SHARED, "mean", fuses=True),
    Case("positions by a layer, where -1e4", positioned, SHARED, "mean", fuses=True),
    Case("relative positions, where -1e9, zeroed after", relative, RELATIVE, "zero", fuses=True),
    Case("where -1e9, zeroed after, hidden by an input too", hidden_twice(LOWEST), HIDDEN, "any"),
    Case("where -inf, zeroed after, hidden by an input too", hidden_twice(-INF), INFINITE, "any"),
    Case("where -1e9, a triangle of -1e9 added after", stacked(LOWEST), KEPT, "any"),
    Case("where the lowest number, a triangle of it added after", stacked(FLOOR), KEPT, "any"),
    Case("half, -1e9 added twice in float", added_twice, typed(HALF), "any"),
    Case("half, -65504 and a triangle of it in float", stacked(-65504.0, mx.float32), typed(HALF), "any"),
    Case("cut off below at -1e4", lambda q, k, v, m: sm(mx.maximum(scores(q, k) + m, -1e4)) @ v, INFINITE_KEPT, "mean"),
    Case(
        "constant, cut off below at -1e4",
        lambda q, k, v: sm(mx.maximum(scores(q, k) + mx.where(mx.tri(6, 6, -1, dtype=mx.bool_), 0.0, -INF), -1e4)) @ v,
        SQUARE,
        "mean",
        fuses=True,
    ),
    Case(
        "constant, added -1e9, large scores",
        lambda q, k, v: sm(q @ T(k) * 100 + mx.where(mx.tri(6, 6, -1, dtype=mx.bool_), 0.0, LOWEST)) @ v,
        SQUARE,
        "any",
    ),
    Case(
        "where the lowest number, doubled",
        lambda q, k, v, m: no_nan(sm(mx.where(m, scores(q, k), FLOOR) * 2.0)) @ v,
        KEPT,
        "zero",
    ),
    Case(
        "where -1e4 upon -inf, half",
        lambda q, k, v, m: sm(mx.where(m, mx.where(m[::-1], scores(q, k), -INF), -1e4)) @ v,
        typed(HALF),
        "any",
    ),
    Case(
        "known and given lowest numbers meet, NaN guard",
        lambda q, k, v, m: (
            no_nan(sm(mx.where(mx.tri(5, 7, dtype=mx.bool_), scores(q, k), FLOOR) + mx.where(m, 0.0, FLOOR))) @ v
        ),
        KEPT,
        "any",
    ),
    Case("less its LogSumExp, where -1e9", where(LOWEST, less_logarithm), KEPT, "any", fuses=True),
    Case("less its LogSumExp, where -inf", where(-INF, less_logarithm), KEPT, "nan", fuses=True),
    Case("one more below, less the largest, where -inf", where(-INF, one_more), KEPT, "nan", fuses=True),
    Case("one more below, less the largest, where -1e9", where(LOWEST, one_more), KEPT, "zero", fuses=True),
    Case(
        "positions after the largest was subtracted",
        lambda q, k, v, m: (
            sm((lambda x: x - x.max(-1, keepdims=True))(mx.where(m, scores(q, k), FLOOR)) + mx.arange(7)) @ v
        ),
        KEPT,
        "any",
    ),
    Case(
        "two products, each masked",
        lambda q, k, v, m: (
            sm(mx.where(m, scores(q, k), LOWEST) + mx.where(m[::-1, :, ::-1], scores(q, k * k), LOWEST)) @ v
        ),
        KEPT,
        "any",
    ),
    Case(
        "constant, the lowest number added twice, halved",
        lambda q, k, v: sm((q @ T(k) + mx.where(mx.tri(6, 6, -1, dtype=mx.bool_), 0.0, FLOOR) * 2.0) * ROOT) @ v,
        SQUARE,
        "nan",
    ),
    Case(
        "the lowest number filled and added, halved",
        lambda q, k, v, m: sm((mx.where(m, scores(q, k), FLOOR) + mx.where(m, 0.0, FLOOR)) * 0.5) @ v,
        KEPT,
        "nan",
    ),
    Case(
        "half, -65504 and positions in float",
        lambda q, k, v, m: sm(mx.where(m, scores(q, k).astype(mx.float32), -65504.0) + mx.arange(7.0)).astype(HALF) @ v,
        typed(HALF),
        "any",
    ),
    Case("NaN guard on the first keys", guarded_in_part(no_nan, same), KEPT, "nan"),
    Case("NaN guard on the last keys", guarded_in_part(same, no_nan), KEPT, "nan"),
    Case("NaN guard on both parts", guarded_in_part(no_nan, no_nan), KEPT, "zero", fuses=True),
    Case("where -1e9, zeroed in part", zeroed_in_part, KEPT, "any"),
    Case(
        "NaN guard after rows were multiplied by NaN",
        lambda q, k, v, m: (
            no_nan(sm(mx.where(m, scores(q, k), -INF)) * mx.array([1.0, math.nan, 1, math.nan, 1])[:, None]) @ v
        ),
        KEPT,
        "zero",
    ),
    Case("the mean of masked scores subtracted", less(lambda x: x.mean(-1, keepdims=True)), KEPT, "any"),
    Case("the least of masked scores subtracted", less(lambda x: x.min(-1, keepdims=True)), KEPT, "any"),
    Case("a sink takes the row", sunk, KEPT, "zero"),
    Case("the kernel itself, boolean", kernel, KEPT, "any"),
    Case(
        "the kernel itself, added -inf",
        lambda q, k, v, m: kernel(q, k, v, mx.where(m, 0.0, -INF)),
        KEPT,
        "nan",
    ),
    *(
        Case(f"a triangle of {fill:g} over {padding:g} added", triangle_over(fill, padding), KEPT, "any")
        for fill, padding in ((-1e4, -1e4), (-1e5, -1e4), (-1e4, LOWEST), (LOWEST, LOWEST))
    ),
    Case(
        "not one empty row",
        where(-INF),
        args(Q, K, K, lambda rng: mx.array(rng.random((2, 1, 5, 7)) < 0.6) | (mx.arange(7) == 0)),
        "any",
    ),
]
