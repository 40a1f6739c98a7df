"""`fuser.optimize`: objects too large to be looked into, and what is read of them all the same."""

from __future__ import annotations

import logging
import threading
import types
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

import fuser
from tests.programs_base import X, arrays, attention, same

W = arrays((32, 32), seed=3)[0]
MANY = 1100
FACTOR = 2


class Model(nn.Module):
    def __init__(self, parts: int = MANY) -> None:
        super().__init__()
        self.value = nn.Linear(32, 32)
        self.rest = [nn.Module() for _ in range(parts)]

    def __call__(self, x: mx.array) -> mx.array:
        return attention(x, x, self.value(x))


class Tokenizer:
    """What cannot be looked into, and need not be."""

    def __init__(self) -> None:
        self.merges = [(str(number), str(number + 1)) for number in range(MANY)]
        self.lock, self.counter = threading.Lock(), iter(self.merges)


def logger() -> logging.Logger:
    made = logging.Logger("large")
    for _ in range(MANY):
        made.addHandler(logging.NullHandler())
    made.addHandler(logging.StreamHandler())
    return made


class Pipeline:
    def __init__(self, held: Any) -> None:
        # one of the two is large
        self.held, self.model = held, Model(0 if held else MANY)
        self.factor, self.weight = 2.0, W

    def run(self, x: mx.array) -> mx.array:
        return self.model(x @ self.weight) * self.factor


class Outer:
    def __init__(self, inner: Pipeline) -> None:
        self.inner = inner

    def run(self, x: mx.array) -> mx.array:
        return self.inner.run(x) + x


class Wrapping(nn.Module):
    def __init__(self, inner: Pipeline) -> None:
        super().__init__()
        self.parts = [inner]

    def __call__(self, x: mx.array) -> mx.array:
        return self.parts[0].run(x)


def closure(inner: Pipeline) -> Callable[[mx.array], mx.array]:
    return lambda x: inner.run(x)


WAYS: dict[str, Callable[[Pipeline], Callable[[mx.array], mx.array]]] = {
    "method": lambda inner: inner.run,
    "closure": closure,
    "inside of an object": lambda inner: Outer(inner).run,
    "inside of a module": Wrapping,
}


@pytest.mark.parametrize("held", [lambda: None, Tokenizer, logger], ids=["a model", "a tokenizer", "a logger"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_what_is_read_of_a_large_object_is_seen_when_it_changes(way: Any, held: Callable[[], Any]) -> None:
    inner = Pipeline(held())
    program = way(inner)
    fast = fuser.optimize(program)
    same(fast(X), program(X))
    assert fast.report.counts["fused"] == 1
    inner.factor = 5.0
    same(fast(X), program(X))
    inner.weight = W * 2
    same(fast(X), program(X))
    inner.model.value.weight = W
    same(fast(X), program(X))
    inner.model = Model(0)
    same(fast(X), program(X))
    assert fast.report.counts["fused"] == 1


MODEL = Model()


def globally(x: mx.array) -> mx.array:
    return MODEL(x)


def test_a_large_model_in_a_global_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = fuser.optimize(globally)
    same(fast(X), globally(X))
    MODEL.value.weight = W
    same(fast(X), globally(X))
    monkeypatch.setitem(globals(), "MODEL", Model())
    same(fast(X), globally(X))
    assert fast.report.counts["fused"] == 1


def test_large_parameters_in_a_dictionary() -> None:
    parameters = {str(number): {"weight": W} for number in range(MANY)}

    def program(x: mx.array) -> mx.array:
        return attention(x, x, x @ parameters["0"]["weight"])

    fast = fuser.optimize(program)
    same(fast(X), program(X))
    parameters["0"]["weight"] = W * 2
    same(fast(X), program(X))
    assert fast.report.counts["fused"] == 1


class Layered:
    def __init__(self) -> None:
        self.layers = [types.SimpleNamespace(weight=W) for _ in range(MANY)]
        self.words = [(str(number), str(number + 1)) for number in range(MANY)]

    def __call__(self, x: mx.array) -> mx.array:
        weight = self.layers[0].weight * vars(self).get("factor", 1.0)
        return attention(x, x, x @ weight)


def test_a_large_list_of_objects_and_a_name_that_is_made_up() -> None:
    program = Layered()
    fast = fuser.optimize(program)
    same(fast(X), program(X))
    program.layers[0].weight = W * 2
    same(fast(X), program(X))
    for factor in (3.0, 5.0):
        vars(program)["factor"] = factor
        same(fast(X), program(X))
    assert fast.report.counts["fused"] == 1


class Counting(Pipeline):
    def run(self, x: mx.array) -> mx.array:
        self.count = getattr(self, "count", 0) + 1
        self.weight = self.weight * 0.5
        return super().run(x)


def test_what_a_program_changes_in_a_large_object() -> None:
    left, right = Counting(Tokenizer()), Counting(Tokenizer())
    right.model = left.model
    fast = fuser.optimize(left.run)
    for count in range(1, 5):
        same(fast(X), right.run(X))
        assert left.count == right.count == count
        same(left.weight, right.weight)
    # the first call made an attribute
    left.factor = right.factor = 3.0
    same(fast(X), right.run(X))


class Scaled:
    def __call__(self, x: mx.array) -> mx.array:
        return x * FACTOR


class Helped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.helpers = {"scale": [Scaled()]}

    def __call__(self, x: mx.array) -> mx.array:
        return attention(x, x, self.helpers["scale"][0](x))


def test_a_global_that_a_helper_in_a_module_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    program = Helped()
    fast = fuser.optimize(program)
    same(fast(X), program(X))
    monkeypatch.setitem(globals(), "FACTOR", 5)
    same(fast(X), program(X))
    assert fast.report.counts["fused"] == 1
