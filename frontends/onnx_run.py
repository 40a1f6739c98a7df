"""Runs an ONNX graph on MLX arrays, with everything that is known beforehand computed on the host.

The interpreter is run eagerly or under a trace, and cannot tell: what depends on traced arrays becomes part of the
trace, what does not is a NumPy array and leaves nothing behind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from fuser.errors import FuserError, InvalidModelError, TraceError, UnsupportedOperatorError
from fuser.frontends.lines import is_read
from fuser.frontends.marks import mark
from fuser.frontends.onnx_graph import Graph, Step
from fuser.frontends.onnx_ops.registry import Call, Operator, host_function, host_value
from fuser.frontends.onnx_types import Host, Items, Narrow, Value, to_host, to_mlx, type_name

# a host value beyond this is not written out: it stays an unevaluated MLX array
_HOST_BYTES = 1 << 28
_ARRAY_BYTES = 1 << 38
_MADE = 1 << 18
# how many nodes one call computes at most, loops included
_MOST_STEPS = 2_000_000
# NumPy gives views of these, which take no room
_VIEWS = {"Expand", "Identity", "Slice", "Squeeze", "Transpose", "Unsqueeze"}


class Scope(dict[str, Value]):
    """The values of one graph by name; those of the graphs around it are seen through it."""

    def __init__(self, outer: Mapping[str, Value] | None = None) -> None:
        super().__init__()
        self._outer: Mapping[str, Value] = {} if outer is None else outer

    def __missing__(self, name: str) -> Value:
        return self._outer[name]


class Pool:
    """MLX arrays of host values: one array for one value, however often it meets a traced one.

    The values that a program owns have theirs in the program's pool, those of one call in that call's.
    """

    def __init__(self, outer: Pool | None = None) -> None:
        self._outer = outer
        self._owned: set[int] = set()
        self._entries: dict[int, tuple[Host, mx.array | Narrow]] = {}

    def own(self, values: Iterable[Value | None]) -> None:
        """Keep the arrays of these values beyond the call."""
        pool = self if self._outer is None else self._outer
        pool._owned.update(id(value) for value in values if isinstance(value, np.ndarray))

    def get(self, host: Host) -> mx.array | Narrow:
        """The array of a host value."""
        if self._outer is not None and id(host) in self._outer._owned:
            return self._outer.get(host)
        entry = self._entries.get(id(host))
        if entry is None:  # the host value is held too, so that its id stays its own
            entry = self._entries[id(host)] = (host, to_mlx(host))
        return entry[1]


Nested = Callable[[Graph, Mapping[str, Value], Mapping[str, Value] | None], list[Value]]


class Needs(Protocol):
    """What each step of a graph takes."""

    @property
    def needs(self) -> list[set[str]]:
        """The names, by the number of the step."""


class Budget:
    """How many steps one call may still take: a loop may never end."""

    def __init__(self) -> None:
        self._spent = 0

    def spend(self, steps: int, where: str) -> None:
        """Say that so many are taken."""
        self._spent += steps
        if self._spent > _MOST_STEPS:
            raise UnsupportedOperatorError(f"{where}: the model's loops take more than {_MOST_STEPS:,} steps")


class Interpreter:
    """One run of a program; `nested` runs the graphs inside of its steps, for the values given and those around it."""

    def __init__(self, pool: Pool, nested: Nested | None = None, budget: Budget | None = None) -> None:
        self._pool = Pool(pool)
        self._nested = nested or self.run
        self._budget = budget or Budget()

    def run(self, graph: Graph, given: Mapping[str, Value], outer: Mapping[str, Value] | None = None) -> list[Value]:
        """The outputs of `graph` for the inputs given by name."""
        scope = self.values(graph, given, outer)
        try:
            return [scope[name] for name in graph.outputs]
        except KeyError as error:
            raise InvalidModelError(f"no node computes the graph's output {error.args[0]!r}") from None

    def values(self, graph: Graph, given: Mapping[str, Value], outer: Mapping[str, Value] | None = None) -> Scope:
        """All values of `graph` by name, for the inputs given by name."""
        scope = Scope(outer)
        scope.update(graph.constants)
        self._pool.own(graph.constants.values())
        scope.update(given)
        for step in graph.steps:
            self.step(step, scope)
        return scope

    def partly(
        self,
        graph: Graph,
        todo: Iterable[int],
        given: Mapping[str, Value],
        outer: Mapping[str, Value],
        parts: Needs,
    ) -> tuple[Scope, dict[int, str]]:
        """As much of `graph` as can be computed: the values, and which steps are stuck and why.

        `todo` are the numbers of the steps that are still to be done.
        """
        scope = Scope(outer)
        scope.update(graph.constants)
        self._pool.own(graph.constants.values())
        scope.update(given)
        stuck: dict[int, str] = {}
        missing: set[str] = set()
        for number in todo:
            step = graph.steps[number]
            if missing and not missing.isdisjoint(parts.needs[number]):
                missing.update(step.outputs)
                continue
            try:
                self.step(step, scope)
            except TraceError as error:
                stuck[number] = str(error)
                missing.update(step.outputs)
        return scope, stuck

    def step(self, step: Step, scope: Scope) -> None:
        """Put what a step computes into the scope that it takes its inputs from."""
        outputs = step.folded
        if outputs is None:
            outputs = self._step(step, scope)
            if step.fixed and all(output is None or isinstance(output, np.ndarray) for output in outputs):
                step.folded = outputs
                self._pool.own(outputs)
        for name, output in zip(step.outputs, outputs, strict=False):
            if name and output is not None:
                scope[name] = output

    def pooled(self, host: Host) -> mx.array | Narrow:
        """The array of a host value: the same each time."""
        return self._pool.get(host)

    def array(self, value: Value) -> mx.array:
        """Any value as an MLX array, narrow types in their carrier."""
        if isinstance(value, np.ndarray):
            value = self.pooled(value)
        if isinstance(value, Items):
            raise UnsupportedOperatorError("a sequence is used as an array: MLX has no sequences")
        return value.carrier if isinstance(value, Narrow) else value

    def _step(self, step: Step, scope: Scope) -> tuple[Value | None, ...]:
        where = f"node {step.name!r} ({step.kind})"
        self._budget.spend(1, where)
        try:
            inputs = [scope[name] if name else None for name in step.inputs]
        except KeyError as error:
            raise InvalidModelError(f"{where}: its input {error.args[0]!r} has no value") from None
        try:
            outputs = self._compute(step, inputs, scope)
        except FuserError:
            raise
        except RecursionError:
            raise InvalidModelError(f"{where}: graphs are nested too deeply") from None
        except Exception as error:  # whatever MLX or NumPy say about shapes and types, the node is where it is wrong
            line = next(iter(str(error).splitlines()), type(error).__name__)
            if is_read(error):
                raise TraceError(f"{where}: it reads values that are known only when the program runs") from error
            raise InvalidModelError(f"{where}: {line}; inputs: {', '.join(map(_describe, inputs))}") from error
        for output in outputs:
            if isinstance(output, mx.array) and output.nbytes > _ARRAY_BYTES:
                raise InvalidModelError(f"{where}: its output of shape {list(output.shape)} is too large")
        return outputs

    def _compute(self, step: Step, inputs: list[Value | None], scope: Scope) -> tuple[Value | None, ...]:
        if step.body is not None:
            return self._function(step, step.body, inputs)
        operator = step.operator
        assert operator is not None
        call = Call(
            step.name,
            step.kind,
            step.version,
            step.attributes,
            step.outputs,
            self.array,
            lambda graph, given: self._nested(graph, given, scope),
            step.fixed_inputs,
            step.memo,
        )
        if operator.raw:
            outputs = _tuple(operator.function(call, *inputs))
        elif operator.pure and all(value is None or isinstance(value, np.ndarray) for value in inputs):
            outputs = self._on_host(operator, call, inputs)
        else:
            outputs = self._on_arrays(operator, call, inputs)
        if operator.pure and any(isinstance(output, mx.array) for output in outputs):
            mark(step.name, _arrays(inputs), _arrays(outputs), final=True)
        return outputs

    def _function(self, step: Step, body: Graph, inputs: list[Value | None]) -> tuple[Value | None, ...]:
        if len(inputs) > len(body.inputs):
            raise InvalidModelError(f"node {step.name!r}: more inputs than function {step.kind} takes")
        given = {name: value for name, value in zip(body.inputs, inputs, strict=False) if value is not None}
        outputs = tuple(self._nested(body, given, None))
        mark(step.name, _arrays(inputs), _arrays(outputs), final=True)
        return outputs

    def _on_host(self, operator: Operator, call: Call, inputs: list[Value | None]) -> tuple[Value | None, ...]:
        function = host_function(operator)
        large = operator.name not in _VIEWS and _large(operator.name, inputs)
        if function is not None and not large:
            with np.errstate(all="ignore"):
                return _tuple(function(call, *inputs))
        with mx.stream(mx.cpu):
            outputs = self._on_arrays(operator, call, inputs)
            if large or any(isinstance(item, mx.array) and item.nbytes > _HOST_BYTES for item in outputs):
                return outputs
            return tuple(to_host(item) if isinstance(item, mx.array | Narrow) else item for item in outputs)

    def _on_arrays(self, operator: Operator, call: Call, inputs: list[Value | None]) -> tuple[Value | None, ...]:
        arguments: list[Any] = []
        narrow: int | None = None
        for position, value in enumerate(inputs):
            if value is None:
                arguments.append(None)
            elif position in operator.host:
                arguments.append(host_value(value, call, position))
            else:
                array = self._pool.get(value) if isinstance(value, np.ndarray) else value
                if isinstance(array, Items):
                    raise call.refuse("MLX has no sequences")
                if isinstance(array, Narrow) and not operator.narrow:
                    if not (operator.moves and position == 0):
                        raise call.refuse(f"MLX has no arithmetic on {type_name(array.type)}")
                    narrow = array.type
                    array = array.carrier
                arguments.append(array)
        outputs = _tuple(operator.function(call, *arguments))
        if narrow is None:
            return outputs
        return tuple(Narrow(output, narrow) if isinstance(output, mx.array) else output for output in outputs)


def _large(name: str, inputs: Iterable[Value | None]) -> bool:
    """Whether host values, or what they broadcast to, are too large to be written out."""
    arrays = [value for value in inputs if isinstance(value, np.ndarray)]
    if sum(value.nbytes for value in arrays) > _HOST_BYTES:
        return True
    if name in {"Concat", "Reshape"} or not arrays:
        return False
    rank = max(value.ndim for value in arrays)
    shapes = [(1,) * (rank - value.ndim) + value.shape for value in arrays]
    size = math.prod(max(sizes) for sizes in zip(*shapes, strict=True))
    # a mask that rows and columns make is no arithmetic on shapes: MLX makes it, if anything needs it
    made = size > _MADE and (name == "Trilu" or size > 2 * sum(value.size for value in arrays))
    return bool(made or size * 8 > _HOST_BYTES)


def _tuple(result: Any) -> tuple[Value | None, ...]:
    # NumPy gives scalars instead of arrays of no dimensions
    results = result if isinstance(result, tuple) else (result,)
    return tuple(np.asarray(item) if isinstance(item, np.generic) else item for item in results)


def _arrays(values: Iterable[Value | None]) -> tuple[mx.array, ...]:
    return tuple(value for value in values if isinstance(value, mx.array))


def _describe(value: Value | None) -> str:
    if value is None:
        return "none"
    if isinstance(value, Items):
        return f"sequence of {len(value.values)}"
    if isinstance(value, Narrow):
        return f"{type_name(value.type)}{list(value.carrier.shape)}"
    return f"{str(value.dtype).rpartition('.')[2]}{list(value.shape)}"
