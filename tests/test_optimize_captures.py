"""`fuser.optimize`: by which ways a program reaches what it reads, and that all of it is seen when it changes."""

from __future__ import annotations

import asyncio
import copy
import functools
import pickle
import sys
import types
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import fuser
from tests.programs_base import X, arrays, attention, same

W = arrays((32, 32), seed=3)[0]
FACTOR = 2
TABLE = mx.ones((32,))
Way = tuple[Callable[[mx.array], Any], list[Callable[[], Any]]]


def attended(x: mx.array, weight: mx.array) -> mx.array:
    return attention(x, x, x @ weight)


class Holder:
    def __init__(self) -> None:
        self.weight, self.window = W, 4


class Worker(Holder):
    kind = 2

    def run(self, x: mx.array) -> mx.array:
        return attended(x, self.weight) * self.kind * FACTOR * TABLE


@dataclass
class Config:
    weight: mx.array
    window: int = 4


@dataclass(frozen=True)
class Slotted:
    __slots__ = ("weight", "window")
    weight: mx.array
    window: int


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Worker()
        self._weight = W
        self.window = 4

    def __call__(self, x: mx.array) -> mx.array:
        return self.inner.run(attended(x, self._weight) * self.window)


def put(owner: Any, **values: Any) -> Callable[[], None]:
    def change() -> None:
        for name, value in values.items():
            object.__setattr__(owner, name, value) if isinstance(owner, Slotted) else setattr(owner, name, value)

    return change


def objects() -> Iterator[tuple[str, Way]]:
    changes: list[dict[str, Any]] = [{"weight": W * 2}, {"window": 8}, {"weight": W[:, ::-1], "window": 1}]
    for owner in (Holder(), Config(W), types.SimpleNamespace(weight=W, window=4), Slotted(W, 4)):
        yield (
            type(owner).__name__,
            (
                lambda x, owner=owner: attended(x, owner.weight) * owner.window,  # type: ignore[misc]
                [put(owner, **each) for each in changes],
            ),
        )
    module: Any = types.ModuleType("settings")
    module.weight, module.window, module.scaled = W, 4, lambda x: x * module.window
    changed = [*(put(module, **each) for each in changes), put(module, scaled=lambda x: x - 1)]
    yield "module", (lambda x: module.scaled(attended(x, module.weight)), changed)
    space = type("Space", (), {"weight": W, "window": 4, "scaled": staticmethod(lambda x: x * 2)})
    reads: Any = space
    changed = [*(put(space, **each) for each in changes), put(space, scaled=staticmethod(lambda x: x - 1))]
    yield "class", (lambda x: reads.scaled(attended(x, reads.weight) * reads.window), changed)


def functions() -> Iterator[tuple[str, Way]]:
    def defaults(x: mx.array, weight: mx.array = W, *, window: int = 4) -> mx.array:
        return attended(x, weight) * window

    def again() -> None:
        defaults.__kwdefaults__ = {"window": 3}
        defaults.__defaults__ = (W * 5,)

    yield "defaults", (defaults, [put(defaults, __kwdefaults__={"window": 8}), again])
    weight = mx.array(W)

    def default(x: mx.array, weight: mx.array = weight) -> mx.array:
        return attended(x, weight)

    yield "default in place", (default, [lambda: weight.__setitem__(0, 2.0)])

    def marked(x: mx.array) -> mx.array:
        return attended(x, marked.weight)  # type: ignore[attr-defined]

    marked.weight = W  # type: ignore[attr-defined]
    yield "attribute of the function", (marked, [put(marked, weight=W * 3)])
    values = {"window": 4}
    get = values.get
    yield "method of a dictionary", (lambda x: x * (get("window") or 0), [lambda: values.update(window=8)])


def methods() -> Iterator[tuple[str, Way]]:
    worker, other, net = Worker(), Worker(), Masked()
    yield "bound", (worker.run, [put(worker, weight=W * 2), put(worker, kind=3)])
    yield "captured", (lambda x: other.run(x), [put(other, weight=W * 2), put(other, kind=5)])
    inner = net.inner
    yield (
        "nn.Module",
        (net, [put(net, window=8), put(net, _weight=W * 2), put(inner, weight=W * 3), put(inner, kind=7)]),
    )
    empty = type("Empty", (), {"window": 4})()
    yield "hidden by an object", (lambda x: x * empty.window, [put(empty, window=8)])


@pytest.mark.parametrize(("name", "way"), [*objects(), *functions(), *methods()])
def test_what_is_reached_is_seen_when_it_changes(name: str, way: Way) -> None:
    program, changes = way
    fast = fuser.optimize(program)
    same(fast(X), program(X))
    for change in changes:
        change()
        for _ in range(2):
            same(fast(X), program(X))
    assert not fast.report.notes, name


def test_globals_and_class_attributes_that_methods_read(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker()
    fast = fuser.optimize(lambda x: worker.run(x))
    same(fast(X), worker.run(X))
    changes: list[tuple[Any, str, Any]] = [
        (Worker, "kind", 5),
        (Worker, "run", lambda self, x: x * self.kind),
        (Worker, "kind", mx.full((32,), 3.0)),
    ]
    for change in changes:
        monkeypatch.setattr(*change)
        same(fast(X), worker.run(X))
    monkeypatch.undo()
    for name, value in (("FACTOR", 3), ("TABLE", TABLE * 5), ("attended", lambda x, weight: x)):
        monkeypatch.setitem(globals(), name, value)
        same(fast(X), worker.run(X))


class Counted:
    calls = 0
    tables: dict[int, mx.array] = {}  # noqa: RUF012

    def __init__(self) -> None:
        self.weight = TABLE * 2

    def table(self, size: int) -> mx.array:
        if size not in Counted.tables:
            Counted.tables[size] = self.weight[:size]
        return Counted.tables[size]

    @functools.lru_cache  # noqa: B019
    def cached(self, size: int) -> mx.array:
        return self.weight[:size] + 1

    def __call__(self, x: mx.array) -> mx.array:
        Counted.calls += 1
        return x * self.table(32) * self.cached(32)


def test_what_a_trace_makes_stays_in_it() -> None:
    counted = Counted()
    fast = fuser.optimize(counted)
    for calls, x in enumerate((X, X[:1], X, X[:1]), 1):
        same(fast(x), x * 6)
        assert Counted.calls == calls
    same(counted(X), X * 6)
    same(Counted.tables, {32: TABLE * 2})


def test_a_captured_deque() -> None:
    last: deque[mx.array] = deque(maxlen=2)

    def program(x: mx.array) -> Any:
        last.append(x)
        return sum(last, mx.zeros(()))

    fast = fuser.optimize(program)
    same([fast(X), fast(X * 2), fast(X * 3)], [X, X * 3, X * 5])
    assert "deque" in fast.report.notes[0]


@pytest.mark.parametrize(
    "held", [bytearray([2]), array("d", [2.0]), memoryview(bytearray([2]))], ids=["bytearray", "array", "memoryview"]
)
def test_what_cannot_be_looked_into_is_not_traced(held: Any) -> None:
    fast = fuser.optimize(lambda x: attended(x, W) * held[0])
    for factor in (2, 3):
        held[0] = factor
        same(fast(X), attended(X, W) * factor)
    assert "cannot be looked into" in fast.report.notes[0]


def test_a_view_of_a_dictionary() -> None:
    held: dict[str, Any] = {"factor": 2.0, "weight": W}
    view = types.MappingProxyType(held)
    fast = fuser.optimize(lambda x: attended(x, view["weight"]) * view["factor"])
    same(fast(X), attended(X, W) * 2)
    held |= {"factor": 3.0, "weight": W * 2}
    same(fast(X), attended(X, W * 2) * 3)
    assert fast.report.counts["fused"] == 1


def imports(x: mx.array) -> mx.array:
    from settings_made_for_a_test import FACTOR, scaled  # type: ignore[import-not-found]

    return attended(x, W) * FACTOR * scaled()  # type: ignore[no-any-return]


def test_what_is_imported_inside_of_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: Any = types.ModuleType("settings_made_for_a_test")
    exec("FACTOR = OTHER = 1.0\ndef scaled():\n    return OTHER", vars(settings))
    monkeypatch.setitem(sys.modules, settings.__name__, settings)
    fast = fuser.optimize(imports)
    same(fast(X), attended(X, W))
    settings.FACTOR = 2.0
    same(fast(X), attended(X, W) * 2)
    settings.OTHER = 5.0
    same(fast(X), attended(X, W) * 10)
    assert fast.report.counts["fused"] == 1


def test_what_runs_later_is_not_traced() -> None:
    async def program(x: mx.array) -> mx.array:
        return x * 2

    async def stream(x: mx.array) -> Any:
        yield x * 3

    fast = fuser.optimize(program)
    same(asyncio.run(fast(X)), X * 2)
    same(asyncio.run(anext(fuser.optimize(stream)(X))), X * 3)
    assert "later (coroutine)" in fast.report.notes[0]


def test_functions_as_arguments_that_bring_values() -> None:
    log: list[int] = []
    factor = 2

    def scaled(x: mx.array) -> mx.array:
        return x * factor * FACTOR

    def program(x: mx.array, call: Callable[[mx.array], Any]) -> mx.array:
        made = call(x)
        return x if made is None else made

    fast = fuser.optimize(program)
    for _ in range(2):
        same(fast(X, lambda x: log.append(1)), X)
        same(fast(X, scaled), scaled(X))
        factor += 1
    same(fast(X, functools.partial(mx.add, 1)), X + 1)
    assert log == [1, 1] and not fast.report.notes


def test_numbers_that_are_equal_and_not_the_same() -> None:
    def program(x: mx.array, number: Any) -> Any:
        return x / number

    # MLX's own compilation takes the one for the other
    fast = fuser.optimize(program, fuse=False)
    for number in (0.0, -0.0, np.float32(0.0), np.float32(-0.0)):
        same(fast(mx.ones(2), number), program(mx.ones(2), number))


class Decorated:
    def __init__(self) -> None:
        self.factor = 2

    @fuser.optimize
    def run(self, x: mx.array) -> mx.array:
        return attention(x, x, x) * self.factor

    @fuser.optimize
    def twice(self, x: mx.array) -> Any:
        return self.run(self.run(x))


@fuser.optimize
def decorated(x: mx.array) -> Any:
    return attention(x, x, x)


def pickled(what: Any) -> Any:
    return pickle.loads(pickle.dumps(what))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickled])
def test_copies(copied: Callable[[Any], Any]) -> None:
    one = Decorated()
    wanted = attention(X, X, X)
    same([one.run(X), one.twice(X)], [wanted * 2, attention(wanted * 2, wanted * 2, wanted * 2) * 2])
    other = copied(one)
    other.factor = 5
    same([other.run(X), one.run(X)], [wanted * 5, wanted * 2])
    assert other.run.traces == one.run.traces == 1 and other.twice.original.__self__ is other
    same([copied(one.run)(X), copied(decorated)(X)], [wanted * 2, wanted])
    layer = fuser.optimize(nn.Linear(32, 32))
    again = copied(layer)
    again.bias = again.bias + 1
    same(again(X), again.original(X))


def test_many_traces_of_one_method_leave_the_others_alone() -> None:
    one = Decorated()
    same(one.twice(X), one.twice.original(X))
    for length in range(1, 8):
        one.run(mx.ones((1, length, 8)))
    for factor in (3, 5):
        one.factor = factor
        same(one.twice(X), one.twice.original(X))
