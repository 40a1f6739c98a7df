"""`fuser.optimize` of whole programs: modules, methods, partials, decorated functions."""

from __future__ import annotations

import functools
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.utils

import fuser
from tests.programs_base import Block, Net, X, Y, same

# -- modules -----------------------------------------------------------------------------------------------------------


def test_parameters_are_inputs() -> None:
    net = Net()
    fast = fuser.optimize(net)
    same(fast(X), net(X))
    assert fast.report.counts["fused"] == 2
    assert [region.name for region in fast.report.regions] == ["layers.0", "layers.1"]
    net.update(mlx.utils.tree_map(lambda p: p * 0.5, net.parameters()))
    same(fast(X), net(X))
    net.layers[0].out.weight = net.layers[0].out.weight + 1
    same(fast(X), net(X))
    net.head.bias[0] = 100.0
    same(fast(X), net(X))
    assert fast.traces == 1


def test_load_weights(tmp_path: Any) -> None:
    net, other = Net(), Net()
    other.save_weights(str(tmp_path / "w.npz"))
    fast = fuser.optimize(net)
    fast(X)
    net.load_weights(str(tmp_path / "w.npz"))
    same(fast(X), other(X))
    assert fast.traces == 1


def test_another_layer_is_seen() -> None:
    net = Net()
    fast = fuser.optimize(net)
    fast(X)
    net.layers[1] = Block()
    same(fast(X), net(X))
    net.layers.append(Block())
    same(fast(X), net(X))
    assert fast.report.counts["fused"] == 3
    net.layers[0].strength = 0.25
    same(fast(X), net(X))
    net.head = nn.Linear(32, 3)
    same(fast(X), net(X))


def test_quantised_layers() -> None:
    net = Net()
    fast = fuser.optimize(net)
    fast(X)
    nn.quantize(net, group_size=32, bits=8)
    same(fast(X), net(X))
    assert fast.report.counts["fused"] == 2


def test_training_mode_is_seen() -> None:
    drop = nn.Sequential(nn.Linear(32, 32), nn.Dropout(0.5))
    fast = fuser.optimize(drop)
    drop.eval()
    same(fast(X), drop(X))
    drop.train()
    mx.random.seed(3)
    left = [fast(X) for _ in range(3)]
    mx.random.seed(3)
    same(left, [drop(X) for _ in range(3)])
    drop.eval()
    same(fast(X), drop(X))


def test_weights_are_not_copied_and_attributes_are_reached() -> None:
    net = Net()
    fast = fuser.optimize(net)
    fast(X)
    assert fast.parameters().keys() == net.parameters().keys()
    assert len(fast.layers) == 2


# -- callables of all kinds --------------------------------------------------------------------------------------------


def test_arrays_without_elements_are_read() -> None:
    def program(x: mx.array, y: mx.array) -> mx.array:
        return mx.exp(x) / mx.exp(y).reshape(0)

    fast = fuser.optimize(program)
    assert fast(mx.zeros(0), mx.zeros((5, 0))).shape == (0,)
    assert not fast.report.notes


def test_methods() -> None:
    block = Block()
    fast = fuser.optimize(block.twice)
    same(fast(X), block.twice(X))
    block.out.weight = block.out.weight * 2
    same(fast(X), block.twice(X))
    assert fast.traces == 1 and fast.report.counts["fused"] == 2


def test_methods_of_plain_objects() -> None:
    class Holder:
        def __init__(self) -> None:
            self.weight = mx.ones((32, 32))
            self.calls = 0

        def forward(self, x: mx.array) -> mx.array:
            self.calls += 1
            return x @ self.weight

    holder = Holder()
    fast = fuser.optimize(holder.forward)
    for _ in range(3):
        same(fast(X), X @ holder.weight)
        holder.weight = holder.weight * 2
    assert holder.calls == 3


def test_decorated_methods() -> None:
    class Decorated(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.weight = mx.full((32,), factor)

        @fuser.optimize
        def __call__(self, x: mx.array) -> mx.array:
            return x * self.weight

        @fuser.optimize(fuse=False)
        def other(self, x: mx.array) -> mx.array:
            return x + self.weight

    one, two = Decorated(2.0), Decorated(3.0)
    same([one(X), two(X), one.other(X), two.other(X)], [X * 2, X * 3, X + 2, X + 3])
    one.weight = one.weight + 1
    same([one(X), one.other(X)], [X * 3, X + 3])
    method: Any = Decorated.__call__.__get__(one)
    assert method.traces == one.other.traces == 1


def test_partials() -> None:
    def scaled(x: mx.array, y: mx.array, *, by: float = 1.0) -> mx.array:
        return x * by + y

    fast = fuser.optimize(functools.partial(scaled, Y, by=3.0))
    same(fast(X), Y * 3 + X)
    block = Block()
    fast = fuser.optimize(functools.partial(lambda model, x: model(x), block))
    same(fast(X), block(X))
    block.out.bias = block.out.bias + 1
    same(fast(X), block(X))


def test_wrapped_functions() -> None:
    def decorate(fn: Any) -> Any:
        @functools.wraps(fn)
        def inner(*args: Any, **kwargs: Any) -> Any:
            return fn(*args, **kwargs) * 2

        return inner

    block = Block()

    @fuser.optimize
    @decorate
    def program(x: mx.array) -> mx.array:
        return block(x)

    same(program(X), block(X) * 2)
    block.out.bias = block.out.bias + 1
    same(program(X), block(X) * 2)
    assert program.__name__ == "program" and program.traces == 1


def test_keyword_only_default_and_variable_arguments() -> None:
    def program(x: mx.array, *more: mx.array, scale: float = 2.0, shift: mx.array | None = None, **named: Any) -> Any:
        total = x * scale
        for each in (*more, *named.values()):
            total = total + each
        return total if shift is None else total - shift

    fast = fuser.optimize(program)
    calls: list[tuple[Any, dict[str, Any]]] = [
        ((X,), {}),
        ((X, Y), {}),
        ((X,), {"scale": 3.0}),
        ((X,), {"scale": 3}),
        ((X,), {"shift": Y}),
        ((X, Y, Y), {"shift": Y, "scale": -1.0}),
        ((X,), {"extra": Y, "other": X}),
    ]
    for args, kwargs in calls:
        same(fast(*args, **kwargs), program(*args, **kwargs))
        same(fast(*args, **kwargs), program(*args, **kwargs))
    assert fast.traces == 7
