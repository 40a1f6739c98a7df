"""`fuser.optimize`: what a program reads and changes besides its arguments and results."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import mlx.core as mx
import pytest

import fuser
from tests.programs_base import Block, X, Y, arrays, attention, same

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
        state: list[Any] = [mx.array(0.0), {"total": mx.zeros(3)}]

        def program(x: mx.array) -> Any:
            state[0] = state[0] + 1
            state[1]["total"] = state[1]["total"] + x
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
    def program(store: dict[str, Any], found: list[Any], x: mx.array) -> Any:
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
    for step in range(200):
        x = arrays((1, 1, 8), seed=step)[0]
        same(fast(x, mine), program(x, wanted))
    assert fast.traces == 8
    assert any("pad" in note for note in fast.report.notes)


def test_signatures_that_come_again_are_traced() -> None:
    fast = fuser.optimize(attention)
    for turn in range(4):
        for length in range(1, 21):
            x = mx.ones((1, length, 8))
            same(fast(x, x, x), attention(x, x, x))
            assert turn < 3 or fast.report.counts["fused"] == 1
    assert fast.traces == 20


class Padded:
    """A cache that grows by blocks, gives all of them, and has its position in an array."""

    def __init__(self) -> None:
        self.keys = mx.zeros((1, 16, 8))
        self.position = mx.array(0)

    def update(self, x: mx.array) -> mx.array:
        self.keys = mx.slice_update(self.keys, x, self.position, axes=(1,))
        self.position = self.position + 1
        return self.keys


def test_a_decode_of_200_tokens_in_blocks_is_traced_once_a_block() -> None:
    def program(x: mx.array, cache: Padded) -> mx.array:
        k = cache.update(x)
        scores = x @ k.swapaxes(-1, -2) / 8**0.5
        return mx.softmax(mx.where(mx.arange(k.shape[1]) < cache.position, scores, -mx.inf), axis=-1) @ k

    fast = fuser.optimize(program)
    mine, wanted = Padded(), Padded()
    for step in range(200):
        x = arrays((1, 1, 8), seed=step)[0]
        if step % 16 == 0 and step:
            for cache in (mine, wanted):
                cache.keys = mx.concatenate([cache.keys, mx.zeros((1, 16, 8))], axis=1)
        same(fast(x, mine), program(x, wanted))
        assert fast.report.counts["fused"] == 1
    assert fast.traces == 13


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


def test_random_numbers_go_on_when_compilation_is_switched_off() -> None:
    fast: Any = fuser.optimize(lambda x: x + 1)
    mx.random.seed(5)
    wanted = [mx.random.uniform(shape=(2,)) for _ in range(4)]
    mx.random.seed(5)
    mx.disable_compile()
    try:
        for each in wanted:
            drawn = mx.random.uniform(shape=(2,))
            same(drawn, each)
            same(fast(drawn), each + 1)
    finally:
        mx.enable_compile()


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


FACTOR = mx.ones((32,))


class ReadsGlobals(Block):
    def __call__(self, x: mx.array) -> mx.array:
        return self.scaled(super().__call__(x))

    def scaled(self, x: mx.array) -> mx.array:
        return x * FACTOR


def test_globals_that_methods_read(monkeypatch: pytest.MonkeyPatch) -> None:
    block = ReadsGlobals()
    fast = fuser.optimize(lambda x: block(x))
    same(fast(X), block(X))
    monkeypatch.setitem(globals(), "FACTOR", FACTOR * 3)
    same(fast(X), block(X))
    assert fast.traces == 1


@pytest.mark.parametrize("fuse", [True, False])
def test_which_arrays_are_the_same_object(fuse: bool) -> None:
    def program(x: mx.array, state: dict[str, Any]) -> Any:
        x[0] = 7.0
        y = x * 2
        state["y"], state["x"], state["copy"] = y, x, y[...]
        return x, y, y, y[...], x[...]

    fast = fuser.optimize(program, fuse=fuse)
    for _ in range(2):
        outcomes = []
        for call in (fast, program):
            x, state = arrays((4,))[0], dict[str, Any]()
            results = call(x, state)
            everything = [x, *results, *state.values()]
            outcomes.append([[one is other for other in everything] for one in everything])
            results[1][1] = -1.0
            x[2] = -2.0
            outcomes.append([array.tolist() for array in everything])
        assert outcomes[:2] == outcomes[2:]
    assert fast.traces == 1


def test_dictionaries_that_keep_an_order() -> None:
    def program(state: Any, x: mx.array) -> Any:
        state["a"] = state.pop("a") + x
        state.move_to_end("b")
        state["new"] = x
        return state["b"] * 2

    fast = fuser.optimize(program)
    mine, wanted = (OrderedDict(a=X, b=Y, c=1) for _ in range(2))
    for _ in range(2):
        same(fast(mine, X), program(wanted, X))
        same(dict(mine), dict(wanted))
