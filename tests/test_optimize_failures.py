"""`fuser.optimize` where it cannot see through a program: the original runs, and the report says which line it is."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import fuser
from tests.programs_base import Block, Net, X, attention, same


def branches(x: mx.array) -> mx.array:
    if x.sum() > 0:  # here: branches
        return x * 2
    return -x


def items(x: mx.array) -> mx.array:
    scale = x[0].item()  # here: items
    return x * scale


def evaluates(x: mx.array) -> mx.array:
    y = x * 2
    mx.eval(y)  # here: evaluates
    return y + 1


def prints(x: mx.array) -> mx.array:
    print("x is", x)  # here: prints
    return x + 1


def through_numpy(x: mx.array) -> mx.array:
    return mx.array(np.array(x) * 2)  # here: through_numpy


def listed(x: mx.array) -> mx.array:
    return mx.array(x.tolist())  # here: listed


def swallows(x: mx.array) -> mx.array:
    try:
        return x * float(x[0])  # here: swallows
    except ValueError:
        return x * 100


def helper(x: mx.array) -> float:
    return float(x.max())  # here: calls_a_helper


def calls_a_helper(x: mx.array) -> mx.array:
    return x * helper(x)


READERS = (branches, items, evaluates, prints, through_numpy, listed, swallows, calls_a_helper)


@pytest.mark.parametrize("program", READERS, ids=lambda program: program.__name__)
def test_values_that_are_read(program: Callable[[mx.array], mx.array], capsys: pytest.CaptureFixture[str]) -> None:
    lines = Path(__file__).read_text().splitlines()
    line = next(number for number, text in enumerate(lines, 1) if text.endswith(f"# here: {program.__name__}"))
    fast = fuser.optimize(program)
    for x in (mx.array([1.0, 2.0]), mx.array([-3.0, 1.0])):
        same(fast(x), program(x))
        (note,) = fast.report.notes
        assert f"{Path(__file__).name}:{line} reads" in note and "mx.where" in note
    assert fast.report.counts == {"fused": 0, "already fused": 0, "refused": 0, "not attention": 0}
    with pytest.raises(fuser.TraceError, match=f":{line} "):
        fuser.trace(program, mx.array([1.0, 2.0]))


def test_errors_of_the_program_pass_through() -> None:
    class Mine(Exception):
        pass

    def program(x: mx.array, how: str) -> mx.array:
        if how == "mine":
            raise Mine("as it is")
        if how == "value":
            raise ValueError("[eval] is not what this is about")
        return x @ mx.zeros((7, 7))

    fast = fuser.optimize(program)
    for _ in range(2):
        with pytest.raises(Mine, match=r"^as it is$"):
            fast(X, "mine")
        with pytest.raises(ValueError, match="not what this"):
            fast(X, "value")
        with pytest.raises(ValueError, match="matmul"):
            fast(X, "shapes")
        with pytest.raises(TypeError, match="argument"):
            fast(X)  # type: ignore[call-arg]
    assert fast(mx.zeros((1, 7)), "fits").shape == (1, 7)


def test_an_error_leaves_state_as_the_original_does() -> None:
    block = Block()
    before = block.out.bias

    def program(x: mx.array) -> mx.array:
        block.out.bias = block.out.bias + x.sum()
        raise KeyError("after")

    with pytest.raises(KeyError):
        fuser.optimize(program)(X)
    same(block.out.bias, before + X.sum())


class Slotted(dict[str, int]):
    __slots__ = ("weight",)

    def __init__(self) -> None:
        super().__init__()
        self.weight = mx.ones(3)


def generator() -> Iterator[int]:
    yield from range(1000)


def test_arguments_that_cannot_be_looked_into() -> None:
    slotted, numbers = Slotted(), generator()
    fast = fuser.optimize(lambda x, what: x * (what.weight if isinstance(what, Slotted) else next(what)))
    x = mx.ones(3)
    for _ in range(2):
        same(fast(x, slotted), x * slotted.weight)
        slotted.weight = slotted.weight * 2
    assert "Slotted" in fast.report.notes[0]
    same([fast(x, numbers) for _ in range(3)], [x * 0, x * 1, x * 2])
    same(fuser.optimize(lambda x, table: x * table[0])(x, _Table()), x * 5)
    same(
        fuser.optimize(lambda x, table: x * mx.array(table))(x, np.array([1.0, 2.0, 3.0], np.float32)),
        mx.array([1.0, 2.0, 3.0]),
    )


class Record:
    __slots__ = ("kept", "scale")

    def __init__(self) -> None:
        self.kept: Any = None
        self.scale = 2.0


@pytest.mark.parametrize("captured", [False, True])
def test_slots_that_change(captured: bool) -> None:
    known, other = Record(), Record()

    def program(x: mx.array, record: Record) -> Any:
        record.kept = x * record.scale if record.kept is None else record.kept + x * record.scale
        return record.kept + 1

    fast: Any = fuser.optimize(lambda x: program(x, other)) if captured else fuser.optimize(program)
    for scale in (2.0, 2.0, 3.0):
        known.scale = other.scale = scale
        same(fast(X) if captured else fast(X, other), program(X, known))
    assert not fast.report.notes


def test_iterators_that_are_captured() -> None:
    numbers = iter(range(100))
    fast = fuser.optimize(lambda x: x + next(numbers))
    same([fast(X) for _ in range(3)], [X, X + 1, X + 2])
    assert "iterator" in fast.report.notes[0]


class Text(str):
    pass


class Numbers(np.ndarray[Any, Any]):
    pass


class Tags(set[str]):
    pass


def test_values_that_hide_in_objects() -> None:
    def program(x: mx.array, what: Any) -> mx.array:
        if isinstance(what, Numbers):
            return x * float(what[0])
        return x * (len(what) if isinstance(what, Tags) else int(what))

    fast = fuser.optimize(program)
    values: list[Any] = [Text("2"), Text("3"), Tags("ab"), Tags("abc"), 4]
    for what in values:
        same(fast(X, what), program(X, what))
    for number in (1.5, 2.5):
        what = np.array([number]).view(Numbers)
        same(fast(X, what), program(X, what))


def test_captured_objects_that_cannot_be_looked_into() -> None:
    slotted, last = Slotted(), deque([mx.ones(3)])

    def program(x: mx.array) -> mx.array:
        slotted.weight = slotted.weight + x
        last.append(last[-1] + x)
        return slotted.weight * last[-1]

    fast = fuser.optimize(program)
    same([fast(mx.ones(3)) for _ in range(3)], [mx.full((3,), float(n * n)) for n in (2, 3, 4)])
    assert "cannot be looked into" in fast.report.notes[0] and len(last) == 4


class _Table:
    def __getitem__(self, index: int) -> float:
        return 5.0


def test_functions_as_arguments() -> None:
    weight = mx.ones(3)

    def inner(x: mx.array) -> mx.array:
        return x * weight

    fast = fuser.optimize(lambda f, x: f(x) + 1)
    x = mx.ones(3)
    same(fast(inner, x), x + 1)
    weight = weight * 4
    same(fast(inner, x), x * 4 + 1)
    same(fast(mx.sin, x), mx.sin(x) + 1)
    same(fast(nn.relu, x), x + 1)


def test_names_by_line_and_by_path() -> None:
    net = Net()

    def program(x: mx.array) -> Any:
        y = attention(x, x, x)
        return net(y)

    report = fuser.explain(program, X)
    line = attention.__code__.co_firstlineno + 1
    assert [region.name for region in report.regions] == [
        f"attention (programs_base.py:{line})",
        "layers.0",
        "layers.1",
    ]
    report = fuser.explain(net.layers[0].twice, X)
    assert [region.name for region in report.regions] == ["Block", "Block"]


def test_several_modules_are_told_apart() -> None:
    encoder, decoder = Net(), Net()
    report = fuser.explain(lambda x: decoder.layers[0](encoder.layers[1](x)), X)
    assert [region.name for region in report.regions] == ["encoder.layers.1", "decoder.layers.0"]
    report = fuser.explain(lambda model, x: model.layers[1](x), encoder, X)
    assert [region.name for region in report.regions] == ["layers.1"]


def test_lines_inside_of_transformations() -> None:
    def program(x: mx.array) -> mx.array:
        return mx.vmap(lambda row: attention(row, row, row))(x)

    fast = fuser.optimize(program)
    same(fast(X), program(X))
    same(mx.grad(lambda x: fast(x).sum())(X), mx.grad(lambda x: program(x).sum())(X))
