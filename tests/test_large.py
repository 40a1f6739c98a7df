"""Attentions large enough for a kernel of any backend: every mask, with rows that see nothing, in every float type."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest

import fuser

BATCH, HEADS, LENGTH, DEPTH = 2, 4, 160, 32
PLACES = mx.arange(LENGTH)
CAUSAL = PLACES[:, None] >= PLACES[None]
TOLERANCES = {mx.float32: 2e-5, mx.float16: 8e-3, mx.bfloat16: 6e-2}

Masked = Callable[[mx.array, mx.array], mx.array]


def number(value: float, scores: mx.array) -> mx.array:
    return mx.array(value, scores.dtype)


def lowest(scores: mx.array) -> mx.array:
    return number(float(mx.finfo(scores.dtype).min), scores)


def filled(value: float) -> Masked:
    return lambda scores, padding: mx.where(CAUSAL & padding, scores, number(value, scores))


def alibi(scores: mx.array, padding: mx.array) -> mx.array:
    slopes = mx.arange(HEADS)[:, None, None] * (PLACES[None] - PLACES[:, None]) * 0.01
    return mx.where(CAUSAL, scores + slopes.astype(scores.dtype), lowest(scores))


MASKS: dict[str, Masked] = {
    "none": lambda scores, padding: scores,
    "causal": lambda scores, padding: mx.where(CAUSAL, scores, number(-np.inf, scores)),
    "minus infinity": filled(-np.inf),
    "lowest": lambda scores, padding: mx.where(CAUSAL & padding, scores, lowest(scores)),
    "lowest added": lambda scores, padding: scores + mx.where(CAUSAL & padding, number(0, scores), lowest(scores)),
    "lowest added twice": lambda scores, padding: (
        scores
        + mx.where(CAUSAL, number(0, scores), lowest(scores))
        + mx.where(padding, number(0, scores), lowest(scores))
    ),
    "-1e4 added": lambda scores, padding: scores + (1 - padding.astype(scores.dtype)) * number(-1e4, scores),
    "alibi": alibi,
    "window": lambda scores, padding: mx.where(
        CAUSAL & (PLACES[:, None] - PLACES[None] < 9), scores, number(-np.inf, scores)
    ),
}


def attention(masked: Masked, guarded: bool) -> Callable[..., mx.array]:
    def fn(q: mx.array, k: mx.array, v: mx.array, padding: mx.array) -> mx.array:
        k, v = mx.repeat(k, HEADS // k.shape[1], 1), mx.repeat(v, HEADS // v.shape[1], 1)
        scores = masked(q @ k.swapaxes(-1, -2) * number(DEPTH**-0.5, q), padding)
        weights = mx.softmax(scores.astype(mx.float32), -1).astype(q.dtype)
        return (mx.where(mx.isnan(weights), number(0, q), weights) if guarded else weights) @ v

    return fn


@pytest.mark.parametrize("known", [False, True], ids=["at run time", "known"])
@pytest.mark.parametrize("guarded", [False, True], ids=["plain", "guarded"])
@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=lambda dtype: str(dtype).rpartition(".")[2])
@pytest.mark.parametrize("name", MASKS)
def test_it_answers_as_it_did(name: str, dtype: mx.Dtype, guarded: bool, known: bool) -> None:
    keys = mx.random.split(mx.random.key(len(name)), 3)
    q = mx.random.normal((BATCH, HEADS, LENGTH, DEPTH), key=keys[0]).astype(dtype)
    k, v = (mx.random.normal((BATCH, 2, LENGTH, DEPTH), key=key).astype(dtype) for key in keys[1:])
    # padding on the left: under a causal mask the first rows of the second see nothing
    padding = (PLACES[None] >= mx.array([0, 90])[:, None])[:, None, None]
    whole = attention(MASKS[name], guarded)

    def fixed(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return whole(q, k, v, padding)

    fn, args = (fixed, (q, k, v)) if known else (whole, (q, k, v, padding))
    fast = fuser.optimize(fn)
    want, got = (np.array(each(*args).astype(mx.float32)) for each in (fn, fast))
    (region,) = fast.report.regions
    # in float16 the two overflow where they meet, which the kernel, adding in float32, does not do
    overflows = name == "lowest added twice" and dtype == mx.float16
    assert region.verdict == ("refused" if overflows else "fused"), region.reason
    assert np.array_equal(np.isnan(want), np.isnan(got))
    assert np.nanmax(np.abs(want - got)) <= TOLERANCES[dtype]
