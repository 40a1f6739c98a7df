"""Small ONNX models for the tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import onnx
from onnx import helper

from fuser.frontends.onnx import OnnxProgram, load
from fuser.frontends.onnx_types import to_host

Arrays = Mapping[str, Any]


def info(name: str, dtype: Any, shape: Sequence[Any] | None) -> onnx.ValueInfoProto:
    """A declared value; `dtype` is NumPy's."""
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: Arrays | None = None,
    opset: int = 21,
    functions: Sequence[onnx.FunctionProto] = (),
    domains: Sequence[str] = ("com.microsoft",),
) -> onnx.ModelProto:
    """A model of these parts."""
    initializers = [onnx.numpy_helper.from_array(value, name) for name, value in (constants or {}).items()]
    graph = helper.make_graph(list(nodes), "test", list(inputs), list(outputs), initializers)
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, functions=list(functions), ir_version=10)


def one_node(
    kind: str,
    inputs: Sequence[Any],
    outputs: int = 1,
    opset: int = 21,
    domain: str = "",
    constants: Sequence[int] = (),
    **attributes: Any,
) -> OnnxProgram:
    """A program of a single node; inputs at the places `constants` are initializers, `None` is left out."""
    names = ["" if value is None else f"x{place}" for place, value in enumerate(inputs)]
    node = helper.make_node(kind, names, [f"y{place}" for place in range(outputs)], domain=domain, **attributes)
    given = {place: value for place, value in enumerate(inputs) if value is not None and place not in constants}
    return load(
        model(
            [node],
            [info(f"x{place}", value.dtype, value.shape) for place, value in given.items()],
            [info(f"y{place}", np.float32, None) for place in range(outputs)],
            {f"x{place}": inputs[place] for place in constants},
            opset,
            domains=(domain,) if domain else (),
        )
    )


def run_node(kind: str, inputs: Sequence[Any], outputs: int = 1, **options: Any) -> list[Any]:
    """The outputs of a single node as NumPy arrays."""
    program = one_node(kind, inputs, outputs, **options)
    results = program(**program.prepare({name.name: inputs[int(name.name[1:])] for name in program.inputs}))
    return [to_host(results[f"y{place}"]) for place in range(outputs)]


def primitives(program: OnnxProgram, inputs: Arrays) -> list[str]:
    """The names of the primitives in a trace of the program."""
    arguments = program.prepare(inputs)
    names: list[str] = []

    def callback(event: dict[str, Any]) -> None:
        if event["type"] == "primitive":
            names.append(event["name"])

    def function(*arrays: mx.array) -> list[mx.array]:
        return list(program(**dict(zip(arguments, arrays, strict=True))).values())

    mx.export_function(callback, function, *arguments.values())
    return names
