"""What of an ONNX graph can be traced at once, where a step of it needs values that only a run gives.

A step that must read a traced value (a loop whose end is computed, a choice of elements) is stuck: it runs on the host.
A piece computes what the stuck steps need, and the next one goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import mlx.core as mx
import numpy as np
from onnx import TensorProto

from fuser.errors import InvalidModelError
from fuser.frontends.onnx_graph import Graph, Step
from fuser.frontends.onnx_run import Interpreter, Pool, Scope
from fuser.frontends.onnx_types import NUMPY_TYPES, Items, Narrow, Value, onnx_type

# a host value beyond this becomes an array: it is compared at every call
_BYTES_AS_HOST = 1 << 16
# what may be, or hold, the product that every attention has
_PRODUCTS = ("MatMul", "Gemm", "Einsum", "Attention", "Conv")


class Known(NamedTuple):
    """A host value as a static argument: hashable, equal where the program is the same."""

    type: int
    shape: tuple[int, ...]
    data: bytes | tuple[str, ...]


class Narrowed(NamedTuple):
    """A `Narrow` as a tree."""

    carrier: mx.array
    type: int


class Sequence(NamedTuple):
    """A sequence as a tree."""

    values: tuple[Any, ...]


Packed: TypeAlias = "mx.array | Known | Narrowed | Sequence"


class Made(NamedTuple):
    """What a piece gives: values by name, and the number of what is left to do after it, `-1` for nothing."""

    values: dict[str, Packed]
    rest: int


class Rest(NamedTuple):
    """What a piece leaves: steps for the host with the reason, and those that come after them."""

    stuck: tuple[tuple[int, str], ...]
    waiting: tuple[int, ...]


class Parts:
    """One graph that is run in pieces; `constants` are those of the graphs around it.

    `rests` grows as traces find out what is stuck.
    """

    def __init__(self, graph: Graph, name: str, pool: Pool, constants: Mapping[str, Value]) -> None:
        self.graph, self.name, self.pool = graph, name, pool
        own = {name: value for name, value in graph.constants.items() if name not in graph.inputs}
        self.constants: Mapping[str, Value] = {**constants, **own}
        self.rests: list[Rest] = []

    @cached_property
    def needs(self) -> list[set[str]]:
        """What each step takes, inner graphs included."""
        return [_needs(step) for step in self.graph.steps]

    def wanted(self, steps: Iterable[int]) -> set[str]:
        """The names that these steps take, and the graph's outputs."""
        return {*self.graph.outputs}.union(*(self.needs[number] for number in steps))

    def rest(self, found: Rest) -> int:
        """The number of what is left to do."""
        if found not in self.rests:
            self.rests.append(found)
        return self.rests.index(found)


class Piece:
    """A callable over packed values by name: those steps of `todo` that can be computed; to be traced."""

    def __init__(self, parts: Parts, todo: tuple[int, ...] | None = None) -> None:
        self._parts = parts
        self._todo = range(len(parts.graph.steps)) if todo is None else todo
        self.name = parts.name

    def __call__(self, /, **given: Packed) -> Made:
        """The values that are wanted after this piece."""
        parts = self._parts
        interpreter = Interpreter(parts.pool)
        values = {name: unpacked(value) for name, value in given.items()}
        scope, stuck = interpreter.partly(parts.graph, self._todo, values, parts.constants, parts)
        if not stuck:
            made = self._packed(scope, parts.graph.outputs, interpreter, 0)  # only values count now: as arrays
            return Made(made, -1)
        done = self._before(stuck)
        waiting = [number for number in self._todo if number not in done and number not in stuck]
        after = parts.wanted([*stuck, *waiting])
        names = [name for number in sorted(done) for name in parts.graph.steps[number].outputs if name in after]
        made = self._packed(scope, names, interpreter, _BYTES_AS_HOST)
        return Made(made, parts.rest(Rest(tuple(stuck.items()), tuple(waiting))))

    def _before(self, stuck: Iterable[int]) -> set[int]:
        """The steps that those need. All else is left for later: no attention is torn of which only a part can wait."""
        parts = self._parts
        makers = {name: number for number in self._todo for name in parts.graph.steps[number].outputs}
        names = [name for number in stuck for name in parts.needs[number]]
        found: set[int] = set()
        while names:
            number = makers.get(names.pop())
            if number is not None and number not in found:
                found.add(number)
                names += parts.needs[number]
        return found

    @staticmethod
    def _packed(scope: Scope, names: Iterable[str], interpreter: Interpreter, most: int) -> dict[str, Packed]:
        try:
            return {name: packed(scope[name], interpreter, most) for name in names}
        except KeyError as error:
            raise InvalidModelError(f"no node computes the graph's output {error.args[0]!r}") from None


def packed(value: Value, interpreter: Interpreter, most: int = _BYTES_AS_HOST) -> Packed:
    """A value as a tree of arrays and hashable leaves."""
    if isinstance(value, np.ndarray):
        if value.dtype == object:
            return Known(TensorProto.STRING, value.shape, tuple(map(str, value.reshape(-1))))
        if value.nbytes <= most:
            return Known(onnx_type(value), value.shape, value.tobytes())
        value = interpreter.pooled(value)
    if isinstance(value, Narrow):
        return Narrowed(value.carrier, value.type)
    if isinstance(value, Items):
        return Sequence(tuple(packed(item, interpreter, most) for item in value.values))
    return value


def unpacked(value: Packed) -> Value:
    """The value of a tree."""
    if isinstance(value, Known):
        if isinstance(value.data, tuple):
            return np.array(value.data, dtype=object).reshape(value.shape)
        return np.frombuffer(value.data, NUMPY_TYPES[value.type]).reshape(value.shape)
    if isinstance(value, Narrowed):
        return Narrow(value.carrier, value.type)
    if isinstance(value, Sequence):
        return Items(tuple(map(unpacked, value.values)))  # type: ignore[arg-type]
    return value


def multiplies(graph: Graph) -> bool:
    """Whether a graph has products, as every attention has: without, tracing it is not worth while."""
    return any(
        any(name in step.kind for name in _PRODUCTS) or any(multiplies(inner) for inner in graphs_of(step))
        for step in graph.steps
    )


def graphs_of(step: Step) -> list[Graph]:
    """The graphs inside of a step: branches, a loop's or a function's body."""
    inner = [step.body, *step.attributes.values()]
    return [each for each in inner if isinstance(each, Graph)]


def free(graph: Graph) -> set[str]:
    """The names that a graph takes from around it."""
    defined = {*graph.inputs, *graph.constants}
    found: set[str] = set()
    for step in graph.steps:
        found |= _needs(step) - defined
        defined.update(step.outputs)
    return found | ({*graph.outputs} - defined)


def _needs(step: Step) -> set[str]:
    inner = [value for value in step.attributes.values() if isinstance(value, Graph)]
    return {name for name in step.inputs if name}.union(*map(free, inner))
