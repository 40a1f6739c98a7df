"""`fuser.optimize` inside and outside of MLX's transformations."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import mlx.utils
import pytest

import fuser
from tests.programs_base import Net, X, arrays, attention, same


def loss(q: mx.array, k: mx.array, v: mx.array) -> Any:
    return (attention(q, k, v) ** 2).sum()


QKV = arrays((1, 2, 6, 8), (1, 2, 6, 8), (1, 2, 6, 8))


@pytest.mark.parametrize("fuse", [True, False])
def test_gradients(fuse: bool) -> None:
    fast = fuser.optimize(loss, fuse=fuse)
    for transform in (mx.grad, mx.value_and_grad):
        same(transform(fast, argnums=(0, 1, 2))(*QKV), transform(loss, argnums=(0, 1, 2))(*QKV))
    assert fast.traces == 1 and fast.report.counts["fused"] == fuse
    same(
        mx.grad(lambda q: mx.grad(fast)(q, *QKV[1:]).sum())(QKV[0]),
        mx.grad(lambda q: mx.grad(loss)(q, *QKV[1:]).sum())(QKV[0]),
    )


def test_gradients_inside() -> None:
    program = mx.value_and_grad(loss, argnums=(0, 1, 2))
    fast = fuser.optimize(program)
    for seed in range(2):
        qkv = arrays((1, 2, 6, 8), (1, 2, 6, 8), (1, 2, 6, 8), seed=seed)
        same(fast(*qkv), program(*qkv))
    assert fast.traces == 1


def test_stop_gradient() -> None:
    def program(x: mx.array, y: mx.array) -> mx.array:
        weights = mx.stop_gradient(mx.softmax(x @ y.T, axis=-1))
        return (weights @ y * mx.stop_gradient(x)).sum() + (x * y).sum()

    x, y = arrays((4, 4), (4, 4))
    fast = fuser.optimize(program)
    same(mx.grad(fast, argnums=(0, 1))(x, y), mx.grad(program, argnums=(0, 1))(x, y))
    assert fast.traces == 1 and not fast.report.notes


def test_stop_gradient_in_a_sink_alone() -> None:
    """The largest score cancels in the answer, but not in its gradient."""

    def program(q: mx.array, k: mx.array, v: mx.array) -> Any:
        x = q @ k.swapaxes(-1, -2)
        top = x.max(-1, keepdims=True)
        e = mx.exp(x - top)
        weights = e / (e.sum(-1, keepdims=True) + mx.exp(0.5 - mx.stop_gradient(top)))
        return ((weights @ v) ** 2).sum()

    fast = fuser.optimize(program, when="always")
    same(mx.grad(fast, argnums=(0, 1, 2))(*QKV), mx.grad(program, argnums=(0, 1, 2))(*QKV))


def test_stop_gradient_inside_of_transformations() -> None:
    def row(x: mx.array) -> Any:
        return (mx.stop_gradient(x * x) * x).sum()

    def mapped(x: mx.array) -> Any:
        return mx.vmap(row)(x).sum()

    def inner(x: mx.array) -> Any:
        return (mx.grad(row)(x) ** 2).sum()

    x = arrays((3, 4))[0]
    for program in (mapped, inner):
        fast = fuser.optimize(program)
        same([fast(x), mx.grad(fast)(x)], [program(x), mx.grad(program)(x)])


def test_vmap_outside_and_inside() -> None:
    q, k, v = arrays((3, 2, 6, 8), (3, 2, 6, 8), (2, 6, 8))
    fast = fuser.optimize(attention)
    same(mx.vmap(fast, in_axes=(0, 0, None))(q, k, v), mx.vmap(attention, in_axes=(0, 0, None))(q, k, v))

    def inside(q: mx.array, k: mx.array, v: mx.array) -> Any:
        return mx.vmap(attention, in_axes=(0, 0, None))(q, k, v)

    fast_inside = fuser.optimize(inside)
    same(fast_inside(q, k, v), inside(q, k, v))
    assert not fast_inside.report.notes


def test_compile_outside_and_inside() -> None:
    fast = fuser.optimize(attention)
    outside = mx.compile(lambda q, k, v: fast(q * 2, k, v) + 1)
    for _ in range(2):
        same(outside(*QKV), attention(QKV[0] * 2, *QKV[1:]) + 1)

    inside = fuser.optimize(lambda q, k, v: mx.compile(attention)(q, k, v) * 2)
    same(inside(*QKV), attention(*QKV) * 2)
    assert inside.report.counts["fused"] == 1

    whole = fuser.optimize(mx.compile(attention))
    same(whole(*QKV), attention(*QKV))
    assert whole.report.counts["fused"] == 1


def test_optimized_inside_of_optimized() -> None:
    inner = fuser.optimize(attention)
    outer = fuser.optimize(lambda q, k, v: inner(q, k, v) + inner(q * 2, k, v))
    same(outer(*QKV), attention(*QKV) + attention(QKV[0] * 2, *QKV[1:]))
    assert outer.report.counts["fused"] == 2 and inner.traces == 0


def test_a_captured_array_gets_its_gradient() -> None:
    def program(wrap: Callable[..., Any], w: mx.array) -> Any:
        return wrap(lambda x: mx.softmax(x @ w, axis=-1) @ w)(QKV[0]).sum()

    w = arrays((8, 8))[0]
    same(mx.grad(lambda w: program(fuser.optimize, w))(w), mx.grad(lambda w: program(lambda f: f, w))(w))


def test_value_and_grad_of_a_module() -> None:
    net = Net()

    def objective(model: Any, x: mx.array) -> Any:
        return (model(x) ** 2).mean()

    wanted = nn.value_and_grad(net, objective)(net, X)
    fast = fuser.optimize(net)
    same(nn.value_and_grad(net, lambda model, x: (fast(x) ** 2).mean())(net, X), wanted)
    assert fast.report.counts["fused"] == 2
    same(nn.value_and_grad(net, fuser.optimize(objective))(net, X), wanted)
    same(fuser.optimize(nn.value_and_grad(net, objective))(net, X), wanted)


def train(wrap: Callable[..., Any], steps: int = 6) -> list[float]:
    """The losses of a small model, trained with a whole step that is wrapped."""
    mx.random.seed(0)
    net = Net()
    drop = nn.Dropout(0.1)
    optimizer = optim.AdamW(learning_rate=optim.cosine_decay(1e-2, 20))
    state = [net.state, optimizer.state, mx.random.state]

    def objective(x: mx.array, y: mx.array) -> mx.array:
        return nn.losses.cross_entropy(drop(net(x)), y, reduction="mean")

    def step(x: mx.array, y: mx.array) -> Any:
        value, gradients = nn.value_and_grad(net, objective)(x, y)
        optimizer.update(net, gradients)
        return value

    wrapped = wrap(step, state)
    losses = []
    for number in range(steps):
        x = arrays((4, 5, 32), seed=number)[0]
        value = wrapped(x, mx.argmax(x[..., :8], axis=-1))
        mx.eval(value, net.parameters(), optimizer.state)
        losses.append(value.item())
    return losses


def test_a_training_step() -> None:
    wanted = train(lambda step, state: step)
    seen: list[Any] = []

    def keep(fast: Any) -> Any:
        seen.append(fast)
        return fast

    assert wanted[-1] < wanted[0]
    for wrap in (
        lambda step, state: keep(fuser.optimize(step)),
        lambda step, state: keep(fuser.optimize(step, inputs=state, outputs=state)),
        lambda step, state: mx.compile(step, inputs=state, outputs=state),
        lambda step, state: fuser.optimize(mx.compile(step, inputs=state, outputs=state)),
    ):
        assert train(wrap) == pytest.approx(wanted, rel=1e-4)
    # the optimizer makes its state in the first step
    assert [fast.traces for fast in seen] == [2, 2]
    assert [region.name for region in seen[0].report.regions][:2] == ["net.layers.0", "net.layers.1"]


def test_layers_that_are_frozen_and_thawed() -> None:
    net = Net()
    fast = fuser.optimize(nn.value_and_grad(net, lambda x: (net(x) ** 2).mean()))

    def gradients() -> list[str]:
        _, found = fast(X)
        same(found, nn.value_and_grad(net, lambda x: (net(x) ** 2).mean())(X)[1])
        flat: Any = mlx.utils.tree_flatten(found)
        return [path for path, _ in flat]

    everything = gradients()
    net.layers[0].freeze()
    assert 0 < len(gradients()) < len(everything)
    net.unfreeze()
    assert gradients() == everything


def test_an_optimized_model_in_a_training_step() -> None:
    def run(wrap: Callable[..., Any]) -> list[float]:
        mx.random.seed(0)
        net = Net()
        forward = wrap(net)
        optimizer = optim.Adam(learning_rate=1e-2)
        objective = nn.value_and_grad(net, lambda x: ((forward(x) - 1) ** 2).mean())
        losses = []
        for _ in range(5):
            value, gradients = objective(X)
            optimizer.update(net, gradients)
            mx.eval(net.parameters(), optimizer.state)
            losses.append(value.item())
        return losses

    assert run(fuser.optimize) == pytest.approx(run(lambda net: net), rel=1e-4)


def test_parameters_from_functional_code() -> None:
    net = Net()
    parameters = net.parameters()

    def forward(parameters: Any, x: mx.array) -> Any:
        net.update(parameters)
        return (net(x) ** 2).mean()

    fast = fuser.optimize(forward)
    wanted = mx.value_and_grad(forward)(parameters, X)
    net.update(parameters)
    same(mx.value_and_grad(fast)(parameters, X), wanted)
    net.update(parameters)
    same(mlx.utils.tree_map(lambda p: p, fast(parameters, X)), wanted[0])


def test_random_numbers_under_compile() -> None:
    fast = fuser.optimize(lambda x: x + mx.random.normal(x.shape))
    fast(X)
    mx.random.seed(2)
    wanted = [X + mx.random.normal(X.shape) for _ in range(3)]
    compiled = functools.partial(mx.compile, inputs=mx.random.state, outputs=mx.random.state)(lambda x: fast(x))
    mx.random.seed(2)
    same([compiled(X) for _ in range(3)], wanted)
