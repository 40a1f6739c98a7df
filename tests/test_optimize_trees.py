"""`fuser.optimize`: static arguments, trees of arguments and results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import pytest

import fuser
from tests.programs_base import X, arrays, attention, same

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
        given: dict[str, Any] = {"a": [a, b], "b": {"c": (c, 1)}}
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
