"""Which known values are the same: made by the same steps of the same constants, however often a program does it."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from typing import Any

import numpy as np

from fuser.ir.graph import INPUT, Value
from fuser.ir.known import Known, readable


class Identity:
    """Numbers for known values: two of one number are the same arrays, to the bit."""

    def __init__(self, known: Known) -> None:
        self._known = known
        self._numbers: dict[Hashable, int] = {}
        self._found: dict[object, int] = {}

    def number(self, value: Value) -> int:
        """The number of `value`, which must be known."""
        stack = [value]
        while stack:
            top = stack[-1]
            operands = self._known.operands(top)
            waiting = [operand for operand in operands if operand.node not in self._found]
            if top.node in self._found:
                stack.pop()
            elif waiting:
                stack += waiting
            else:
                stack.pop()
                key = self._key(top, tuple((self._found[each.node], each.index) for each in operands))
                self._found[top.node] = self._numbers.setdefault(key, len(self._numbers))
        return self._numbers.setdefault((self._found[value.node], value.index), len(self._numbers))

    def _key(self, value: Value, operands: tuple[tuple[int, int], ...]) -> Hashable:
        node = value.node
        if node.array is not None:
            # the bytes, not the array: layers hold copies of one mask
            return node.outputs, digest(np.asarray(readable(node.array)))
        if node.op == INPUT:
            return node
        # numbers that compare equal (0.0 and -0.0, 1 and True) need not be the same
        return node.op, repr(node.arguments), node.outputs, operands


def digest(array: np.ndarray[Any, Any]) -> bytes:
    """A few bytes that stand for an array's content, shape and type."""
    found = hashlib.blake2b(repr((array.shape, array.dtype.str)).encode(), digest_size=16)
    if array.size:
        found.update(np.ascontiguousarray(array).data.cast("B"))
    return found.digest()
