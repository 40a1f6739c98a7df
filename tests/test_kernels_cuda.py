"""Programs on a CUDA GPU that go to our kernel: MLX has none there, or takes the mask as an array of the scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import fuser
from fuser.kernels.admission import backend

pytestmark = pytest.mark.skipif(backend() != "cuda", reason="there is no CUDA GPU")
Change = Callable[..., mx.array]
Sizes = tuple[int, int, int, int, int, int]


def program(masked: Change | None = None, cap: float = 0.0) -> Change:
    def attention(q: mx.array, k: mx.array, v: mx.array, *more: mx.array) -> mx.array:
        groups = q.shape[1] // k.shape[1]
        k, v = mx.repeat(k, groups, axis=1), mx.repeat(v, groups, axis=1)
        scores = (q @ k.swapaxes(-1, -2)) * (q.shape[-1] ** -0.5)
        if cap:
            scores = mx.tanh(scores / cap) * cap
        scores = scores.astype(mx.float32)
        if masked is not None:
            scores = masked(scores, *more)
        return mx.softmax(scores, axis=-1).astype(q.dtype) @ v

    return attention


def away(scores: mx.array) -> mx.array:
    rows, columns = scores.shape[-2:]
    return mx.arange(columns)[None] - mx.arange(rows)[:, None] - (columns - rows)


def causal(scores: mx.array) -> mx.array:
    return mx.where(away(scores) <= 0, scores, -mx.inf)


def window(scores: mx.array) -> mx.array:
    return mx.where(mx.logical_and(away(scores) <= 0, away(scores) > -50), scores, -mx.inf)


def causal_and_padding(scores: mx.array, keep: mx.array) -> mx.array:
    return mx.where(mx.logical_and(away(scores) <= 0, keep[:, None, None, :]), scores, -1e30)


def padding(scores: mx.array, keep: mx.array) -> mx.array:
    return mx.where(keep[:, None, None, :], scores, -1e30)


def alibi(scores: mx.array) -> mx.array:
    slopes = mx.array([2.0 ** -(head + 1) for head in range(scores.shape[1])])
    return causal(scores + slopes.reshape(-1, 1, 1) * away(scores))


def operands(sizes: Sizes, dtype: mx.Dtype) -> list[mx.array]:
    batch, heads, shared, rows, columns, depth = sizes
    rng = np.random.default_rng(4)
    shapes = (batch, heads, rows, depth), (batch, shared, columns, depth), (batch, shared, columns, depth)
    made = [mx.array(rng.standard_normal(shape, np.float32)).astype(dtype) for shape in shapes]
    # keys as models have them: heads were after rows; values as they come
    return [made[0], mx.contiguous(made[1].swapaxes(1, 2)).swapaxes(1, 2), made[2]]


def kept(batch: int, columns: int) -> mx.array:
    return mx.arange(columns)[None] < (columns - 3 * mx.arange(batch))[:, None]


CASES: dict[str, tuple[Change, Sizes, list[mx.array]]] = {
    "softcap": (program(causal, 50.0), (1, 8, 4, 200, 200, 256), []),
    "softcap, decode": (program(None, 5.0), (2, 8, 4, 1, 700, 64), []),
    "wide heads": (program(causal), (1, 4, 2, 200, 200, 192), []),
    "no multiple of 8": (program(), (2, 4, 2, 150, 200, 100), []),
    "window": (program(window), (1, 4, 4, 300, 300, 64), []),
    "causal and padding": (program(causal_and_padding), (3, 4, 4, 150, 150, 64), [kept(3, 150)]),
    "padding, decode": (program(padding), (3, 8, 2, 1, 600, 128), [kept(3, 600)]),
    "ALiBi": (program(alibi), (1, 8, 8, 150, 150, 64), []),
}


def error(found: mx.array, wanted: mx.array) -> float:
    left, right = (np.array(each.astype(mx.float32)) for each in (found, wanted))
    return float(np.abs(left - right).max() / np.abs(right).max())


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_answers(name: str, dtype: mx.Dtype) -> None:
    plain, sizes, more = CASES[name]
    given = operands(sizes, dtype)
    fast: Any = fuser.optimize(plain)
    found = fast(*given, *more)
    (region,) = fast.report.regions
    assert region.verdict == "fused" and region.kernel.startswith("CUDA, ours")
    assert error(found, plain(*(each.astype(mx.float32) for each in given), *more)) < 1e-2


def test_transformations() -> None:
    plain = program(causal, 5.0)
    fast: Any = fuser.optimize(plain)
    given = operands((1, 4, 2, 40, 40, 64), mx.bfloat16)
    wide = [each.astype(mx.float32) for each in given]

    def loss(fn: Change) -> Change:
        return lambda *x: (fn(*x).astype(mx.float32) ** 2).sum()

    wanted = mx.grad(loss(plain), argnums=(0, 1, 2))(*wide)
    for gradient in (mx.grad(loss(fast), argnums=(0, 1, 2)), mx.compile(mx.grad(loss(fast), argnums=(0, 1, 2)))):
        for left, right in zip(gradient(*given), wanted, strict=True):
            assert error(left, right) < 2e-2
    assert error(mx.compile(fast)(*given), plain(*wide)) < 1e-2
    many = mx.stack([given[0], 2 * given[0]])
    found = mx.vmap(lambda q: fast(q, given[1], given[2]))(many)
    assert error(found, mx.vmap(lambda q: plain(q, wide[1], wide[2]))(many.astype(mx.float32))) < 1e-2


def test_nothing_to_do() -> None:
    plain = program(None, 5.0)
    fast: Any = fuser.optimize(plain)
    assert fast(*operands((0, 4, 4, 8, 8, 64), mx.float16)).shape == (0, 4, 8, 64)
