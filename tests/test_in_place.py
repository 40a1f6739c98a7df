"""Programs that update arrays in place, and share them: replayed and fused, they do what the original does."""

from __future__ import annotations

import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest

import fuser

SHAPE = (1, 2, 3, 4)
# steps of a program over arrays: `x` and `y` stand for any that there is, `new` for another name
STEPS = (
    "{x} += {y}",
    "{x} *= 0.5",
    "{x}[0, 0] = {y}[0, 0] * 2",
    "{x}[...] = {y}",
    "{x} = {y} * 0.7",
    "{new} = {x}",
    "{new} = {x}[...]",
    "{new} = {x} + {y}",
    "{new} = mx.softmax({x} @ {y}.swapaxes(-1, -2) * 0.3, axis=-1) @ {y}",
    "{new} = mx.fast.scaled_dot_product_attention({x}, {y}, {y}, scale=0.3)",
    "{new} = helper({x}, {y})",
    "{new} = mx.exp(-mx.abs({x})); {new} /= {new}.sum(-1, keepdims=True)",
    "items.append({x}); items.insert(0, {y})",
    "table['k'] = {x}; table['{new}'] = {y}",
)


def helper(x: mx.array, y: mx.array) -> mx.array:
    x *= 0.9
    z = x - y
    z += x
    return z


def program_of(seed: int) -> str:
    """The source of a random program."""
    draw = random.Random(seed)
    names, lines = ["a", "b", "state.w", "table['k']", "items[0]"], []
    for number in range(draw.randint(4, 12)):
        x, y, step = draw.choice(names), draw.choice(names), draw.choice(STEPS)
        lines.append(step.format(x=x, y=y, new=f"v{number}"))
        if step.startswith("{new}"):
            names.append(f"v{number}")
    lines.append(f"return [{', '.join(draw.sample(names, 3))}]")
    return "\n    ".join(["def program(a, b, table, items):", *lines])


def arrays_in(tree: Any) -> list[mx.array]:
    if isinstance(tree, mx.array):
        return [tree]
    return [array for each in (tree.values() if isinstance(tree, dict) else tree) for array in arrays_in(each)]


def run(source: str, fuse: bool | None) -> list[Any]:
    """Three calls: all arrays that are given or left behind, and which of them are the same object."""
    mx.random.seed(0)
    state = SimpleNamespace(w=mx.random.normal(SHAPE))
    names: dict[str, Any] = {"mx": mx, "helper": helper, "state": state, "__name__": "user"}
    exec(source, names)
    program = names["program"] if fuse is None else fuser.optimize(names["program"], fuse=fuse)
    seen: list[Any] = []
    for _ in range(3):
        a, b, c, d = (mx.random.normal(SHAPE) for _ in range(4))
        arguments: Any = (a, b, {"k": c}, [d])
        found = [*arrays_in(program(*arguments)), *arrays_in(arguments), state.w]
        same = [[one is other for one in found] for other in found]
        seen.append(([mx.array(array) for array in found], same))
    assert fuse is None or not any("original" in note for note in program.report.notes)
    return seen


@pytest.fixture
def uncompiled() -> Iterator[None]:
    # so many small programs would each be compiled by the C++ compiler
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.mark.parametrize("seed", range(40))
def test_random_programs(seed: int, uncompiled: None) -> None:
    source = program_of(seed)
    wanted = run(source, None)
    for fuse in (False, True):
        for (values, same), (found, found_same) in zip(wanted, run(source, fuse), strict=True):
            assert same == found_same, source
            for left, right in zip(values, found, strict=True):
                close = mx.allclose(left, right, rtol=1e-4, atol=1e-4, equal_nan=True)
                assert close if fuse else mx.array_equal(left, right, equal_nan=True), source


def kernel_and_then(q: mx.array) -> tuple[mx.array, mx.array]:
    q = q * 2
    y = mx.fast.scaled_dot_product_attention(q, q, q, scale=0.5)
    q += 1
    z = mx.fast.scaled_dot_product_attention(q, q, q, scale=0.5)
    z -= 3
    return y, z + q


@pytest.mark.parametrize("fuse", [False, True])
def test_what_is_updated_after_the_kernels_call_was_read_before(fuse: bool) -> None:
    q = mx.random.normal((1, 2, 5, 4))
    fast: Any = fuser.optimize(kernel_and_then, fuse=fuse)
    for wanted, found in zip(kernel_and_then(q), fast(q), strict=True):
        assert mx.array_equal(wanted, found)
    assert fuse is False or fast.report.counts["already fused"] == 2


def test_a_new_array_that_is_given_and_kept_is_one_array() -> None:
    state = SimpleNamespace(w=mx.ones(3))

    def program(x: mx.array, kept: dict[str, mx.array]) -> Any:
        handle = state.w[...]
        kept["new"] = handle
        return handle

    fast: Any = fuser.optimize(program)
    for _ in range(2):
        kept: dict[str, mx.array] = {}
        assert fast(mx.ones(3), kept) is kept["new"] and kept["new"] is not state.w
