"""What the tables of primitives are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from fuser.errors import FuserError
from fuser.ir.types import TensorType

Arguments = tuple[Any, ...]
Rebuild = Callable[[Arguments, Sequence[mx.array], Sequence[TensorType]], Sequence[mx.array]]


class Piece(NamedTuple):
    """A call of the program that is no primitive of the graph, and is made again whenever the graph runs."""

    name: str
    """What is called."""
    place: str
    """The line of the program that calls it."""
    call: Callable[[Sequence[mx.array]], Sequence[mx.array]]

    def __str__(self) -> str:
        return f"{self.name} ({self.place})" if self.place else self.name


class UnsupportedPrimitive(FuserError):
    """A primitive (or one form of it) that no public call of MLX gives."""

    def __init__(self, op: str, reason: str) -> None:
        super().__init__(f"primitive {op} cannot be rebuilt with public calls: {reason}")
        self.op = op


def elementwise(**functions: Callable[..., mx.array]) -> dict[str, Rebuild]:
    """Entries for primitives that are one function of their inputs and have no arguments."""

    def entry(function: Callable[..., mx.array]) -> Rebuild:
        return lambda arguments, inputs, outputs: (function(*inputs),)

    return {name: entry(function) for name, function in functions.items()}
