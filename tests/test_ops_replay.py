"""Trace, replay through the table of primitives, compare bits: what the tests of that table share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from fuser.ir.ops import rebuild
from fuser.ir.types import TensorType, type_of

FLOATS = (mx.float32, mx.float16, mx.bfloat16, mx.float64)
# MLX's stubs cannot type lambdas in these.
grad: Any = mx.grad
vmap: Any = mx.vmap
INTEGERS = (mx.int8, mx.int16, mx.int32, mx.int64, mx.uint8, mx.uint16, mx.uint32, mx.uint64)


class Node(NamedTuple):
    """One primitive of a trace."""

    op: str
    arguments: tuple[Any, ...]
    inputs: list[str]
    input_types: list[TensorType]
    outputs: list[str]
    output_types: list[TensorType]


class Trace(NamedTuple):
    """A traced program."""

    inputs: list[str]
    constants: dict[str, mx.array]
    nodes: list[Node]
    outputs: list[str]

    def replay(self, *arguments: mx.array) -> list[mx.array]:
        values = dict(self.constants) | dict(zip(self.inputs, arguments, strict=True))
        for node in self.nodes:
            given = [values[name] for name in node.inputs]
            made = rebuild(node.op, node.arguments, given, node.output_types)
            assert len(made) == len(node.outputs), node
            assert [type_of(array) for array in made] == node.output_types, node
            values.update(zip(node.outputs, made, strict=True))
        return [values[name] for name in self.outputs]


def frozen(argument: Any) -> Any:
    return tuple(map(frozen, argument)) if isinstance(argument, list | tuple) else argument


def trace(program: Callable[..., Any], *arguments: mx.array, shapeless: bool = False) -> Trace:
    messages: list[dict[str, Any]] = []
    mx.export_function(messages.append, program, *arguments, shapeless=shapeless)
    by_type = {message["type"]: message for message in messages}
    nodes = [
        Node(
            message["name"],
            frozen(message["arguments"]),
            [name for name, _, _ in message["inputs"]],
            [TensorType(tuple(shape), dtype) for _, shape, dtype in message["inputs"]],
            [name for name, _, _ in message["outputs"]],
            [TensorType(tuple(shape), dtype) for _, shape, dtype in message["outputs"]],
        )
        for message in messages
        if message["type"] == "primitive"
    ]
    return Trace(
        [name for name, _, _ in by_type["inputs"]["inputs"]],
        dict(by_type["constants"]["constants"]),
        nodes,
        [name for name, _, _ in by_type["outputs"]["outputs"]],
    )


def bits(array: mx.array) -> bytes:
    flat = mx.reshape(array, (-1,))
    return bytes(np.asarray(mx.view(flat, mx.uint8))) if flat.size else b""


def listed(outputs: Any) -> list[mx.array]:
    return [outputs] if isinstance(outputs, mx.array) else list(outputs)


def assert_same(actual: list[mx.array], expected: list[mx.array]) -> None:
    assert [type_of(array) for array in actual] == [type_of(array) for array in expected]
    for one, other in zip(actual, expected, strict=True):
        if bits(one) != bits(other):
            raise AssertionError(f"{one} is not {other}")


class Case(NamedTuple):
    """A program that holds the primitive `op`, and its arguments."""

    op: str
    program: Any
    arguments: tuple[mx.array, ...]
    shapeless: bool = False

    @property
    def id(self) -> str:
        types = "-".join(str(type_of(a)).replace(", ", "x") for a in self.arguments)
        return f"{self.op}-{types}"


# Primitives without a public call of their own: other primitives are composed to the same bits.
COMPOSED = {"Copy", "Equal", "NumberOfElements", "ScatterAxis", "BroadcastAxes"}
# Primitives whose result depends on the traced types: the rewriter makes none of them.
TYPED = {"Arange", "BroadcastAxes", "Depends", "Quantize"}


def check(case: Case) -> None:
    """Replaying the program gives identical bits, through the same primitive, with types inferred alike."""
    traced = trace(case.program, *case.arguments, shapeless=case.shapeless)
    assert case.op in {node.op for node in traced.nodes}
    expected = listed(case.program(*case.arguments))
    assert_same(traced.replay(*case.arguments), expected)
    again = trace(traced.replay, *case.arguments)
    assert case.op in COMPOSED or case.op in {node.op for node in again.nodes}
    for node in traced.nodes:
        if node.op not in TYPED:
            holders = [mx.zeros(each.shape, each.dtype) for each in node.input_types]
            assert [type_of(a) for a in rebuild(node.op, node.arguments, holders)] == node.output_types, node


def numbers(*shape: int, dtype: mx.Dtype = mx.float32, seed: int = 0, special: bool = False) -> mx.array:
    """Repeatable values that suit `dtype`; `special` puts NaN, infinities and subnormals among them."""
    generator = np.random.default_rng(seed)
    if dtype == mx.bool_:
        return mx.array(generator.random(shape) < 0.5)
    if mx.issubdtype(dtype, mx.integer):
        low = 0 if mx.issubdtype(dtype, mx.unsignedinteger) else -100
        return mx.array(generator.integers(low, 100, shape)).astype(dtype)
    values = generator.normal(size=shape).astype(np.float32)
    if special:
        extremes = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, -1e-40, 1.0, 65504.0], np.float32)
        values.reshape(-1)[: len(extremes)] = extremes[: values.size]
    if dtype == mx.complex64:
        return mx.array(values + 1j * generator.normal(size=shape).astype(np.float32))
    return mx.array(values).astype(dtype)
