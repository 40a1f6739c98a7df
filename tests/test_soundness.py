"""What must never be taken for something else: permutations, and what a module holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

import fuser

ORDER = mx.array([3, 1, 2, 0])


def swap(x: mx.array) -> mx.array:
    return x.swapaxes(-1, -2)


def operands(*shapes: tuple[int, ...]) -> list[mx.array]:
    keys = mx.random.split(mx.random.key(7), len(shapes))
    return [mx.random.normal(shape, key=key) for shape, key in zip(shapes, keys, strict=True)]


def gap(left: mx.array, right: mx.array) -> float:
    return float(np.abs(np.array(left) - np.array(right)).max())


def check(fn: Callable[..., Any], *args: mx.array) -> fuser.Region:
    """The one region of `fn`; the answer must be the original's."""
    fast = fuser.optimize(fn, when="always")
    assert gap(fast(*args), fn(*args)) < 1e-5
    (region,) = fast.report.regions
    return region


Q = (2, 4, 7, 8)


@pytest.mark.parametrize(
    "fn",
    [
        lambda q, k, v: mx.softmax(q @ swap(k[:, ORDER]) * 0.3, -1) @ v,
        lambda q, k, v: mx.softmax(q @ swap(mx.take(k, ORDER, axis=1)) * 0.3, -1) @ v,
        lambda q, k, v: mx.softmax(q @ swap(k[:, :, ::-1]) * 0.3, -1) @ v,
        lambda q, k, v: mx.softmax(q @ swap(mx.concatenate([k[:, 2:], k[:, :2]], axis=1)), -1) @ v,
        lambda q, k, v: mx.softmax(q @ swap(k), -1) @ mx.roll(v, 1, 2),
    ],
    ids=["indexed", "taken", "reversed", "rotated", "values rolled"],
)
def test_permuted_operands_are_fused_as_they_are(fn: Callable[..., mx.array]) -> None:
    region = check(fn, *operands(Q, Q, Q))
    assert (region.verdict, region.query_heads, region.key_heads) == ("fused", 4, 4)


@pytest.mark.parametrize(
    ("fn", "word"),
    [
        (lambda q, k, v: mx.softmax((q @ swap(k))[:, ORDER], -1) @ v, "taken in part"),
        (lambda q, k, v: mx.softmax((q @ swap(k))[..., ::-1], -1) @ v, "taken in part"),
        (lambda q, k, v: mx.softmax(q @ swap(k), -1)[:, ORDER] @ v, "gathered"),
        (lambda q, k, v: mx.softmax(q @ swap(k), -1)[..., ::-1] @ v, "sliced"),
    ],
    ids=["scores indexed", "scores reversed", "weights indexed", "weights reversed"],
)
def test_permuted_scores_are_refused(fn: Callable[..., mx.array], word: str) -> None:
    region = check(fn, *operands(Q, Q, Q))
    assert region.verdict == "refused"
    assert word in str(region.reason)


class Buffered(nn.Module):
    """Attention as ports of GPT write it: a triangular buffer, here beside learned numbers that start at no effect."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = mx.tril(mx.ones((1, 1, 16, 16)))
        self.temperature = mx.array(0.5)
        self.position = mx.zeros((4, 7, 7))

    def __call__(self, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        scores = q @ swap(k) * self.temperature + self.position
        size = q.shape[2]
        return mx.softmax(mx.where(self.buffer[:, :, :size, :size] == 0, -mx.inf, scores), -1) @ v


def test_a_buffer_is_read_by_value_as_long_as_it_stays() -> None:
    class Plain(Buffered):
        def __call__(self, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
            return mx.softmax(mx.where(self.buffer[..., :7, :7] == 0, -mx.inf, q @ swap(k)), -1) @ v

    module, args = Plain(), operands(Q, Q, Q)
    fast = fuser.optimize(module, when="always")
    fast(*args)
    assert fast.report.regions[0].mask == "causal"
    module.buffer[0, 0, 3, 1] = 0.0
    assert gap(fast(*args), module(*args)) < 1e-5
    assert fast.report.regions[0].mask == "boolean"
    module.buffer = mx.ones((1, 1, 16, 16))
    assert gap(fast(*args), module(*args)) < 1e-5
    assert fast.report.regions[0].mask == "none"


def test_what_can_be_trained_is_no_constant() -> None:
    module, args = Buffered(), operands(Q, Q, Q)
    fast = fuser.optimize(module, when="always")
    fast(*args)
    region = fast.report.regions[0]
    # zeros today, so adding them has no effect; that is nothing to rely on
    assert (region.verdict, region.scale, region.mask) == ("fused", None, "additive")

    def loss(fn: Callable[..., mx.array]) -> Callable[..., mx.array]:
        return lambda *args: fn(*args).square().sum()

    _, expected = nn.value_and_grad(module, loss(module))(*args)
    _, gradients = nn.value_and_grad(module, loss(fast))(*args)
    found: dict[str, mx.array] = tree_flatten(gradients, destination={})  # type: ignore[assignment]
    for name, want in tree_flatten(expected, destination={}).items():  # type: ignore[union-attr]
        assert gap(want, found[name]) <= 1e-4 * max(1.0, gap(want, mx.zeros_like(want))), name
    module.position = module.position + 1.5
    module.temperature = module.temperature * 2
    assert gap(fast(*args), module(*args)) < 1e-5


def test_masked_exponentials_are_masked_scores() -> None:
    def fn(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        exponentials = mx.exp(q @ swap(k)) * (mx.tri(7) > 0)
        return exponentials / exponentials.sum(-1, keepdims=True) @ v

    assert check(fn, *operands(Q, Q, Q)).mask == "causal"


def test_exponentials_times_numbers_are_refused() -> None:
    def fn(q: mx.array, k: mx.array, v: mx.array, m: mx.array) -> mx.array:
        exponentials = mx.exp(q @ swap(k)) * m
        return exponentials / exponentials.sum(-1, keepdims=True) @ v

    region = check(fn, *operands(Q, Q, Q), mx.ones((7, 7)))
    assert region.verdict == "refused"
    assert "exponentials" in str(region.reason)


def test_a_causal_fill_and_a_padding_fill_on_rows_that_both_mask() -> None:
    lowest = float(np.finfo(np.float32).min)

    def fn(q: mx.array, k: mx.array, v: mx.array, padding: mx.array) -> mx.array:
        scores = mx.where(mx.tri(7) > 0, q @ swap(k), lowest)
        return mx.softmax(scores + padding, -1) @ v

    # padding on the left: the first rows see nothing, and what their uniform weights are depends on both fills
    padding = mx.where(mx.arange(7) < 3, lowest, 0.0)[None, None, None]
    assert check(fn, *operands(Q, Q, Q), padding).verdict == "fused"


def test_a_floor_under_plain_scores_is_no_mask() -> None:
    lowest = float(np.finfo(np.float32).min)

    def fn(q: mx.array, k: mx.array, v: mx.array, bias: mx.array) -> mx.array:
        return mx.softmax(mx.maximum(q @ swap(k), lowest) + bias, -1) @ v

    region = check(fn, *operands(Q, Q, Q, (1, 1, 7, 7)))
    assert (region.verdict, region.mask) == ("fused", "additive")


@pytest.mark.parametrize("fill", [-1e9, float(np.finfo(np.float32).min)])
def test_scores_that_are_replaced_have_no_gradient(fill: float) -> None:
    """Rows that the mask hides wholly answer with the mean, and move neither queries nor keys."""
    q, k, w = (mx.random.normal((1, 2, 4, 8), key=mx.random.key(n)) for n in range(3))
    bias, keep = (
        mx.random.normal((4, 4), key=mx.random.key(3)),
        mx.array([[1, 0, 0, 1], [0] * 4, [1] * 4, [0, 1, 0, 0]]),
    )

    def loss(q: mx.array, k: mx.array, bias: mx.array, keep: mx.array) -> mx.array:
        scores = mx.where(keep > 0, q @ swap(k) * 0.3 + bias, fill)
        return (mx.softmax(scores, -1) @ k * w).sum()

    fast: Any = fuser.optimize(loss)
    wanted = mx.grad(loss, argnums=(0, 1, 2))(q, k, bias, keep)
    found = mx.grad(fast, argnums=(0, 1, 2))(q, k, bias, keep)
    assert [region.verdict for region in fast.report.regions] == ["fused"]
    for left, right in zip(found, wanted, strict=True):
        assert mx.allclose(left, right, atol=1e-5)
