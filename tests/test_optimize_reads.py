"""`fuser.optimize` where a program reads values on the host: small NumPy arrays, and state of one element."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest

import fuser
from tests.programs_base import X as FLAT
from tests.programs_base import attention, same

X = FLAT[:, None]

# -- NumPy arrays ------------------------------------------------------------------------------------------------------


def packed(x: mx.array, bounds: Any) -> mx.array:
    parts = [x[:, :, a:b] for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)]
    return mx.concatenate([attention(part, part, part) for part in parts], axis=2)


def test_small_numpy_arrays_select_a_trace() -> None:
    fast = fuser.optimize(packed)
    for bounds in ([0, 2, 5], [0, 3, 5], [0, 2, 5]):
        assert mx.allclose(fast(X, np.array(bounds)), packed(X, np.array(bounds)), atol=1e-5).item()
        assert fast.report.counts["fused"] == 2
    assert fast.traces == 2
    nested = fuser.optimize(lambda x, tree: packed(x, tree["bounds"][0]))
    nested(X, {"bounds": [np.array([0, 5])]})
    assert nested.report.counts["fused"] == 1 and fuser.explain(packed, X, np.array([0, 5])).counts["fused"] == 1


def test_numpy_arrays_are_told_apart_by_dtype_shape_and_layout() -> None:
    def program(x: mx.array, what: Any) -> Any:
        return x * what.ndim * len(str(what.dtype)) + mx.array(what.ravel(order="K").tolist()[1])

    fast, square = fuser.optimize(program), np.array([[1, 2], [3, 4]])
    given = [square, square.T, square.ravel(), square.astype(np.int32), square[::-1], square.T.copy()]
    for what in [*given, *given]:
        same(fast(X, what), program(X, what))
    assert fast.traces == 6 and not fast.report.notes


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("caught", [False, True])
def test_a_program_that_writes_into_a_numpy_array(captured: bool, caught: bool) -> None:
    held = np.zeros(2)

    def program(x: mx.array, what: Any) -> mx.array:
        try:
            what[0] += 1
        except ValueError:
            assert caught
        return x * float(what[0])

    fast: Any = fuser.optimize((lambda x: program(x, held)) if captured else program)
    for number in range(1, 15):
        same(fast(X) if captured else fast(X, held), X * number)
        assert held[0] == number and "NumPy" in fast.report.notes[0]


def test_a_numpy_array_that_is_held_and_changes() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = np.ones(1)

        def __call__(self, x: mx.array) -> mx.array:
            return x * float(self.factor[0])

    model = Scaled()
    fast = fuser.optimize(model)
    for factor in (1.0, 2.0, 2.0, 1.0):
        model.factor[0] = factor
        same(fast(X), X * factor)
    assert fast.traces == 2


def test_large_numpy_arrays_and_those_in_results() -> None:
    fast = fuser.optimize(lambda x, what: x + float(what[0]))
    for number in (1.0, 2.0):
        same(fast(X, np.full(10_000, number)), X + number)
    assert "functools.partial" in fast.report.notes[0]
    bound = np.arange(3)
    gives = fuser.optimize(lambda x, what: (x * 2, what))
    assert gives(X, bound)[1] is bound and "NumPy" in gives.report.notes[0]


# -- state of one element ----------------------------------------------------------------------------------------------


class Scaled(nn.Module):
    """Reads its scale in one of some ways; `weight` is trained, and `seen` counts the calls."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self._scale = mx.array(0.5)
        self.weight = mx.ones((1,))
        self.seen = mx.array(0)

    def __call__(self, x: mx.array) -> mx.array:
        self.seen = self.seen + 1
        x = x * self.weight
        if self.how == "kernel":
            scale: Any = self._scale
            return mx.fast.scaled_dot_product_attention(x, x, x, scale=scale)
        if self.how == "branch" and self._scale > 1:
            return x
        scale = self._scale.item() if self.how == "item" else float(self._scale)
        return mx.softmax(x @ x.swapaxes(-1, -2) * scale, axis=-1) @ x


def assign(model: Scaled) -> None:
    model._scale = mx.array(0.25)


def in_place(model: Scaled) -> None:
    model._scale += 1


def update(model: Scaled) -> None:
    model.update({"weight": mx.array([2.0])})


def step(model: Scaled) -> None:
    optim.SGD(0.1).update(model, {"weight": mx.array([1.0])})


def numpy_view(model: Scaled) -> None:
    np.array(model._scale, copy=False)[...] = 0.75


@pytest.mark.parametrize("how", ["kernel", "float", "item", "branch"])
def test_state_that_is_read_is_watched(how: str) -> None:
    model, plain = Scaled(how), Scaled(how)
    fast = fuser.optimize(model)
    for change in (assign, in_place, update, step, numpy_view):
        for _ in range(3):
            assert mx.allclose(fast(X), plain(X), atol=1e-5).item()
            assert model.seen.item() == plain.seen.item()
            counts = fast.report.counts
            assert counts["fused"] + counts["already fused"] == (how != "branch" or float(model._scale) <= 1)
        change(model)
        change(plain)
        assert mx.allclose(fast(X), plain(X), atol=1e-5).item()
    assert fast.traces == 6
    report = fuser.explain(Scaled(how), X)
    assert report.counts["fused"] + report.counts["already fused"] == 1 and fuser.verify(Scaled(how), X).ok


@pytest.mark.parametrize("first", [False, True])
def test_gradients_of_state_that_is_read(first: bool) -> None:
    model, plain = Scaled("float"), Scaled("float")
    fast: Callable[..., Any] = fuser.optimize(model)
    if first:
        fast(X), plain(X)
    for _ in range(2):
        wanted = nn.value_and_grad(plain, lambda x: plain(x).sum())(X)
        found = nn.value_and_grad(model, lambda x: fast(x).sum())(X)
        assert wanted[1]["weight"].item() != 0
        assert mx.allclose(found[1]["weight"], wanted[1]["weight"], rtol=1e-4).item()
        assert mx.allclose(fast(X), plain(X), atol=1e-5).item()


def test_a_gradient_for_what_is_read() -> None:
    weight = mx.array(3.0)

    def program(x: mx.array) -> mx.array:
        return (x * weight * float(weight)).sum()

    def loss(given: mx.array, call: Callable[[mx.array], mx.array]) -> mx.array:
        nonlocal weight
        before, weight = weight, given
        try:
            return call(X)
        finally:
            weight = before

    fast = fuser.optimize(program)
    for _ in range(2):
        assert mx.allclose(mx.grad(loss)(weight, fast), mx.grad(loss)(weight, program), rtol=1e-4).item()
        assert mx.allclose(fast(X), program(X), rtol=1e-4).item()


def test_state_that_changes_at_every_call_is_left_to_the_original() -> None:
    model, plain = Scaled("item"), Scaled("item")
    fast = fuser.optimize(model)
    for number in range(20):
        model._scale = plain._scale = mx.array(0.1 * number)
        assert mx.allclose(fast(X), plain(X), atol=1e-5).item()
    assert fast.traces < 12 and "again and again" in fast.report.notes[0]


def test_state_that_the_program_reads_and_updates() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.count = mx.array(0)

        def __call__(self, x: mx.array) -> mx.array:
            self.count += 1
            return x * self.count.item()

    fast = fuser.optimize(Counter())
    same([fast(X) for _ in range(4)], [X * number for number in (1, 2, 3, 4)])
    assert "reads" in fast.report.notes[0]


def test_a_mask_in_another_container_is_seen() -> None:
    held = {"mask": mx.triu(mx.full((5, 5), -mx.inf), 1)}

    def program(x: mx.array) -> mx.array:
        return mx.softmax(x @ x.swapaxes(-1, -2) + held["mask"], axis=-1) @ x

    fast = fuser.optimize(program)
    assert mx.allclose(fast(X), program(X), atol=1e-5).item()
    held = {"mask": mx.zeros((5, 5))}
    assert mx.allclose(fast(X), program(X), atol=1e-5).item()


def test_an_array_where_a_number_is_wanted() -> None:
    def program(x: mx.array, scale: Any) -> mx.array:
        return mx.fast.scaled_dot_product_attention(x, x, x, scale=scale)

    fast = fuser.optimize(program)
    same(fast(X, mx.array(0.5)), program(X, 0.5))
    line = program.__code__.co_firstlineno + 1
    (note,) = fast.report.notes
    assert f"{Path(__file__).name}:{line}" in note and "give a number" in note and "\n" not in note
