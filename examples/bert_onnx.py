"""A BERT of `bert.py` as an ONNX file, its attention spelled out as torch's exporters do it."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import onnx
from bert import Bert
from onnx import NodeProto, TensorProto, helper, numpy_helper

OPSET = 17


class Writer:
    """The nodes and initializers of a graph, as they are added."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.scope = ""

    def add(self, op: str, *inputs: str, **attributes: object) -> str:
        """One node; the name of its output."""
        name = f"{self.scope}/{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [f"{name}_output_0"], name, **attributes))
        return f"{name}_output_0"

    def array(self, array: mx.array | np.ndarray, name: str = "") -> str:
        """One initializer; its name."""
        name = name or f"{self.scope}/Constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.array(array), name))
        return name

    def number(self, value: float) -> str:
        """A scalar."""
        return self.array(np.array(value, np.float32))

    def linear(self, layer: nn.Linear, x: str) -> str:
        """`x @ W.T + b`; exporters store the weight transposed."""
        return self.add("Add", self.add("MatMul", x, self.array(layer.weight.T)), self.array(layer.bias))

    def norm(self, layer: nn.LayerNorm, x: str) -> str:
        """A LayerNorm."""
        weight, bias = self.array(layer.weight), self.array(layer.bias)
        return self.add("LayerNormalization", x, weight, bias, axis=-1, epsilon=layer.eps)


def write_onnx(model: Bert, path: Path) -> None:
    """Write `model`, in float32 and with GELU, to `path`; batch and length are dynamic."""
    to, config = Writer(), model.config
    embeddings = model.embeddings
    to.scope = "/embeddings"
    words = to.add("Gather", to.array(embeddings.word_embeddings.weight), "input_ids")
    types = to.add("Gather", to.array(embeddings.token_type_embeddings.weight), "token_type_ids")
    zero, length = to.array(np.array([0])), to.add("Shape", "input_ids", start=1, end=2)
    positions = to.add("Slice", to.array(embeddings.position_embeddings.weight), zero, length, zero)
    x = to.norm(embeddings.LayerNorm, to.add("Add", to.add("Add", words, types), positions))

    to.scope = ""
    keep = to.add("Cast", to.add("Unsqueeze", "attention_mask", to.array(np.array([1, 2]))), to=TensorProto.FLOAT)
    lowest = to.number(float(np.finfo(np.float32).min))
    mask = to.add("Mul", to.add("Sub", to.number(1.0), keep), lowest)

    depth = config.hidden_size // config.num_attention_heads
    heads = to.array(np.array([0, 0, config.num_attention_heads, depth]))
    merged = to.array(np.array([0, 0, config.hidden_size]))
    for index, layer in enumerate(model.encoder.layer):
        to.scope = f"/encoder/layer.{index}/attention/self"
        attention = layer.attention.self
        q, k, v = (
            to.add("Transpose", to.add("Reshape", to.linear(each, x), heads), perm=perm)
            for each, perm in (
                (attention.query, (0, 2, 1, 3)),
                (attention.key, (0, 2, 3, 1)),
                (attention.value, (0, 2, 1, 3)),
            )
        )
        scores = to.add("Div", to.add("MatMul", q, k), to.number(depth**0.5))
        weights = to.add("Softmax", to.add("Add", scores, mask), axis=-1)
        context = to.add("Transpose", to.add("MatMul", weights, v), perm=(0, 2, 1, 3))
        context = to.add("Reshape", context, merged)

        to.scope = f"/encoder/layer.{index}"
        output = layer.attention.output
        x = to.norm(output.LayerNorm, to.add("Add", to.linear(output.dense, context), x))
        wide = to.linear(layer.intermediate.dense, x)
        erf = to.add("Add", to.add("Erf", to.add("Div", wide, to.number(2**0.5))), to.number(1.0))
        wide = to.add("Mul", to.add("Mul", wide, erf), to.number(0.5))
        x = to.norm(layer.output.LayerNorm, to.add("Add", to.linear(layer.output.dense, wide), x))
    to.nodes.append(helper.make_node("Identity", [x], ["last_hidden_state"]))

    tokens = ["batch_size", "sequence_length"]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, tokens)
        for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    hidden = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [*tokens, config.hidden_size])
    graph = helper.make_graph(to.nodes, "bert", inputs, [hidden], to.initializers)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(proto, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(proto, path)
