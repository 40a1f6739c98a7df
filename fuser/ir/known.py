"""What can be known of a value before the program runs: constants, and all that is computed from constants alone."""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from fuser.ir.graph import CONSTANT, INPUT, Graph, Node, Value
from fuser.ir.ops import ENTRY, NOT_REBUILT, OPAQUE, OPS, rebuild

# a value that would take more than this is left alone: 1 GiB of booleans is a 32768 x 32768 mask
LARGEST = 1 << 30
_MOVES = frozenset({"Broadcast", "Reshape", "Transpose", "Flatten", "Unflatten", "Squeeze", "ExpandDims"})
# these have no operands, but what they give is not a matter of the program's text
_NOT_KNOWN = frozenset({"RandomBits", INPUT, OPAQUE})


def readable(array: mx.array) -> mx.array:
    """`array` in a type that NumPy has."""
    return array.astype(mx.float32) if array.dtype == mx.bfloat16 else array


class Known:
    """Evaluates the constant part of a graph on demand, once.

    `given` are values of inputs that may be relied on; those that were are in `relied`, so that the caller can make
    sure that they still hold when the program runs.
    """

    def __init__(self, graph: Graph, given: Mapping[Node, mx.array] | None = None) -> None:
        self._graph = graph
        self._given = dict(given or {})
        self._sources: dict[Node, frozenset[Node] | None] = {}
        self._arrays: dict[Node, tuple[mx.array, ...]] = {}
        self._numbers: dict[Value, float | None] = {}
        self._ends: dict[Value, tuple[float, float] | None] = {}
        self.relied: set[Node] = set()

    def is_known(self, value: Value) -> bool:
        """Whether `value` depends on no input (other than those given)."""
        return self._inputs_of(value.node) is not None

    def is_weight(self, value: Value) -> bool:
        """Whether `value` is a constant or an array of the program's state, as it is or seen from another side."""
        node = value.node
        while node.op in _MOVES or node.op in ("AsType", ENTRY):
            node = self._graph.operands(node)[0].node
        return node.op == CONSTANT or node in self._graph.state

    def is_given(self, value: Value) -> bool:
        """Whether what is known of `value` comes from the program's state: numbers that may be trained."""
        return not self._graph.state.isdisjoint(self._inputs_of(value.node) or ())

    def rely(self, value: Value) -> None:
        """Say that what was read of `value` matters."""
        self.relied |= self._inputs_of(value.node) or frozenset()

    def array(self, value: Value) -> NDArray[np.generic] | None:
        """What `value` is, as numpy (bfloat16 as float32); None when it is not known, or too large to look at."""
        if self._inputs_of(value.node) is None or value.type.nbytes > LARGEST:
            return None
        return np.array(readable(self.lazy(value)))

    def lazy(self, value: Value) -> mx.array:
        """What a known value is, evaluated when it is read."""
        return self._build(value.node)[value.index]

    def ends(self, value: Value) -> tuple[float, float] | None:
        """The lowest and the highest number of a known value; None when there is none."""
        if value not in self._ends:
            array = None if value.type.size == 0 else self.array(value)
            self._ends[value] = None if array is None else (float(np.min(array)), float(np.max(array)))
        return self._ends[value]

    def operands(self, value: Value) -> tuple[Value, ...]:
        """What a known value is made of; nothing for what is there from the start."""
        return () if value.node in self._given else self._graph.operands(value.node)

    def number(self, value: Value) -> float | None:
        """The one number that every element of `value` is; None when there is none, or it is not a constant.

        An array of the program's state is no constant: it may be trained.
        """
        if value not in self._numbers:
            self._numbers[value] = self._number(value)
        return self._numbers[value]

    def _number(self, value: Value) -> float | None:
        graph = self._graph
        while value.node.op in _MOVES or value.node.op == "Full":
            value = graph.operands(value.node)[0]
        if self._inputs_of(value.node) is None or self.is_given(value) or value.type.size == 0:
            return None
        if value.dtype == mx.complex64:
            return None
        # a number that was computed takes few elements; one that was filled in (numpy.full) may take many
        if value.type.size > 4096 and value.node.op != CONSTANT:
            return None
        # most large arrays are none, which their first row says
        if value.type.size > 4096:
            some = self.lazy(value).reshape(-1)[:64]
            if not mx.all(some == some[0]).item():
                return None
        array = self.array(value)
        if array is None:
            return None
        first = array.reshape(-1)[0]
        if array.size > 1 and not (array == first).all():
            return None
        self.rely(value)
        return float(first)

    def _inputs_of(self, node: Node) -> frozenset[Node] | None:
        """The given inputs that `node` depends on; None when it depends on something unknown."""
        stack = [node]
        while stack:
            top = stack[-1]
            if top in self._sources:
                stack.pop()
                continue
            parents = [operand.node for operand in self._graph.operands(top)]
            waiting = [parent for parent in parents if parent not in self._sources]
            if waiting and top.op not in _NOT_KNOWN:
                stack.extend(waiting)
                continue
            self._sources[stack.pop()] = self._join(top, parents)
        return self._sources[node]

    def _join(self, node: Node, parents: list[Node]) -> frozenset[Node] | None:
        if node in self._given:
            return frozenset([node])
        if node.op in _NOT_KNOWN or node.op in NOT_REBUILT or (node.op not in OPS and node.op != CONSTANT):
            return None
        sources: frozenset[Node] = frozenset()
        for parent in parents:
            found = self._sources[parent]
            if found is None:
                return None
            sources |= found
        return sources

    def _build(self, node: Node) -> tuple[mx.array, ...]:
        stack = [node]
        while stack:
            top = stack[-1]
            if top in self._arrays:
                stack.pop()
                continue
            operands = self._graph.operands(top)
            waiting = [] if top in self._given else [o.node for o in operands if o.node not in self._arrays]
            if waiting:
                stack.extend(waiting)
                continue
            if top in self._given:
                self._arrays[top] = (self._given[top],)
            elif top.array is not None:
                self._arrays[top] = (top.array,)
            else:
                inputs = [self._arrays[o.node][o.index] for o in operands]
                self._arrays[top] = tuple(rebuild(top.op, top.arguments, inputs, top.outputs))
            stack.pop()
        return self._arrays[node]
