"""The table of ONNX operators: which function computes which operator, from which opset on.

An operator is a function `(call, *inputs) -> array or tuple of arrays`. Inputs come as MLX arrays (`None` where an
optional one is absent), those listed in `host=` as NumPy arrays. A second function under `on_host` computes the same
operator on NumPy arrays when every input is known on the host; without one, the first is used there too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import mlx.core as mx
import numpy as np

from fuser.errors import InvalidModelError, TraceError, UnsupportedOperatorError
from fuser.frontends.onnx_types import Host, Items, Narrow, Value, to_host, to_mlx

Result: TypeAlias = "Value | tuple[Value | None, ...]"
Function: TypeAlias = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator from one opset on; the flags are explained at `op`."""

    domain: str
    name: str
    since: int
    function: Function
    host: frozenset[int] = frozenset()
    narrow: bool = False
    moves: bool = False
    raw: bool = False
    pure: bool = True
    shapes: bool = False


_operators: dict[tuple[str, str], list[Operator]] = {}
_on_host: dict[tuple[str, str], Function] = {}


def op(
    *names: str,
    since: int = 1,
    domain: str = "",
    host: Sequence[int] = (),
    narrow: bool = False,
    moves: bool = False,
    raw: bool = False,
    pure: bool = True,
    shapes: bool = False,
) -> Callable[[Function], Function]:
    """Register a function as the operators `names` from opset `since` on.

    `host`: positions of inputs whose values are needed to know the output's shape. `narrow`: takes `Narrow` inputs.
    `moves`: only moves elements of its first input, so it may be any type. `raw`: takes values as they are, host or
    not (and asks itself for the values of those in `host`). `pure=False`: may not be computed ahead (control flow).
    `shapes`: its outputs depend on the shapes of its inputs only.
    """

    def register(function: Function) -> Function:
        for name in names:
            entry = Operator(domain, name, since, function, frozenset(host), narrow, moves, raw, pure, shapes)
            versions = _operators.setdefault((domain, name), [])
            versions.append(entry)
            versions.sort(key=lambda operator: -operator.since)
        return function

    return register


def on_host(*names: str, domain: str = "") -> Callable[[Function], Function]:
    """Register a NumPy function for the case that every input of the operators `names` is known on the host."""

    def register(function: Function) -> Function:
        _on_host.update({(domain, name): function for name in names})
        return function

    return register


def find(domain: str, name: str, version: int) -> Operator | None:
    """The operator as of opset `version`, or `None`."""
    for operator in _operators.get((domain, name), ()):
        if operator.since <= version:
            return operator
    return None


def host_function(operator: Operator) -> Function | None:
    """The NumPy function of an operator, if it has one."""
    return _on_host.get((operator.domain, operator.name))


def registered() -> list[Operator]:
    """Every entry of the table."""
    return [operator for versions in _operators.values() for operator in versions]


def plain(value: Value) -> mx.array:
    """The value as an MLX array."""
    if isinstance(value, np.ndarray):
        value = to_mlx(value)
    if isinstance(value, Items):
        raise UnsupportedOperatorError("a sequence is used as an array: MLX has no sequences")
    return value.carrier if isinstance(value, Narrow) else value


@dataclass(frozen=True, slots=True)
class Call:
    """The node that an operator function computes: its attributes, its opset, its wanted outputs.

    `array` makes an MLX array of any value (the same one each time), `run` computes a subgraph.
    """

    name: str
    operator: str
    version: int
    attributes: dict[str, Any]
    outputs: tuple[str, ...]
    array: Callable[[Value], mx.array] = plain
    run: Callable[..., list[Value]] = lambda *_: []
    fixed_inputs: tuple[bool, ...] = ()
    memo: dict[str, tuple[mx.array, ...]] = field(default_factory=dict)

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute of any kind."""
        return self.attributes.get(name, default)

    def integer(self, name: str, default: int | None = None) -> int:
        """A required integer attribute, or one with a default."""
        value = self.attributes.get(name, default)
        if not isinstance(value, int):
            raise self.invalid(f"attribute {name!r} must be an integer, not {value!r}")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """An integer attribute that means yes or no."""
        return bool(self.integer(name, default))

    def number(self, name: str, default: float | None = None) -> float:
        """A required number, or one with a default."""
        value = self.attributes.get(name, default)
        if not isinstance(value, int | float):
            raise self.invalid(f"attribute {name!r} must be a number, not {value!r}")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A required string, or one with a default."""
        value = self.attributes.get(name, default)
        if not isinstance(value, str):
            raise self.invalid(f"attribute {name!r} must be a string, not {value!r}")
        return value

    def integers(self, name: str, default: Sequence[int] | None = None) -> list[int]:
        """A required list of integers, or one with a default."""
        value = self.attributes.get(name, default)
        if not isinstance(value, list | tuple) or not all(isinstance(item, int) for item in value):
            raise self.invalid(f"attribute {name!r} must be a list of integers, not {value!r}")
        return list(value)

    def wants(self, index: int) -> bool:
        """Whether the output is used by name."""
        return index < len(self.outputs) and bool(self.outputs[index])

    def once(
        self, key: str, positions: Sequence[int], make: Callable[[], tuple[mx.array, ...]]
    ) -> tuple[mx.array, ...]:
        """What `make` computes from the inputs at `positions`: once, where those are constants of the model."""
        if not all(self.fixed_inputs[place] for place in positions if place < len(self.fixed_inputs)):
            return make()
        if key not in self.memo:
            self.memo[key] = make()
            mx.eval(*self.memo[key])
        return self.memo[key]

    def axis(self, axis: int, ndim: int) -> int:
        """An axis from 0 on; refuses one that the array does not have."""
        if not -ndim <= axis < max(ndim, 1):
            raise self.invalid(f"axis {axis} is out of range for an array of {ndim} dimensions")
        return axis % ndim if ndim else 0

    def axes(self, axes: Sequence[int], ndim: int) -> list[int]:
        """Axes from 0 on; refuses repeated ones."""
        result = [self.axis(int(axis), ndim) for axis in axes]
        if len(set(result)) != len(result):
            raise self.invalid(f"axes {list(axes)} name an axis twice")
        return result

    def __str__(self) -> str:
        return f"node {self.name!r} ({self.operator})"

    def invalid(self, why: str) -> InvalidModelError:
        """The error for a node that breaks ONNX's rules."""
        return InvalidModelError(f"{self}: {why}")

    def refuse(self, why: str) -> UnsupportedOperatorError:
        """The error for a node that MLX cannot express."""
        return UnsupportedOperatorError(f"{self}: {why}")


def ints(host: Host) -> list[int]:
    """A host array as plain integers."""
    return [int(item) for item in host.reshape(-1)]


def host_value(value: Value, call: Call, position: int) -> Host:
    """The value of an input that decides about shapes: it must be known when the program is traced."""
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, Items):
        raise call.refuse("MLX has no sequences")
    try:
        return to_host(value)
    except ValueError:
        raise TraceError(
            f"{call}: data-dependent shape: input {position} is known only when the program runs, "
            "but decides what is computed"
        ) from None
