"""What a program's values are, read backwards: through views to what they are made of."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import mlx.core as mx
import numpy as np

from fuser.ir.graph import Graph, Node, Value
from fuser.ir.identity import Identity
from fuser.ir.known import Known
from fuser.reading.axes import VIEWS, Dims, axes_of, before, regroup, resolve

FLOATS = frozenset({mx.float16, mx.bfloat16, mx.float32, mx.float64})
PRODUCTS = frozenset({"Matmul", "AddMM", "GatherMM", "QuantizedMatmul", "GatherQMM", "Convolution"})
# no two of these are alike, whatever they read
OWN = frozenset({"Input", "RandomBits", "Opaque"})
# these give what they are given; so does StopGradient, but not to a gradient: it is none of them
IDENTITIES = frozenset({"Copy", "Contiguous", "Depends"})


class Miss(Exception):
    """A match that ends: why, at which node, and how far it had come."""

    def __init__(self, reason: str, at: Node, depth: int = 0, attention: bool = True) -> None:
        super().__init__(reason)
        self.reason, self.at, self.depth = reason, at, depth
        self.attention = attention
        """False when the softmax is none of an attention, rather than one that cannot be fused."""


@dataclass(frozen=True)
class Program:
    """A graph and what is known of its values."""

    graph: Graph
    known: Known

    @cached_property
    def identity(self) -> Identity:
        """Which known values are the same, however often the program makes them."""
        return Identity(self.known)

    @cached_property
    def memo(self) -> dict[Hashable, Any]:
        """What was found out about it once, and holds for all layers."""
        return {}

    @cached_property
    def fed(self) -> frozenset[Node]:
        """The nodes that depend on some product: where a way leads to no product, it is none of the scores'."""
        found: set[Node] = set()
        for node in self.graph.nodes:
            if node.op in PRODUCTS or any(operand.node in found for operand in self.graph.operands(node)):
                found.add(node)
        return frozenset(found)

    def of_activations(self, node: Node) -> bool:
        """Whether one of the products that `node` is next computed from is of two arrays of which none is a weight."""
        seen, stack = {node}, [node]
        while stack:
            top = stack.pop()
            operands = self.graph.operands(top)
            if top.op in PRODUCTS:
                if not any(self.known.is_weight(operand) for operand in operands[:2]):
                    return True
            elif self._pairs(top, operands):
                return True
            else:
                found = {operand.node for operand in operands if operand.node in self.fed} - seen
                seen |= found
                stack += found
        return False

    def _pairs(self, node: Node, operands: tuple[Value, ...]) -> bool:
        """Whether a node computes something for each pair of two activations, as a distance or a sum."""
        if node.op not in ("Add", "Subtract", "Multiply") or any(each.node not in self.fed for each in operands):
            return False
        repeated = [
            {i for i, (n, m) in enumerate(zip(each.shape, before.shape, strict=True)) if n != m}
            for each in operands
            if each.node.op == "Broadcast" and len((before := self.operands(each)[0]).shape) == len(each.shape)
        ]
        return len(repeated) == 2 and bool(repeated[0] - repeated[1]) and bool(repeated[1] - repeated[0])

    def alike(self, left: Value, right: Value, steps: int = 8) -> bool:
        """Whether two values are one, or computed alike from the same in a few steps."""
        if left == right:
            return True
        one, other = left.node, right.node
        if steps == 0 or one.op in OWN or (left.index, one.outputs) != (right.index, other.outputs):
            return False
        if one.op == "Constant" == other.op:
            here, there = self.known.array(left), self.known.array(right)
            return here is not None and there is not None and np.array_equal(here, there)
        pairs = self.operands(left), self.operands(right)
        return (
            (one.op, one.arguments) == (other.op, other.arguments)
            and len(pairs[0]) == len(pairs[1]) < 4
            and all(self.alike(*pair, steps - 1) for pair in zip(*pairs, strict=True))
        )

    def depends(self, value: Value, source: Value) -> bool:
        """Whether `value` is computed from `source`."""
        return source.node in self.graph.behind(value.node, source.node)

    def operands(self, value: Value) -> tuple[Value, ...]:
        """What the maker of `value` reads."""
        return self.graph.operands(value.node)

    def name(self, value: Value) -> str:
        """How a reason calls `value`: by the node that makes it."""
        return f"`{self.graph.label(value.node)}`"


@dataclass(frozen=True)
class Term:
    """An array in a region, with what its dimensions mean."""

    value: Value
    dims: Dims

    @property
    def axes(self) -> frozenset[object]:
        """The axes over which it varies."""
        return frozenset(axes_of(self.dims))


def seen_through(program: Program, value: Value, dims: Dims, casts: bool = False) -> Term:
    """`value` (with `dims`) without the views (and casts between floats) that lead to it: as small as it comes."""
    while True:
        back = backwards(program, value, dims)
        if back is not None:
            value, dims = back
        elif casts and value.node.op == "AsType" and is_float(program.operands(value)[0]):
            value = program.operands(value)[0]
        else:
            return Term(value, resolve(dims))


def backwards(program: Program, value: Value, dims: Dims) -> tuple[Value, Dims] | None:
    """What `value` is a view of, and what the dimensions of that mean; None when it is no view, or cuts across axes."""
    node = value.node
    if node.op in IDENTITIES:
        return program.operands(value)[0], resolve(dims)
    if node.op in VIEWS:
        source = program.operands(value)[0]
        given = before(node.op, node.arguments, dims, source.shape)
        return None if given is None else (source, given)
    if node.op in ("Gather", "Slice"):
        # `x[0]` of an axis of size 1, and a slice of everything
        source = program.operands(value)[0]
        if source.type.size == value.type.size and _is_whole(node, source):
            given = regroup(dims, source.shape)
            return None if given is None else (source, given)
    return None


def _is_whole(node: Node, source: Value) -> bool:
    """Whether a slice, or an index, takes everything in order."""
    if node.op == "Gather":
        return all(source.shape[axis] == 1 for axis in node.arguments[0])
    return all(step == 1 for step in node.arguments[2])


def most(value: Value) -> float:
    """The largest number that the type of `value` holds."""
    return float(mx.finfo(value.dtype).max)


def is_float(value: Value) -> bool:
    """Whether `value` holds floating-point numbers."""
    return value.dtype in FLOATS
