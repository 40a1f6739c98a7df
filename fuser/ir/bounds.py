"""Between which numbers a value lies, as far as its making tells: enough to know that a mask is finite."""

from __future__ import annotations

import math
from collections.abc import Callable

import mlx.core as mx

from fuser.ir.graph import CONSTANT, INPUT, Graph, Node, Value
from fuser.ir.known import Known

Bounds = tuple[float, float]
ANY: Bounds = (-math.inf, math.inf)
_FLOATS = (mx.float32, mx.float16, mx.bfloat16, mx.float64)
# what a layer of a network gives is finite, or the program's answer is lost anyway
FINITE: Bounds = (-1e29, 1e29)
_PASS = frozenset(
    {"Broadcast", "Reshape", "Transpose", "Flatten", "Unflatten", "Squeeze", "ExpandDims", "Slice", "AsType", "Gather",
     "GatherAxis", "Copy", "Contiguous", "StopGradient", "Full"}
)  # fmt: skip
_LAYERS = frozenset(
    {"Matmul", "AddMM", "Convolution", "QuantizedMatmul", "GatherMM", "GatherQMM", "RMSNorm", "LayerNorm"}
)
_RANGES: dict[str, Bounds] = dict.fromkeys(("Sigmoid", "Softmax"), (0.0, 1.0)) | dict.fromkeys(
    ("Tanh", "Sin", "Cos"), (-1.0, 1.0)
)


def bounds(graph: Graph, known: Known, value: Value, layers: Bounds = FINITE, depth: int = 32) -> Bounds:
    """The lowest and the highest number that `value` can hold, NaN aside, when layers give what is within `layers`."""
    node, dtype = value.node, value.dtype
    if dtype == mx.bool_:
        return 0.0, 1.0
    if node.op == CONSTANT:
        return known.ends(value) or ANY
    if dtype not in _FLOATS:
        # integers that a program is given are ids, lengths or masks: not below zero
        limit = 2.0 ** (8 * dtype.size)
        return (0.0 if node.op == INPUT else -limit), limit
    if node.op == INPUT or depth == 0:
        return ANY
    if node.op in _LAYERS:
        return layers
    operands = graph.operands(node)
    if node.op in _PASS:
        low, high = bounds(graph, known, operands[0], layers, depth - 1)
        limit = {mx.float16: 65504.0, mx.bfloat16: 3.3895314e38}.get(dtype, math.inf)
        return (low if low >= -limit else -math.inf), (high if high <= limit else math.inf)
    if node.op in _RANGES:
        return _RANGES[node.op]
    if node.op in ("Select", "Concatenate", "Pad"):
        parts = operands[1:] if node.op == "Select" else operands
        return _hull(*(bounds(graph, known, operand, layers, depth - 1) for operand in parts))
    if node.op in ("Add", "Subtract", "Multiply", "Maximum", "Minimum"):
        left, right = (bounds(graph, known, operand, layers, depth - 1) for operand in operands)
        return _OF[node.op](left, right)
    if node.op == "Divide" and (number := known.number(operands[1])):
        low, high = bounds(graph, known, operands[0], layers, depth - 1)
        return _hull((low / number, low / number), (high / number, high / number))
    if node.op == "Log":
        base = (math.log2, math.log10, math.log)[node.arguments[0]]
        low, high = bounds(graph, known, operands[0], layers, depth - 1)
        return (base(low) if low > 0 else -math.inf), (base(high) if high > 0 else math.inf)
    if node.op == "Negative":
        low, high = bounds(graph, known, operands[0], layers, depth - 1)
        return -high, -low
    return ANY


def grain(graph: Graph, known: Known, value: Value, depth: int = 32) -> float:
    """How far from zero all numbers of `value` are that are not zero; 0 where that is not seen."""
    node, operands, number = value.node, graph.operands(value.node), known.number(value)
    if number is not None:
        return abs(number) or math.inf
    if value.dtype not in _FLOATS:
        return 1.0
    if depth and node.op in (*_PASS, "Negative") and operands:
        return grain(graph, known, operands[0], depth - 1)
    if depth and node.op in ("Multiply", "Select"):
        left, right = (grain(graph, known, operand, depth - 1) for operand in operands[-2:])
        return min(left, right) if node.op == "Select" else left * right if left and right else 0.0
    return 1.0 if _is_whole(graph, known, value, depth) else 0.0


def _is_whole(graph: Graph, known: Known, value: Value, depth: int) -> bool:
    """Whether all numbers of `value` are seen to be whole numbers."""
    node = value.node
    if value.dtype not in _FLOATS:
        return True
    number = known.number(value)
    if number is not None:
        return number.is_integer()
    if depth == 0 or node.op not in (*_PASS, "Negative", "Add", "Subtract", "Multiply"):
        return False
    return all(_is_whole(graph, known, operand, depth - 1) for operand in _numbers(graph, node))


def _numbers(graph: Graph, node: Node) -> tuple[Value, ...]:
    """What the numbers of `node` are made of: indices are none."""
    return graph.operands(node)[: 1 if node.op in _PASS else None]


def _hull(*parts: Bounds) -> Bounds:
    return min(low for low, _ in parts), max(high for _, high in parts)


def _times(left: Bounds, right: Bounds) -> Bounds:
    # zero times infinity is no number, and so no bound
    products = [a * b if a and b else 0.0 for a in left for b in right]
    return min(products), max(products)


_OF: dict[str, Callable[[Bounds, Bounds], Bounds]] = {
    "Add": lambda a, b: (a[0] + b[0], a[1] + b[1]),
    "Subtract": lambda a, b: (a[0] - b[1], a[1] - b[0]),
    "Multiply": _times,
    "Maximum": lambda a, b: (max(a[0], b[0]), max(a[1], b[1])),
    "Minimum": lambda a, b: (min(a[0], b[0]), min(a[1], b[1])),
}
