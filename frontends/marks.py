"""Names for what a trace shows: a frontend marks which arrays a named piece of the program took and gave.

The tracer returns the marked arrays as extra outputs, so that it learns which traced value each one is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
    source: str = ""
    """The line of the user's program. A piece without a name has nothing but this to say, and only of its outputs."""
    within: object = None
    """Pieces within the same thing follow each other: what one took or gave, the next ones begin at, too."""


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
    source: str = "",
    within: object = None,
    final: bool = False,
) -> None:
    """Say that the piece `name` made `outputs` from `inputs`; does nothing when nobody traces.

    `final`: nobody updates these arrays in place, so they need no handles of their own.
    """
    marks = _marks.get()
    if marks is not None:
        taken, made = (list(arrays) if final else handles(arrays) for arrays in (inputs, outputs))
        marks.append(Mark(name, tuple(taken), tuple(made), primitive, source, within))


def handles(arrays: Iterable[mx.array]) -> list[mx.array]:
    """The arrays as they are now: the program may update its own objects in place later."""
    return [array[...] for array in arrays]
