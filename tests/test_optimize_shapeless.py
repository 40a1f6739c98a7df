"""`fuser.optimize(fn, shapeless=True)`: one trace for all sizes, or an error that says where the program needs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

import fuser
from tests.programs_base import arrays, attention, same


def test_an_attention_is_traced_once_for_all_sizes() -> None:
    fast = fuser.optimize(attention, shapeless=True)
    for number, (batch, length, keys) in enumerate([(2, 5, 7), (3, 6, 9), (4, 11, 10), (5, 16, 3), (2, 9, 12)]):
        q, k = arrays((batch, 8, length, 32), (batch, 8, keys, 32), seed=number)
        same(fast(q, k, k), attention(q, k, k))
        assert fast.report.counts["fused"] == 1
    # at the first sizes, and once more at the second
    assert fast.traces == 2


def test_sizes_that_are_one_or_alike_are_traced_on_their_own() -> None:
    fast = fuser.optimize(attention, shapeless=True)
    for turn in range(2):
        for batch, length, keys in [(2, 5, 7), (2, 1, 7), (2, 5, 5), (2, 2, 7), (1, 1, 1), (3, 6, 8)]:
            q, k = arrays((batch, 8, length, 32), (batch, 8, keys, 32), seed=turn)
            same(fast(q, k, k), attention(q, k, k))
    assert fast.traces == 6


LAYERS: list[Callable[[mx.array], Any]] = [
    nn.gelu,
    nn.RMSNorm(32),
    nn.Sequential(nn.Linear(32, 16, bias=False), nn.LayerNorm(16)),
    lambda x: mx.fast.scaled_dot_product_attention(x[None], x[None], x[None], scale=0.3, mask="causal"),
    lambda x: x - x.mean(axis=1, keepdims=True),
    lambda x: mx.concatenate([x, x * 2], axis=1),
    lambda x: (x[:, :-1], mx.softmax(x, axis=1), mx.flatten(x, 0, 1), mx.unflatten(x, -1, (4, 8))),
]


@pytest.mark.parametrize("number", range(len(LAYERS)))
def test_layers(number: int) -> None:
    layer = LAYERS[number]
    fast = fuser.optimize(layer, shapeless=True)
    for shape in ((2, 6, 32), (2, 7, 32), (2, 9, 32)):
        (x,) = arrays(shape)
        same(fast(x), layer(x))
    assert fast.traces == 2


def test_weights_and_static_arguments() -> None:
    layer = nn.Linear(32, 32, bias=False)
    fast = fuser.optimize(lambda x, twice=False: layer(layer(x) if twice else x), shapeless=True)
    for shape in ((2, 6, 32), (3, 7, 32)):
        (x,) = arrays(shape)
        same(fast(x), layer(x))
        same(fast(x, twice=True), layer(layer(x)))
    layer.weight = layer.weight * 2
    same(fast(x), layer(x))
    assert fast.traces == 4


@pytest.mark.parametrize(
    ("program", "at"),
    [
        (lambda x: x.reshape(2, -1, 4, 8), "Reshape"),
        (lambda x: x + mx.arange(x.shape[1])[:, None], "Arange"),
        (lambda x: x[:, : x.shape[1] // 2], "Slice"),
        (lambda x: x / x.shape[1], "Divide|Broadcast"),
        (lambda x: mx.split(x, 3, axis=1), "Split"),
        (lambda x: (x * 2, x.shape[1]), "what it returns"),
        (lambda x: x if x.shape[1] > 6 else x + 1, "nodes|outputs"),
    ],
)
def test_programs_that_need_their_sizes_say_where(program: Any, at: str) -> None:
    fast = fuser.optimize(program, shapeless=True)
    first, second = arrays((2, 6, 32), (2, 9, 32))
    same(fast(first), program(first))
    for _ in range(2):
        with pytest.raises(fuser.TraceError, match=f"shapeless: the program depends on .*({at})"):
            fast(second)
    same(fast(first), program(first))


def test_what_cannot_be_traced_is_an_error() -> None:
    with pytest.raises(fuser.TraceError, match=r"test_optimize_shapeless\.py:.* reads the value"):
        fuser.optimize(lambda x: x * x.sum().item(), shapeless=True)(mx.ones(3))


def test_gradients() -> None:
    def loss(x: mx.array) -> Any:
        return (mx.stop_gradient(mx.softmax(x @ x.T, axis=-1)) @ x * x).sum()

    fast = fuser.optimize(loss, shapeless=True)
    for size in (3, 5):
        fast(arrays((size, 8))[0])
    (x,) = arrays((6, 8))
    same(mx.grad(fast)(x), mx.grad(loss)(x))
    with pytest.raises(fuser.TraceError, match="inside of a gradient"):
        mx.grad(fuser.optimize(loss, shapeless=True))(x)


def test_what_is_broadcast_to_the_shape_of_weights_is_none_of_them() -> None:
    """A trace for any sizes broadcasts one array to the shape of another, which that one then reads."""

    def fn(q: mx.array, k: mx.array, v: mx.array, gate: mx.array) -> mx.array:
        weights = mx.softmax(q @ k.swapaxes(-1, -2), axis=-1)
        return (weights - gate * mx.softmax(k @ q.swapaxes(-1, -2), axis=-1)) @ v

    fast = fuser.optimize(fn, shapeless=True)
    q, k, v, gate = arrays((2, 4, 5, 8), (2, 4, 5, 8), (2, 4, 5, 8), (4, 1, 1))
    same(fast(q, k, v, gate), fn(q, k, v, gate))
    assert fast.report.counts["fused"] == 2


def test_a_softmax_that_is_written_out_is_fused_for_all_sizes() -> None:
    def fn(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        scores = q @ k.swapaxes(-1, -2)
        e = mx.exp(scores - scores.max(-1, keepdims=True))
        return (e / e.sum(-1, keepdims=True)) @ v

    fast = fuser.optimize(fn, shapeless=True)
    for length, keys in ((5, 7), (9, 4)):
        q, k, v = arrays((2, 4, length, 8), (2, 4, keys, 8), (2, 4, keys, 8))
        same(fast(q, k, v), fn(q, k, v))
        assert fast.report.counts["fused"] == 1
