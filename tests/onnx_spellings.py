"""Spellings as small ONNX graphs: each primitive of a trace written as the ONNX operators that mean it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import onnx
from onnx import TensorProto, helper

from fuser.ir.graph import CONSTANT, INPUT, Graph, Node, Value
from tests.onnx_build import model

TYPES = {
    mx.float32: TensorProto.FLOAT,
    mx.float16: TensorProto.FLOAT16,
    mx.bfloat16: TensorProto.BFLOAT16,
    mx.bool_: TensorProto.BOOL,
    mx.int32: TensorProto.INT32,
    mx.int64: TensorProto.INT64,
}
# what has the same operands and no attribute
PLAIN = {
    "Matmul": "MatMul",
    "Multiply": "Mul",
    "Add": "Add",
    "Divide": "Div",
    "Subtract": "Sub",
    "Maximum": "Max",
    "Minimum": "Min",
    "Power": "Pow",
    "Select": "Where",
    "Exp": "Exp",
    "Sin": "Sin",
    "Cos": "Cos",
    "Abs": "Abs",
    "Negative": "Neg",
    "Sigmoid": "Sigmoid",
    "Tanh": "Tanh",
    "Greater": "Greater",
    "GreaterEqual": "GreaterOrEqual",
    "Less": "Less",
    "LessEqual": "LessOrEqual",
    "LogicalNot": "Not",
    "LogicalAnd": "And",
    "LogicalOr": "Or",
}
REDUCTIONS = {2: "ReduceSum", 4: "ReduceMin", 5: "ReduceMax"}
SHAPED = ("Reshape", "Flatten", "Unflatten", "Squeeze", "ExpandDims")


class Unwritten(Exception):
    """A primitive that is not written here."""


class Writer:
    """A trace as the nodes and initializers of an ONNX graph."""

    def __init__(self, graph: Graph) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray[Any, Any]] = {}
        self.names: dict[Value, str] = {}
        inputs = []
        for node in graph.nodes:
            if node.op == INPUT:
                name = self.names[Value(node)] = f"x{graph.inputs.index(node)}"
                inputs.append(helper.make_tensor_value_info(name, TYPES[node.outputs[0].dtype], node.outputs[0].shape))
                continue
            if node.op == CONSTANT:
                assert node.array is not None
                self.names[Value(node)] = self.constant_of(node.array)
                continue
            for index, name in enumerate(self.written(node, [self.names[value] for value in graph.operands(node)])):
                self.names[Value(node, index)] = name
        inputs.sort(key=lambda info: int(info.name[1:]))
        outputs = []
        for number, value in enumerate(graph.outputs):
            self.nodes.append(helper.make_node("Identity", [self.names[value]], [f"y{number}"]))
            outputs.append(helper.make_tensor_value_info(f"y{number}", TYPES[value.dtype], value.shape))
        self.model = model(self.nodes, inputs, outputs, self.constants)

    def add(self, kind: str, operands: Sequence[str], outputs: int = 1, **attributes: Any) -> list[str]:
        names = [f"{kind}_{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(kind, operands, names, **attributes))
        return names

    def constant(self, array: Any, dtype: Any = np.int64) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants[name] = np.asarray(array, dtype)
        return name

    def cast(self, name: str, dtype: mx.Dtype) -> str:
        return self.add("Cast", [name], to=TYPES[dtype])[0]

    def written(self, node: Node, x: list[str]) -> list[str]:
        """The names of what `node` gives, its operators written."""
        if node.op in PLAIN:
            return self.add(PLAIN[node.op], x)
        if node.op in SHAPED:
            return self.add("Reshape", [x[0], self.constant(node.outputs[0].shape)])
        write: Callable[..., list[str]] | None = getattr(self, node.op.lower(), None)
        if write is None:
            raise Unwritten(node.op)
        return write(node, x)

    def constant_of(self, array: mx.array) -> str:
        plain = array.astype(mx.float32) if array.dtype == mx.bfloat16 else array
        name = self.constant(np.array(plain), np.array(plain).dtype)
        return self.cast(name, array.dtype) if array.dtype == mx.bfloat16 else name

    def broadcast(self, node: Node, x: list[str]) -> list[str]:
        return self.add("Expand", [x[0], self.constant(node.outputs[0].shape)])

    full = broadcast

    def transpose(self, node: Node, x: list[str]) -> list[str]:
        return self.add("Transpose", x, perm=list(node.arguments[0]))

    def softmax(self, node: Node, x: list[str]) -> list[str]:
        return self.add("Softmax", x, axis=-1)

    def astype(self, node: Node, x: list[str]) -> list[str]:
        return [self.cast(x[0], node.outputs[0].dtype)]

    def arange(self, node: Node, x: list[str]) -> list[str]:
        start, _, step = node.arguments[:3]
        return [self.constant_of((mx.arange(node.outputs[0].shape[0]) * step + start).astype(node.outputs[0].dtype))]

    def reduce(self, node: Node, x: list[str]) -> list[str]:
        kind, axes = node.arguments[:2]
        if kind not in REDUCTIONS:
            raise Unwritten(f"Reduce {kind}")
        return self.add(REDUCTIONS[kind], [x[0], self.constant(axes)], keepdims=1)

    def slice(self, node: Node, x: list[str]) -> list[str]:
        starts, stops, steps = node.arguments
        if any(step < 0 for step in steps):
            raise Unwritten("Slice backwards")
        return self.add("Slice", [x[0], *(self.constant(each) for each in (starts, stops, range(len(starts)), steps))])

    def pad(self, node: Node, x: list[str]) -> list[str]:
        axes, low, high = node.arguments
        return self.add("Pad", [x[0], self.constant([*low, *high]), x[1], self.constant(axes)])

    def concatenate(self, node: Node, x: list[str]) -> list[str]:
        return self.add("Concat", x, axis=node.arguments[0])

    def split(self, node: Node, x: list[str]) -> list[str]:
        axis = node.arguments[1]
        sizes = [type.shape[axis] for type in node.outputs]
        return self.add("Split", [x[0], self.constant(sizes)], len(sizes), axis=axis)

    def equal(self, node: Node, x: list[str]) -> list[str]:
        return self.add("Equal", x)

    def notequal(self, node: Node, x: list[str]) -> list[str]:
        return self.add("Not", self.add("Equal", x))

    def square(self, node: Node, x: list[str]) -> list[str]:
        return self.add("Mul", [x[0], x[0]])

    def addmm(self, node: Node, x: list[str]) -> list[str]:
        alpha, beta = (self.constant_of(mx.array(number, node.outputs[0].dtype)) for number in node.arguments)
        (product,), (bias,) = self.add("MatMul", x[:2]), self.add("Mul", [x[2], beta])
        return self.add("Add", [*self.add("Mul", [product, alpha]), bias])

    def logsumexp(self, node: Node, x: list[str]) -> list[str]:
        return self.add("ReduceLogSumExp", [x[0], self.constant([-1])], keepdims=1)


def written(graph: Graph) -> onnx.ModelProto:
    """`graph` as an ONNX model; raises `Unwritten` for a primitive that is not written here."""
    return Writer(graph).model
