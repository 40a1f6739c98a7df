"""From the softmax on to the product with the values: what may be done to the weights on the way."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fuser.ir.graph import Node, Value
from fuser.patterns.axes import VIEWS, Dim, Dims, after, axes_of, fresh, resolve
from fuser.patterns.cursor import IDENTITIES, Miss, Program, is_float
from fuser.patterns.operands import Operand, operand

WHY = {
    "ArgPartition": "the weights are selected by a partial sort (top-k) after the softmax",
    "Partition": "the weights are selected by a partial sort (top-k) after the softmax",
    "Sort": "the weights are sorted after the softmax",
    "Select": "the weights are masked after the softmax",
    "Add": "something is added to the weights after the softmax",
    "Subtract": "something is subtracted from the weights after the softmax",
    "Slice": "the weights are sliced after the softmax",
    "Multiply": "the weights are multiplied by an array after the softmax (dropout, or a second mask)",
    "Divide": "the weights are divided by an array after the softmax",
    "Gather": "the weights are gathered from after the softmax",
    "GatherAxis": "the weights are gathered from after the softmax",
    "QuantizedMatmul": "the values are quantized: they are not an array of numbers",
}


@dataclass(frozen=True)
class Walk:
    """A place on the way from the softmax to the product, with what was done to the weights so far."""

    value: Value
    dims: Dims
    guarded: bool = False
    """NaN weights (of rows that are masked wholly) were replaced by zeros."""
    number: float = 1.0
    """What the weights were multiplied with."""
    depth: int = 0


@dataclass(frozen=True)
class Weighted:
    """The product of the weights with the values."""

    value: Operand
    width: Dim
    output: Value
    dims: Dims
    guarded: bool
    number: float


def weighted_sum(program: Program, walk: Walk, keys: Dim) -> Weighted:
    """The first product of the weights with values; raises the `Miss` of the way that led furthest."""
    furthest: Miss | None = None
    for node, place in program.graph.users(walk.value):
        try:
            if node.op in ("Matmul", "AddMM"):
                return product(program, walk, keys, node, place)
            step = onward(program, walk, node, place)
            if step is not None:
                return weighted_sum(program, step, keys)
        except Miss as miss:
            if furthest is None or miss.depth > furthest.depth:
                furthest = miss
    raise furthest or Miss("the weights are not multiplied with values", walk.value.node, walk.depth)


def onward(program: Program, walk: Walk, node: Node, place: int) -> Walk | None:
    """The walk past `node`, which reads the weights; None when that is a way of no interest."""
    given = Value(node)
    step = replace(walk, value=given, depth=walk.depth + 1)
    if node.op in VIEWS:
        dims = after(node.op, node.arguments, walk.dims, given.shape)
        if dims is None:
            raise Miss("the weights are reshaped across their axes", node, walk.depth)
        return replace(step, dims=dims)
    if node.op in IDENTITIES or (node.op == "AsType" and is_float(given)):
        return step
    operands = program.graph.operands(node)
    if node.op == "Select" and is_guard(program, operands, walk.value):
        return replace(step, guarded=True)
    if node.op in ("Equal", "NotEqual"):
        return None
    if node.op == "Multiply" or (node.op == "Divide" and place == 0):
        number = program.known.number(operands[1 - place])
        if number is not None:
            return replace(step, number=walk.number * number if node.op == "Multiply" else walk.number / number)
    raise Miss(WHY.get(node.op, f"the weights go through {node.op} after the softmax"), node, walk.depth)


def is_guard(program: Program, operands: tuple[Value, ...], weights: Value) -> bool:
    """`where(isnan(weights), 0, weights)`."""
    condition, left, right = operands
    inverted = False
    while condition.node.op == "LogicalNot":
        condition, inverted = program.operands(condition)[0], not inverted
    if condition.node.op not in ("Equal", "NotEqual") or program.operands(condition) != (weights, weights):
        return False
    if condition.node.op == "Equal" and condition.node.arguments[0]:
        return False
    kept, other = (left, right) if (condition.node.op == "Equal") != inverted else (right, left)
    return kept == weights and program.known.number(other) == 0


def product(program: Program, walk: Walk, keys: Dim, node: Node, place: int) -> Weighted:
    """The matrix product with the values, from the left or (all transposed) from the right."""
    operands = program.graph.operands(node)
    if place > 1:
        raise Miss("something is added to the weights after the softmax", node, walk.depth)
    if node.op == "AddMM":
        raise Miss("the product with the values adds something else", node, walk.depth)
    dims, other = resolve(walk.dims), operands[1 - place]
    summed, kept = (dims[-1], dims[-2]) if place == 0 else (dims[-2], dims[-1])
    keys = tuple(axes_of([keys]))
    if summed != keys:
        reason = "the product with the values sums over another axis than the softmax normalises"
        raise Miss(reason, node, walk.depth)
    width = fresh(other.shape[-1] if place == 0 else other.shape[-2], "width")
    ends: tuple[Dim, Dim] = (keys, width) if place == 0 else (width, keys)
    output: tuple[Dim, Dim] = (kept, width) if place == 0 else (width, kept)
    value = operand(program, other, (*dims[:-2], *ends))
    return Weighted(value, width, Value(node), (*dims[:-2], *output), walk.guarded, walk.number * value.number)


