"""Trees are taken apart and put together again."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import pytest

from fuser.errors import TraceError
from fuser.frontends.trees import Walk, flatten, names, unflatten


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclass
class Point:
    x: Any
    y: Any = None


class Output(OrderedDict[str, Any]):
    """Lets itself be indexed by number, too, and says nothing of what else it does."""

    def __getitem__(self, key: Any) -> Any:
        return list(dict.values(self))[key] if isinstance(key, int) else dict.__getitem__(self, key)

    def __setitem__(self, key: str, value: Any) -> None:
        raise AssertionError

    @classmethod
    def of(cls, **values: Any) -> Output:
        made = cls()
        for key, value in values.items():
            OrderedDict.__setitem__(made, key, value)
        return made


class Backwards(list[Any]):
    def __iter__(self) -> Any:
        return reversed(self)

    def __len__(self) -> int:
        return 1


class Missing(defaultdict[str, Any]):
    pass


class Stack(list[Any]):
    def named(self, name: str) -> Stack:
        self.name = name
        return self


A, B, C = mx.array(1.0), mx.array([2.0]), mx.array([[3]])
TREES: dict[str, Any] = {
    "array": A,
    "nothing": (),
    "statics": (1, 2.5, "a", None, True, ..., float("-inf"), b"x", mx.float16, int, Path("p"), slice(1, None)),
    "list": [A, [B, [C]]],
    "tuple": (A, (B,), ()),
    "dictionary": {"a": A, 2: {"b": B, "c": [C, 1]}},
    "named tuple": Pair(A, Pair(B, "x")),
    "dataclass": Point(A, {"deep": Point(B, (C,))}),
    "ordered": OrderedDict(b=A, a=[B]),
    "ordered of a class": Output.of(b=A, a=[B, C]),
    "with a factory": defaultdict(list, a=[A]),
    "of a class with a factory": Missing(int, a=A),
    "list of a class that iterates otherwise": Backwards([A, B]),
    "counted": {"a": Counter("abca"), "x": A},
    "list of a class": Stack([A, B]).named("mine"),
    "set": {"a": A, "tags": {1, 2}},
}


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES.keys())
def test_there_and_back(tree: Any) -> None:
    arrays, spec = flatten(tree)
    again, same = flatten(unflatten(spec, arrays))
    assert same == spec and hash(same) == hash(spec)
    assert [id(array) for array in again] == [id(array) for array in arrays]
    assert len(names(spec)) == len(arrays)


def test_names_are_the_keys_that_lead_to_an_array() -> None:
    _, spec = flatten({"a": [A, B], "b": Point(C, 1), "c": {"d": (A,)}})
    assert names(spec) == ["a.0", "a.1", "b.x", "c.d.0"]


@pytest.mark.parametrize(
    "left, right",
    [
        *[(1, True), (1, 1.0), (0.0, -0.0), ((A,), [A]), ({"a": 1}, {"b": 1}), (Point(A, 1), Point(A, 2))],
        *[(OrderedDict(a=A, b=A), OrderedDict(b=A, a=A)), (defaultdict(int), defaultdict(list))],
    ],
)
def test_what_makes_another_program_has_another_shape(left: Any, right: Any) -> None:
    assert flatten(left)[1] != flatten(right)[1]


def test_not_a_number_is_itself() -> None:
    assert flatten(float("nan"))[1] == flatten(float("nan"))[1]


def test_a_container_that_is_met_again_is_shared() -> None:
    inner: list[Any] = [A]
    arrays, spec = flatten({"one": inner, "two": inner})
    assert len(arrays) == 1
    made = unflatten(spec, arrays)
    assert made["one"] is made["two"]
    loop: dict[str, Any] = {"a": A}
    loop["self"] = loop
    arrays, spec = flatten(loop)
    made = unflatten(spec, arrays)
    assert made["self"] is made


def test_known_containers_are_not_made_again() -> None:
    walk = Walk()
    state = {"x": A}
    walk.walk(state)
    result = Walk(walk.index)
    spec = result.walk((state, [B, state]))
    assert [id(array) for array in result.arrays] == [id(B)]
    first, (second, third) = unflatten(spec, result.arrays, list(walk.objects))
    assert first is state and third is state and second is B


def test_what_cannot_be_looked_into_is_refused() -> None:
    held = mx.ones(2)
    for leaf in (iter([1]), bytearray(b"x"), lambda: held):
        with pytest.raises(TraceError):
            flatten((A, leaf))
    flatten((A, mx.sin, len, str.upper))
