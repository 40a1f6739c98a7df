"""Names for what a trace shows: a frontend marks which arrays a named piece of the program took and gave.

The tracer returns the marked arrays as extra outputs, so that it learns which traced value each one is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import mlx.core as mx


class Mark(NamedTuple):
    """A named piece of a program (a module's call, an ONNX node) with the arrays that it took and gave."""

    name: str
    inputs: tuple[mx.array, ...]
    outputs: tuple[mx.array, ...]
    primitive: tuple[Any, ...] | None = None
    """The arguments of the primitive `name`, when the piece is one that this backend's trace shows inlined."""


_marks: ContextVar[list[Mark] | None] = ContextVar("fuser_marks", default=None)


@contextmanager
def collect() -> Iterator[list[Mark]]:
    """Collect the marks made inside the `with` block, in the order in which the pieces ended."""
    marks: list[Mark] = []
    token = _marks.set(marks)
    try:
        yield marks
    finally:
        _marks.reset(token)


def mark(
    name: str,
    inputs: Sequence[mx.array],
    outputs: Sequence[mx.array],
    primitive: tuple[Any, ...] | None = None,
) -> None:
    """Say that the piece `name` made `outputs` from `inputs`; does nothing when nobody traces."""
    marks = _marks.get()
    if marks is not None:
        marks.append(Mark(name, tuple(inputs), tuple(outputs), primitive))
