"""The arrays that a rewrite puts into a graph: what several layers need is there once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from fuser.ir.graph import Graph, Value
from fuser.ir.identity import digest
from fuser.masks.cells import blocks, index
from fuser.masks.settled import truth


class Constants:
    """Constants of a graph by their content."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._contents: dict[bytes, Value] = {}
        # the arrays are kept with what was made of them, so that no others take their place
        self._made: dict[tuple[int, str], tuple[NDArray[Any], Value]] = {}

    def add(self, array: NDArray[Any], scope: str) -> Value:
        """`array` as a constant."""
        content = digest(array)
        if content not in self._contents:
            whole = array if array.flags.c_contiguous else array.copy()
            self._contents[content] = self._graph.add_constant(mx.array(whole), scope=scope)
        return self._contents[content]

    def add_made(self, array: NDArray[Any], form: str, make: Callable[[Any], Any], scope: str) -> Value:
        """What `make`, which `form` names, makes of `array`; done once for one array."""
        key = (id(array), form)
        if key not in self._made:
            self._made[key] = array, self.add(make(array), scope)
        return self._made[key][1]


def holds(inverted: bool, array: NDArray[Any]) -> NDArray[np.bool_]:
    """Where a known mask keeps what is there."""
    return np.not_equal(truth(array), inverted)


def raised(array: NDArray[Any], lowest: float) -> NDArray[np.float32]:
    """`array` in float32, with `lowest` for lower finite numbers."""
    longest = max(range(array.ndim), key=array.shape.__getitem__, default=-1)
    made: NDArray[Any] | None = None if array.dtype == np.float32 else np.empty(array.shape, np.float32)
    for rows in blocks(array.shape, longest):
        part = array[index(longest, rows)]
        low = (part < lowest) & (part > -math.inf)
        if made is None and low.any():
            made = array.copy()
        if made is not None:
            made[index(longest, rows)] = np.where(low, lowest, part)
    return array if made is None else made
