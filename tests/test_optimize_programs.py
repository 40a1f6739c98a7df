"""`fuser.optimize` of whole programs: modules, methods, static arguments, trees, what is changed besides the results."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import mlx.utils
import pytest

import fuser


def attention(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    return mx.softmax(q @ k.swapaxes(-1, -2) * 0.125, axis=-1) @ v


def arrays(*shapes: tuple[int, ...], seed: int = 0) -> list[mx.array]:
    keys = mx.random.split(mx.random.key(seed), len(shapes))
    return [mx.random.normal(shape, key=key) for shape, key in zip(shapes, keys, strict=True)]


def same(left: Any, right: Any) -> None:
    """Trees of arrays are alike to float32's rounding."""
    lefts, rights = mlx.utils.tree_flatten(left), mlx.utils.tree_flatten(right)
    assert [path for path, _ in lefts] == [path for path, _ in rights]
    for (path, a), (_, b) in zip(lefts, rights, strict=True):
        if isinstance(a, mx.array):
            assert a.shape == b.shape and a.dtype == b.dtype, path
            assert mx.allclose(a, b, rtol=1e-5, atol=1e-5, equal_nan=True).item(), path
        else:
            assert a == b and type(a) is type(b), path


class Block(nn.Module):
    def __init__(self, size: int = 32) -> None:
        super().__init__()
        self.project = nn.Linear(size, 3 * size)
        self.out = nn.Linear(size, size)
        self.strength = 1.0

    def __call__(self, x: mx.array) -> mx.array:
        q, k, v = mx.split(self.project(x), 3, axis=-1)
        return x + self.out(attention(q[:, None], k[:, None], v[:, None])[:, 0]) * self.strength

    def twice(self, x: mx.array) -> mx.array:
        return self(self(x))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [Block() for _ in range(2)]
        self.head = nn.Linear(32, 8)

    def __call__(self, x: mx.array) -> mx.array:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


X, Y = arrays((2, 5, 32), (2, 5, 32))


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
    net.head = None
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
    for args, kwargs in [
        ((X,), {}),
        ((X, Y), {}),
        ((X,), {"scale": 3.0}),
        ((X,), {"scale": 3}),
        ((X,), {"shift": Y}),
        ((X, Y, Y), {"shift": Y, "scale": -1.0}),
        ((X,), {"extra": Y, "other": X}),
    ]:
        same(fast(*args, **kwargs), program(*args, **kwargs))
        same(fast(*args, **kwargs), program(*args, **kwargs))
    assert fast.traces == 7


# -- static arguments and trees ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [2, 2.0, True, "two", None, (1, "a"), slice(0, 2), mx.float16, -0.0, 0.0, range(3)])
def test_static_arguments_select_a_trace(value: Any) -> None:
    def program(x: mx.array, what: Any) -> Any:
        if isinstance(what, bool):
            return x + what
        if isinstance(what, int):
            return [x] * what
        if isinstance(what, float):
            return mx.divide(mx.array(1.0), mx.array(what)) * x[:0], x * what
        if isinstance(what, slice):
            return x[what]
        if isinstance(what, mx.Dtype):
            return x.astype(what)
        return {"kind": str(what), "x": -x}

    fast = fuser.optimize(program)
    for each in (value, 1, value, 1.0, True, value):
        same(fast(X, each), program(X, each))
    assert fast.traces <= 4


class Pair(NamedTuple):
    left: mx.array
    right: Any


@dataclass
class Result:
    logits: mx.array
    extra: dict[str, Any]
    count: int = 0


def test_trees_in_and_out() -> None:
    def program(tree: dict[str, Any], pair: Pair) -> Any:
        a = tree["a"][0] + pair.left
        result = Result(a, {"pair": Pair(a * 2, [pair.right, None]), "n": 3}, count=len(tree["a"]))
        return result, {"x": (a, (a,)), "text": "yes"}, [], Pair(a, None)

    fast = fuser.optimize(program)
    for seed in range(2):
        a, b, c = arrays((3, 4), (3, 4), (2,), seed=seed)
        given = {"a": [a, b], "b": {"c": (c, 1)}}
        result, tree, empty, pair = fast(given, Pair(b, c))
        wanted, wanted_tree, _, _ = program(given, Pair(b, c))
        assert type(result) is Result and type(pair) is Pair and empty == []
        assert result.count == 2 and tree["text"] == "yes" and type(result.extra["pair"]) is Pair
        same([result.logits, tree["x"], pair.left], [wanted.logits, wanted_tree["x"], wanted.logits])
        same(result.extra["pair"].right[0], c)
    assert fast.traces == 1
    assert given["a"][0] is a and given["b"]["c"][0] is c


@pytest.mark.parametrize("fuse", [True, False])
def test_results_of_all_kinds(fuse: bool) -> None:
    def none(x: mx.array) -> None:
        return None

    def numbers(x: mx.array) -> Any:
        return x.shape[0], 2.5, "text", None, float("inf")

    def unchanged(x: mx.array) -> mx.array:
        return x

    def twice(x: mx.array) -> Any:
        y = x + 1
        return y, {"again": y}, x

    for program in (none, numbers, unchanged, twice):
        fast = fuser.optimize(program, fuse=fuse)
        for _ in range(2):
            same(fast(X), program(X))
    assert fuser.optimize(unchanged, fuse=fuse)(X) is X
    left, right, x = fuser.optimize(twice, fuse=fuse)(X)
    assert left is right["again"] and x is X


def test_no_arguments_and_constant_results() -> None:
    captured = mx.ones(3)
    fast = fuser.optimize(lambda: {"a": mx.arange(4) * 2, "b": captured})
    for _ in range(2):
        same(fast(), {"a": mx.array([0, 2, 4, 6]), "b": captured})


def test_arrays_without_elements_and_scalars() -> None:
    def program(x: mx.array, s: mx.array) -> Any:
        return mx.concatenate([x, x]) * s, x.sum() + s, x[:, :0]

    fast = fuser.optimize(program)
    for x in (mx.zeros((0, 3)), mx.zeros((2, 0)), mx.zeros((1, 1))):
        for s in (mx.array(2.0), mx.array(2)):
            same(fast(x, s), program(x, s))


def test_the_shapes_and_dtypes_select_a_trace() -> None:
    fast = fuser.optimize(attention)
    for shape in ((1, 2, 3, 4), (1, 2, 5, 4), (1, 2, 3, 4)):
        for dtype in (mx.float32, mx.float16):
            q, k, v = (x.astype(dtype) for x in arrays(shape, shape, shape))
            assert mx.allclose(fast(q, k, v), attention(q, k, v), atol=1e-2).item()
    assert fast.traces == 4


# -- what a program reads and changes besides --------------------------------------------------------------------------


def test_captured_arrays_and_numbers_are_looked_up_at_each_call() -> None:
    weight, factor = mx.ones((32,)), 2.0

    def program(x: mx.array) -> mx.array:
        return x * weight * factor

    fast = fuser.optimize(program)
    same(fast(X), X * 2)
    weight = weight * 3
    same(fast(X), X * 6)
    weight[0] = 0.0
    same(fast(X), program(X))
    assert fast.traces == 1
    factor = 1.0
    same(fast(X), program(X))


def test_captured_counters_are_kept() -> None:
    count = 0

    def program(x: mx.array) -> mx.array:
        nonlocal count
        count += 1
        return x + count

    fast = fuser.optimize(program)
    same([fast(X) for _ in range(4)], [X + 1, X + 2, X + 3, X + 4])
    assert count == 4


def test_state_as_mx_compile_takes_it() -> None:
    def make() -> tuple[Any, list[Any]]:
        state = [mx.array(0.0), {"total": mx.zeros(3)}]

        def program(x: mx.array) -> mx.array:
            state[0] = state[0] + 1
            state[1]["total"] = state[1]["total"] + x  # type: ignore[index, call-overload]
            return x * state[0]

        return program, state

    program, state = make()
    wanted, wanted_state = make()
    fast = fuser.optimize(program, inputs=state, outputs=state)
    for step in range(4):
        x = mx.full((3,), float(step))
        same(fast(x), wanted(x))
        same(state, wanted_state)
    assert fast.traces == 1


def test_containers_that_are_arguments_are_changed() -> None:
    def program(store: dict[str, Any], found: list[Any], x: mx.array) -> mx.array:
        store["x"] = store["x"] + x
        store["new"] = {"y": x * 2, "count": len(found)}
        store.pop("old", None)
        found.append(x)
        return store["x"]

    fast = fuser.optimize(program)
    mine: tuple[dict[str, Any], list[Any]] = ({"x": Y, "old": X}, [])
    wanted: tuple[dict[str, Any], list[Any]] = ({"x": Y, "old": X}, [])
    inner = mine[1]
    for _ in range(3):
        same(fast(*mine, X), program(*wanted, X))
        same(mine, wanted)
    assert mine[1] is inner


def test_arguments_that_are_updated_in_place() -> None:
    def program(x: mx.array, y: mx.array) -> mx.array:
        x[0] = 7.0
        y += x
        return x.sum() + y.sum()

    fast = fuser.optimize(program)
    mine, wanted = arrays((4,), (4,)), arrays((4,), (4,))
    for _ in range(2):
        same(fast(*mine), program(*wanted))
        same(mine, wanted)
    assert fast.traces == 1
    one, other = arrays((4,)), arrays((4,))
    same(fast(one[0], one[0]), program(other[0], other[0]))
    same(one, other)


class Cache:
    """A cache that is updated as mlx_lm's: an array with room, and a number that says how much of it counts."""

    def __init__(self) -> None:
        self.keys: mx.array | None = None
        self.offset = 0

    def update(self, keys: mx.array) -> mx.array:
        end = self.offset + keys.shape[1]
        if self.keys is None or end > self.keys.shape[1]:
            room = mx.zeros((keys.shape[0], 8, keys.shape[2]))
            self.keys = room if self.keys is None else mx.concatenate([self.keys, room], axis=1)
        self.keys[:, self.offset : end] = keys
        self.offset = end
        return self.keys[:, :end]


@pytest.mark.parametrize("fuse", [True, False])
def test_caches_as_objects(fuse: bool) -> None:
    block = Block()

    def program(x: mx.array, caches: list[Cache]) -> mx.array:
        q, _, v = mx.split(block.project(x), 3, axis=-1)
        for cache in caches:
            k = cache.update(v)
            q = attention(q[:, None], k[:, None], k[:, None])[:, 0]
        return q

    fast = fuser.optimize(program, fuse=fuse)
    for round in range(2):
        mine, wanted = [Cache(), Cache()], [Cache(), Cache()]
        for step, length in enumerate((3, 1, 1, 4, 1)):
            x = arrays((1, length, 32), seed=step)[0]
            same(fast(x, mine), program(x, wanted))
            for left, right in zip(mine, wanted, strict=True):
                assert left.offset == right.offset
                same(left.keys, right.keys)
        assert fast.traces == 5, round


def test_a_long_decode_does_not_trace_for_ever() -> None:
    def program(x: mx.array, cache: Cache) -> mx.array:
        k = cache.update(x)
        return attention(x, k, k)

    fast = fuser.optimize(program)
    mine, wanted = Cache(), Cache()
    for step in range(100):
        x = arrays((1, 1, 8), seed=step)[0]
        same(fast(x, mine), program(x, wanted))
    assert fast.traces <= 32
    assert any("pad" in note for note in fast.report.notes)


def test_a_decode_with_its_position_as_an_array_is_traced_once() -> None:
    def program(x: mx.array, keys: mx.array, position: mx.array) -> Any:
        keys = mx.where(mx.arange(64)[None, :, None] == position, x, keys)
        scores = x @ keys.swapaxes(-1, -2)
        scores = mx.where(mx.arange(64) <= position, scores, -mx.inf)
        return mx.softmax(scores, axis=-1) @ keys, keys

    fast = fuser.optimize(program)
    mine = wanted = mx.zeros((1, 64, 8))
    for step in range(64):
        x = arrays((1, 1, 8), seed=step)[0]
        left, mine = fast(x, mine, mx.array(step))
        right, wanted = program(x, wanted, mx.array(step))
        same([left, mine], [right, wanted])
    assert fast.traces == 1


# -- random numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fuse", [True, False])
def test_random_numbers_are_those_of_the_original(fuse: bool) -> None:
    def program(x: mx.array) -> Any:
        noise = mx.random.normal(x.shape)
        return x + noise, mx.random.randint(0, 10, (3,)), mx.random.bernoulli(0.5, (7,))

    fast = fuser.optimize(program, fuse=fuse)
    for _ in range(2):
        mx.random.seed(11)
        wanted = [program(X) for _ in range(3)] + [mx.random.uniform(shape=(2,))]
        mx.random.seed(11)
        same([fast(X) for _ in range(3)] + [mx.random.uniform(shape=(2,))], wanted)
    assert fast.traces == 1


def test_tracing_leaves_the_random_state_alone() -> None:
    fast = fuser.optimize(lambda x: x + 1)
    mx.random.seed(5)
    wanted = mx.random.uniform(shape=(2,))
    mx.random.seed(5)
    fast(X)
    fuser.trace(lambda x: x + mx.random.uniform(shape=x.shape), X)
    same(mx.random.uniform(shape=(2,)), wanted)


def test_random_keys_as_arguments_and_inside() -> None:
    def keyed(key: mx.array, x: mx.array) -> mx.array:
        return x + mx.random.normal(x.shape, key=key) + mx.random.normal(x.shape, key=mx.random.key(3))

    def seeded(x: mx.array) -> mx.array:
        mx.random.seed(4)
        return x + mx.random.normal(x.shape)

    fast = fuser.optimize(keyed)
    for number in range(3):
        same(fast(mx.random.key(number), X), keyed(mx.random.key(number), X))
    fast_seeded = fuser.optimize(seeded)
    for _ in range(2):
        same([fast_seeded(X), mx.random.normal((2,))], [seeded(X), mx.random.normal((2,))])


def test_random_state_given_as_mx_compile_takes_it() -> None:
    state = [mx.random.state]
    fast = fuser.optimize(lambda x: x + mx.random.uniform(shape=x.shape), inputs=state, outputs=state)
    mx.random.seed(1)
    wanted = [X + mx.random.uniform(shape=X.shape) for _ in range(2)]
    mx.random.seed(1)
    same([fast(X) for _ in range(2)], wanted)
