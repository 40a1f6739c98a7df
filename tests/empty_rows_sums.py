"""Rows in which every key is masked, where exponentials are divided by a sum: it may be zero there."""

from __future__ import annotations

import mlx.core as mx

from tests.empty_rows import KEPT, Case, K, Q, holes, scores
from tests.spellings_base import INF, LOWEST, Fn, args, sm

SOME = mx.arange(7) > 0


def first_alone(rng):
    """Rows of the first batch entry see only a key that `SOME` leaves out; those of the second see none."""
    return mx.array([[True] + [False] * 6, [False] * 7])[:, None, None]


APART = args(Q, K, K, first_alone)


def largest_less(x):
    return x - x.max(-1, keepdims=True)


def exponentials(x):
    return mx.exp(largest_less(x))


def over_sum(e):
    return e / e.sum(-1, keepdims=True)


def where(value: float, soft: Fn) -> Fn:
    return lambda q, k, v, m: over_sum(soft(mx.where(m, scores(q, k), value))) @ v


def less_unmasked(value: float) -> Fn:
    def fn(q, k, v, m):
        x = scores(q, k)
        return over_sum(mx.exp(mx.where(m, x, value) - x.max(-1, keepdims=True))) @ v

    return fn


def counted(value: float, inverted: bool = False) -> Fn:
    def fn(q, k, v, m):
        x = mx.where(m, value, scores(q, k)) if inverted else mx.where(m, scores(q, k), value)
        return over_sum(exponentials(x) * m) @ v

    return fn


CASES = [
    Case("exponentials, where -inf", where(-INF, mx.exp), KEPT, "nan", fuses=True),
    Case("exponentials, where -1e9", where(LOWEST, mx.exp), KEPT, "nan", fuses=True),
    Case("exponentials, where -1e4", where(-1e4, mx.exp), KEPT, "nan", fuses=True),
    Case("exponentials, less a number, where -1e9", where(LOWEST, lambda x: mx.exp(x - 5)), KEPT, "nan", fuses=True),
    Case("powers of two, where -1e9", where(LOWEST, lambda x: mx.power(2.0, x)), KEPT, "nan", fuses=True),
    Case("exponentials, less the largest unmasked, where -1e9", less_unmasked(LOWEST), KEPT, "nan"),
    *(
        Case(
            f"exponentials, less {name}, where {value:g}",
            where(value, lambda x, less=less: mx.exp(less(x))),
            KEPT,
            "nan" if value == -INF else gives,
        )
        for value in (LOWEST, -INF)
        for name, less, gives in (
            ("the largest and nothing", lambda x: largest_less(x) - 0.0, "mean"),
            ("the largest and one", lambda x: largest_less(x) - 1.0, "mean"),
            ("the largest, doubled", lambda x: largest_less(x) * 2.0, "mean"),
            ("no less than a floor", lambda x: x - mx.maximum(x.max(-1, keepdims=True), -1e30), "mean"),
            ("zero or more", lambda x: x - mx.maximum(x.max(-1, keepdims=True), 0.0), "nan"),
            ("their LogSumExp", lambda x: x - mx.logsumexp(x, axis=-1, keepdims=True), "any"),
            ("the largest of all", lambda x: x - x.max(), "any"),
        )
    ),
    *(
        Case(
            f"exponentials, added {value:g}",
            lambda q, k, v, m, value=value: over_sum(mx.exp(scores(q, k) + mx.where(m, 0.0, value))) @ v,
            KEPT,
            "nan",
        )
        for value in (LOWEST, -1e4)
    ),
    Case(
        "exponentials, given -1e4",
        lambda q, k, v, m: over_sum(mx.exp(scores(q, k) + m)) @ v,
        args(Q, K, K, lambda rng: mx.where(holes(rng), 0.0, -1e4)),
        "nan",
    ),
    Case("those that the fill leaves counted, where -1e9", counted(LOWEST), KEPT, "nan", fuses=True),
    Case("those that the fill hides counted, where -1e9", counted(LOWEST, inverted=True), KEPT, "any"),
    *(
        Case(name, where(value, lambda x, soft=soft: soft(x) * SOME), APART, "any", fuses=value == -INF)
        for value in (-INF, LOWEST, -1e4)
        for name, soft in (
            (f"some weights counted, where {value:g}", sm),
            (f"some exponentials counted, where {value:g}", exponentials),
        )
    ),
]
