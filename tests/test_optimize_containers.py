"""`fuser.optimize`: containers with methods of their own, what partials have bound, and arrays that are pending."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

import fuser
from tests.programs_base import X, arrays, attention, same

W = arrays((32, 32), seed=3)[0]


def attended(x: mx.array, weight: mx.array) -> mx.array:
    return attention(x, x, x @ weight)


class Numbered(nn.Module):
    """Modules under numbers, in a class that iterates and indexes as a list does."""

    def __init__(self, modules: list[Any]) -> None:
        super().__init__()
        for number, module in enumerate(modules):
            dict.__setitem__(self, str(number), module)

    def __iter__(self) -> Iterator[Any]:
        return iter([self[number] for number in range(len(self))])

    def __getitem__(self, number: int) -> Any:
        return dict.__getitem__(self, str(number))


class Unlike(nn.Module):
    """Has methods of its own under the names of those of a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.k, self.v = nn.Linear(32, 32), nn.Linear(32, 32)

    def keys(self, x: mx.array) -> Any:  # type: ignore[override]
        return self.k(x)

    def values(self, x: mx.array) -> Any:  # type: ignore[override]
        return self.v(x)

    def items(self, x: mx.array) -> Any:  # type: ignore[override]
        return self.keys(x), self.values(x)

    def update(self, x: mx.array) -> None:  # type: ignore[override]
        self.last = x

    def __call__(self, x: mx.array) -> mx.array:
        self.update(x)
        return attention(x, *self.items(x))


@pytest.mark.parametrize("kind", [list, Numbered])
def test_modules_whose_methods_are_not_those_of_a_dictionary(kind: Callable[[list[Any]], Any]) -> None:
    layers = kind([Unlike(), Unlike()])

    def program(x: mx.array) -> mx.array:
        for layer in layers:
            x = layer(x)
        return x

    fast = fuser.optimize(program)
    for _ in range(2):
        same([fast(X), layers[0].last], [program(X), X])
        layers[1].v.weight = layers[1].v.weight * 2
    assert fast.report.counts["fused"] == fuser.explain(program, X).counts["fused"] == 2 and not fast.report.notes
    assert [region.name.split(".")[-1] for region in fast.report.regions] == ["0", "1"]


def put_first(array: mx.array, value: float) -> Callable[[], None]:
    return lambda: array.__setitem__(0, value)


def test_what_a_partial_has_bound_may_change() -> None:
    weight, inner = mx.array(W), {"window": 4}
    grid = mx.array([2, 3])

    def program(weight: mx.array, x: mx.array, config: dict[str, int], grid: mx.array) -> mx.array:
        sizes: Any = grid.tolist()
        return attended(x * sizes[0], weight) * config["window"]

    bound = functools.partial(functools.partial(program, weight), config=inner, grid=grid)
    fast = fuser.optimize(bound)
    same([fast(X), fast(X)], [bound(X), bound(X)])
    for change in (put_first(weight, 2.0), put_first(grid, 5), lambda: inner.update(window=3)):
        change()
        same([fast(X), fast(X)], [bound(X), bound(X)])
    assert fast.traces == 4 and not fast.report.notes


def test_an_array_in_a_partial_that_the_program_updates() -> None:
    def program(count: mx.array, x: mx.array) -> mx.array:
        count[0] = count[0] + x.sum()
        return x * count

    counts = mx.zeros((1,)), mx.zeros((1,))
    bound, other = (functools.partial(program, count) for count in counts)
    fast = fuser.optimize(bound)
    for _ in range(3):
        same([fast(X), counts[0]], [other(X), counts[1]])
    assert "functools.partial has bound" in fast.report.notes[0]


def test_a_trace_leaves_captured_arrays_alone() -> None:
    cache = mx.zeros((1, 32, 32))

    def program(x: mx.array) -> mx.array:
        cache[0, :3] = x[0, 0]
        return attention(x, x, x) + cache[0, 0]

    assert fuser.explain(program, X).counts["fused"] == 1
    same(cache, mx.zeros((1, 32, 32)))


@pytest.mark.parametrize("dtype", [mx.bool_, mx.bfloat16, mx.float16, mx.complex64, mx.uint8, mx.int64])
@pytest.mark.parametrize("shape", [(), (0, 2), (3, 4)])
def test_arrays_of_all_kinds_in_a_partial(dtype: mx.Dtype, shape: tuple[int, ...]) -> None:
    fast = fuser.optimize(functools.partial(mx.add, mx.ones(shape, dtype).T))
    x = mx.ones(shape[::-1])
    same([fast(x), fast(x)], [x + mx.ones((), dtype)] * 2)
    assert fast.traces == 1 and not fast.report.notes


def test_what_is_pending_is_no_part_of_the_program(tmp_path: Path) -> None:
    mx.save(str(tmp_path / "weight.npy"), W)
    held = {"pending": mx.random.normal((32, 32))}
    loaded: Any = mx.load(str(tmp_path / "weight.npy"))
    bound: Any = mx.load(str(tmp_path / "weight.npy"))
    program = functools.partial(lambda bound, x: attended(x @ bound, loaded) @ held["pending"], bound)
    graph = fuser.trace(program, X)
    assert not {"Load", "RandomBits", "ErfInv"} & {node.op for node in graph.nodes}
    assert fuser.explain(program, X).counts["fused"] == 1
