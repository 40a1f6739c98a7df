"""Attentions as ONNX models, in the ways in which they are masked, and engines that run them."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from fuser.frontends.onnx import load

try:
    import onnxruntime
except ImportError:
    onnxruntime = None

RUNTIME = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2]) if onnxruntime else ()
Arrays = dict[str, NDArray[Any]]
HEADS, DEPTH = 4, 8


@dataclass
class Attend:
    """An attention over inputs `q`, `k`, `v`, and `keep`, which hides some rows wholly."""

    mask: Sequence[str] = ()
    fills: Sequence[float] = ()
    scale: float = 0.3
    guard: bool = False
    rows: bool = True
    """Whether the mask varies along the queries."""
    key_heads: int = HEADS
    merged: bool = False
    late_scale: bool = False
    square: bool = False
    window: int = 0
    buffer: bool = False
    """The causal mask is cut from a constant of `window` rows."""
    cap: float = 0.0
    half: bool = False
    opset: int = 17

    @property
    def dtype(self) -> Any:
        return np.float16 if self.half else np.float32

    def model(self) -> ModelProto:
        """The model, with symbolic batch and lengths."""
        kind = TensorProto.FLOAT16 if self.half else TensorProto.FLOAT
        keys = "length" if self.square else "keys"
        self._nodes: list[NodeProto] = []
        self._constants: list[TensorProto] = []
        inputs = []
        for name, length, heads in (("q", "length", HEADS), ("k", keys, self.key_heads), ("v", keys, self.key_heads)):
            shape: Any = ["batch", length, heads * DEPTH] if self.merged else ["batch", heads, length, DEPTH]
            inputs.append(helper.make_tensor_value_info(name, kind, shape))
        if any(each in ("add", "where", "where not") for each in self.mask):
            shape = ["batch", 1, "length", keys] if self.rows else ["batch", 1, 1, keys]
            inputs.append(helper.make_tensor_value_info("keep", TensorProto.BOOL, shape))
        if "bias" in self.mask:
            inputs.append(helper.make_tensor_value_info("bias", kind, [1, HEADS, "length", keys]))
        q, k, v = (self._operand(name) for name in "qkv")
        scores = self._node("MatMul", q, self._node("Transpose", k, perm=[0, 1, 3, 2]))
        scale = self._number(self.scale)
        if not self.late_scale:
            scores = self._node("Mul", scores, scale)
        if self.cap:
            cap = self._number(self.cap)
            scores = self._node("Mul", self._node("Tanh", self._node("Div", scores, cap)), cap)
        for place, step in enumerate(self.mask):
            fill = self._number(self.fills[place]) if place < len(self.fills) else ""
            scores = self._masked(step, scores, fill)
        if self.late_scale:
            scores = self._node("Mul", scores, scale)
        weights = self._node("Softmax", scores, output="weights", axis=-1)
        if self.guard:
            weights = self._node("Where", self._node("IsNaN", weights), self._number(0), weights)
        if self.merged:
            self._node("Reshape", self._node("Transpose", self._node("MatMul", weights, v), perm=[0, 2, 1, 3]),
                       self._integers(0, 0, HEADS * DEPTH), output="y")  # fmt: skip
        else:
            self._node("MatMul", weights, v, output="y")
        shape = ["batch", "length", HEADS * DEPTH] if self.merged else ["batch", HEADS, "length", DEPTH]
        output = helper.make_tensor_value_info("y", kind, shape)
        graph = helper.make_graph(self._nodes, "attend", inputs, [output], self._constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)

    def inputs(self, batch: int, length: int, keys: int) -> Arrays:
        """Inputs of these sizes; the first row of the first mask hides every key."""
        random = np.random.default_rng(0)
        keys = length if self.square else keys
        given: Arrays = {}
        for name, size, heads in (("q", length, HEADS), ("k", keys, self.key_heads), ("v", keys, self.key_heads)):
            shape = (batch, size, heads * DEPTH) if self.merged else (batch, heads, size, DEPTH)
            given[name] = random.standard_normal(shape).astype(self.dtype)
        keep = random.random((batch, 1, length if self.rows else 1, keys)) < 0.6
        keep[..., 0] = True
        keep[0, 0, 0] = False
        given["keep"] = keep
        given["bias"] = random.standard_normal((1, HEADS, length, keys)).astype(self.dtype)
        names = {value.name for value in self.model().graph.input}
        return {name: array for name, array in given.items() if name in names}

    def _operand(self, name: str) -> str:
        heads = HEADS if name == "q" else self.key_heads
        value = name
        if self.merged:
            value = self._node("Transpose", self._node("Reshape", value, self._integers(0, 0, heads, DEPTH)),
                               perm=[0, 2, 1, 3])  # fmt: skip
        if heads == HEADS:
            return value
        # heads repeated as transformers does it
        times = self._integers(1, 1, HEADS // heads, 1, 1)
        wide = self._node("Tile", self._unsqueezed(value, 2), times)
        shape = self._node("Shape", value)
        parts = [self._node("Gather", shape, self._integers(i)) for i in (0, 2)]
        whole = self._node("Concat", parts[0], self._integers(HEADS), parts[1], self._integers(DEPTH), axis=0)
        return self._node("Reshape", wide, whole)

    def _unsqueezed(self, value: str, axis: int) -> str:
        if self.opset < 13:
            return self._node("Unsqueeze", value, axes=[axis])
        return self._node("Unsqueeze", value, self._integers(axis))

    def _masked(self, step: str, scores: str, fill: str) -> str:
        if step == "bias":
            return self._node("Add", scores, "bias")
        if step == "add":
            return self._node("Add", scores, self._node("Where", "keep", self._number(0), fill))
        if step == "where":
            return self._node("Where", "keep", scores, fill)
        if step == "where not":
            return self._node("Where", self._node("Not", "keep"), fill, scores)
        assert step == "causal"
        length = self._node("Gather", self._node("Shape", "q"), self._integers(2))
        if self.buffer:
            tri = numpy_helper.from_array(np.tri(self.window, dtype=bool), "tri")
            self._constants.append(tri)
            ends = self._node("Concat", length, length, axis=0)
            keep = self._node("Slice", "tri", self._integers(0, 0), ends, self._integers(0, 1))
            return self._node("Where", keep, scores, fill)
        one = self._node("Gather", length, self._scalar(0))
        line = self._node("Range", self._scalar(0), one, self._scalar(1))
        rows = self._unsqueezed(line, 1)
        keep = self._node("LessOrEqual", line, rows)
        if self.window:
            near = self._node("Less", self._node("Sub", rows, line), self._scalar(self.window))
            keep = self._node("And", keep, near)
        return self._node("Where", keep, scores, fill)

    def _node(self, op: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"{op}_{len(self._nodes)}_output"
        self._nodes.append(helper.make_node(op, list(inputs), [output], f"{op}_{len(self._nodes)}", **attributes))
        return output

    def _constant(self, array: NDArray[Any]) -> str:
        name = f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(array, name))
        return name

    def _number(self, number: float) -> str:
        return self._constant(np.asarray(number, self.dtype))

    def _scalar(self, number: int) -> str:
        return self._constant(np.asarray(number, np.int64))

    def _integers(self, *numbers: int) -> str:
        return self._constant(np.asarray(numbers, np.int64))


def operators(model: ModelProto) -> Counter[str]:
    """How many nodes of each kind a model has."""
    return Counter(node.op_type for node in model.graph.node)


def answers(model: ModelProto, inputs: Arrays) -> Iterator[Arrays]:
    """What each engine gives: our own frontend, unfused, and ONNX Runtime where it is installed."""
    program = load(model)
    results = program(**{name: mx.array(array) for name, array in inputs.items()})
    yield {name: np.asarray(array) for name, array in results.items()}
    if onnxruntime is not None:
        if RUNTIME < (1, 27) and any(map(_new, model.graph.node)):
            pytest.skip(f"ONNX Runtime 1.27 or newer computes this operator, {onnxruntime.__version__} does not")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        # optimized, half precision is not rounded where the model rounds it
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        yield dict(zip(names, session.run(names, inputs), strict=True))


def _new(node: NodeProto) -> bool:
    """Older runtimes put the softcap on the mask, too, and want outputs that grouped heads may leave out."""
    return node.op_type == "GroupQueryAttention" or any(each.name == "softcap" and each.f for each in node.attribute)


def same(left: Arrays, right: Arrays, tolerance: float = 1e-5) -> None:
    """All outputs agree, also in what is NaN."""
    assert list(left) == list(right)
    for name, want in right.items():
        got = left[name]
        assert got.shape == want.shape and got.dtype == want.dtype, name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            largest = np.abs(want[np.isfinite(want)]).max(initial=0.0)
        limit = tolerance * (float(largest) if math.isfinite(largest) and largest else 1.0)
        np.testing.assert_allclose(got, want, rtol=0, atol=limit, err_msg=name, equal_nan=True)
