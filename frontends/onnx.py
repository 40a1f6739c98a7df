"""ONNX models as MLX callables: an importer, not a compiler.

`load` reads a model; the program that it returns computes the model with plain MLX operations, so it can be run as it
is or traced. Types are MLX's: float64 models compute in float64, which MLX has on the CPU only (elsewhere they are
refused); float8 and integers of less than 8 bits are carried by a wider type until they are cast or dequantized;
strings, sequences, optional values, complex128 and sparse tensors are refused, as MLX has nothing like them.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from fuser.errors import FuserError, InvalidInputError, InvalidModelError, UnsupportedOperatorError
from fuser.frontends import onnx_ops as _onnx_ops  # noqa: F401  (fills the table of operators)
from fuser.frontends.onnx_file import LARGE, Contents, read
from fuser.frontends.onnx_graph import Builder, Graph, opset_versions, shape_inputs
from fuser.frontends.onnx_order import sort, unsorted
from fuser.frontends.onnx_pieces import Known, Narrowed, Packed, Parts, graphs_of, unpacked
from fuser.frontends.onnx_run import Interpreter, Pool
from fuser.frontends.onnx_types import (
    CARRIERS,
    Host,
    Narrow,
    Value,
    mlx_name,
    mlx_type,
    onnx_type,
    refuse_float64_on_gpu,
    to_mlx,
    type_name,
)
from fuser.frontends.onnx_weights import Weights

_RUNTIME = "com.microsoft"
# what ONNX Runtime's tools put into the standard domain, and the opset from which that has it
_STRAYS = {"SimplifiedLayerNormalization": 1 << 31, "LayerNormalization": 17}
# larger weights are not given to the checker
_CHECKED = 1 << 14
_SOFTMAXES = frozenset(
    {
        "Softmax",
        "BiasSoftmax",
        "QLinearSoftmax",
        "Attention",
        "QAttention",
        "MultiHeadAttention",
        "DecoderMaskedMultiHeadAttention",
        "GroupQueryAttention",
        "SparseAttention",
        "PackedAttention",
        "PackedMultiHeadAttention",
    }
)


class ValueInfo(NamedTuple):
    """An input or output of a model; a dimension is a number, the name of a symbolic one, or `None`."""

    name: str
    dtype: mx.Dtype
    shape: tuple[int | str | None, ...] | None

    def __str__(self) -> str:
        shape = "[...]" if self.shape is None else f"[{', '.join('?' if d is None else str(d) for d in self.shape)}]"
        return f"{self.name}: {mlx_name(self.dtype)}{shape}"


class OnnxProgram:
    """An ONNX model as a callable over MLX arrays; made by `load`.

    `shape_inputs` names the inputs whose values may decide about shapes, branches or loops: a trace in which one of
    those raises `TraceError` can be made again with it given as a NumPy array, as a constant.
    """

    def __init__(self, name: str, graph: Graph, inputs: tuple[ValueInfo, ...], outputs: tuple[ValueInfo, ...]) -> None:
        self.name = name
        self.inputs = inputs
        self.outputs = outputs
        self.shape_inputs = shape_inputs(graph)
        self._graph = graph
        self._pool = Pool()

    def __call__(self, /, **inputs: mx.array | Host | Known) -> dict[str, mx.array]:
        """Compute the outputs by name; can be traced, and marks what every node took and gave.

        An input given as a NumPy array (or `Known`) is a constant: it may decide about shapes.
        """
        given = self._given(inputs)
        interpreter = Interpreter(self._pool)
        outputs = interpreter.run(self._graph, given)
        return {info.name: interpreter.array(value) for info, value in zip(self.outputs, outputs, strict=True)}

    def values(self, /, **inputs: mx.array | Host | Known) -> dict[str, mx.array]:
        """Every value of the model's own graph by name, not only the outputs; what is no array is left out."""
        interpreter = Interpreter(self._pool)
        found = interpreter.values(self._graph, self._given(inputs))
        return {
            name: interpreter.array(value)
            for name, value in found.items()
            if isinstance(value, mx.array) or (isinstance(value, np.ndarray) and value.dtype.kind in "biuf")
        }

    def _given(self, inputs: Mapping[str, mx.array | Host | Known]) -> dict[str, Value]:
        self._check_names(inputs)
        given: dict[str, Value] = {}
        for name, value in inputs.items():
            number = self._graph.types.get(name)
            if isinstance(value, mx.array):
                given[name] = Narrow(value, number) if number in CARRIERS else value
            else:  # known on the host, so what depends on it is decided there
                given[name] = unpacked(value) if isinstance(value, Known) else np.asarray(value)
        return given

    def parts(self) -> Parts:
        """The model's graph, to be run in pieces that take what `packed` gives."""
        return Parts(self._graph, self.name, self._pool, {})

    def packed(self, arguments: Mapping[str, mx.array | Known]) -> dict[str, Packed]:
        """Arguments as a piece takes them: types that MLX lacks are told."""
        types = self._graph.types
        return {
            name: Narrowed(value, types[name]) if isinstance(value, mx.array) and types.get(name) in CARRIERS else value
            for name, value in arguments.items()
        }

    def arguments(self, inputs: Mapping[str, Any]) -> dict[str, mx.array | Known]:
        """`prepare`, with the flags read: a single boolean that decides about a branch is a constant of a trace."""
        prepared: dict[str, mx.array | Known] = {**self.prepare(inputs)}
        for name in self.shape_inputs:
            flag = prepared.get(name)
            if isinstance(flag, mx.array) and flag.dtype == mx.bool_ and flag.size == 1:
                try:
                    prepared[name] = Known(TensorProto.BOOL, flag.shape, bytes([bool(flag.item())]))
                except (RuntimeError, ValueError):  # somebody else traces it
                    continue
        return prepared

    def prepare(self, inputs: Mapping[str, Any]) -> dict[str, mx.array]:
        """Arguments for a call, from NumPy or MLX arrays; names, types and shapes are checked first.

        Nothing is cast: a wrong type is refused with the way to put it right.
        """
        self._check_names(inputs)
        sizes: dict[str, tuple[int, str]] = {}
        result = {}
        for info in self.inputs:
            array = _as_array(info, inputs[info.name], self._graph.types[info.name])
            _check_shape(info, array.shape, sizes)
            result[info.name] = array
        for name in inputs:
            if name not in result:  # an initializer that may be given instead
                result[name] = inputs[name] if isinstance(inputs[name], mx.array) else _plain(to_mlx(inputs[name]))
        return result

    def _check_names(self, inputs: Mapping[str, Any]) -> None:
        known = [info.name for info in self.inputs]
        missing = [name for name in known if name not in inputs]
        unknown = [name for name in inputs if name not in known and name not in self._graph.inputs]
        if missing or unknown:
            what = [f"missing {', '.join(map(repr, missing))}"] if missing else []
            what += [f"unknown {', '.join(map(repr, unknown))}"] if unknown else []
            takes = ", ".join(map(str, self.inputs)) or "nothing"
            raise InvalidInputError(f"model {self.name!r}: {'; '.join(what)}; it takes {takes}")

    def softmaxes(self, *, branches: bool = True) -> list[str]:
        """The names of the nodes that compute a softmax, in the model's order, those of functions too.

        With `branches` those of subgraphs as well, which one run may not take.
        """
        found, stack = [], [self._graph]
        while stack:
            graph = stack.pop()
            for step in graph.steps:
                if step.kind.rpartition("::")[2].rpartition(".")[2] in _SOFTMAXES:
                    found.append(step.name)
                inner = [] if step.body is None else [step.body]
                stack += graphs_of(step) if branches else inner
        return found

    def __repr__(self) -> str:
        return f"OnnxProgram({self.name!r}: {'; '.join(map(str, self.inputs))} -> {'; '.join(map(str, self.outputs))})"


def load(path: str | os.PathLike[str] | onnx.ModelProto, *, large: int = LARGE) -> OnnxProgram:
    """Read a model from a file (or take one that is read already).

    Weights in the file of `large` bytes or more are read one by one, and are in memory once.
    Raises `InvalidModelError` for a file that is not a valid model, and `UnsupportedOperatorError` with all that is
    missing for a model that needs more than MLX or fuser have.
    """
    try:
        return _load(path, large)
    except FuserError:
        raise
    except OSError as error:
        raise InvalidModelError(f"{_origin(path)} cannot be read: {error.strerror or error}") from error
    except DecodeError as error:
        raise InvalidModelError(f"{_origin(path)} is no ONNX model, or only a part of one: is it whole?") from error
    except RecursionError:
        raise InvalidModelError(f"{_origin(path)}: graphs are nested too deeply") from None
    except Exception as error:  # parser and checker raise a dozen types, of three libraries
        line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InvalidModelError(f"{_origin(path)}: {line}") from error


def _origin(path: str | os.PathLike[str] | onnx.ModelProto) -> str:
    return "the model" if isinstance(path, onnx.ModelProto) else repr(os.fspath(path))


def _load(path: str | os.PathLike[str] | onnx.ModelProto, large: int) -> OnnxProgram:
    folder: Path | None = None
    contents: Contents | None = None
    stem = ""
    if isinstance(path, onnx.ModelProto):
        model = path
        if _strays(model) or _undeclared(model) or unsorted(model.graph):
            model = onnx.ModelProto()
            model.CopyFrom(path)
    else:
        file = Path(path)
        folder, stem = file.parent, file.stem
        contents = read(file, large)
        model = contents.model
    _bring_home(model)
    if unsorted(model.graph):
        sort(model.graph)
    _check(model, None if folder is None else Path(os.fspath(path)))
    opsets = opset_versions(model.opset_import)
    functions = {
        ("" if item.domain == "ai.onnx" else item.domain, item.name, getattr(item, "overload", "")): item
        for item in model.functions
    }
    builder = Builder(opsets, functions, Weights(folder, contents))
    initialized = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(_info(value) for value in model.graph.input if value.name not in initialized)
    outputs = tuple(_info(value) for value in model.graph.output)
    graph = builder.graph(model.graph)
    return OnnxProgram(stem or model.graph.name, graph, inputs, outputs)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of those inside it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(attribute.g)


def _strays(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Nodes that ONNX Runtime's tools put into the standard domain, which does not have them."""
    opset = opset_versions(model.opset_import).get("", 1)
    nodes = (node for node in _nodes(model.graph) if node.op_type in _STRAYS)
    return [node for node in nodes if node.domain in ("", "ai.onnx") and opset < _STRAYS[node.op_type]]


def _undeclared(model: onnx.ModelProto) -> bool:
    """Whether it uses the domain of ONNX Runtime without an opset for it, which ONNX Runtime takes."""
    if any(entry.domain == _RUNTIME for entry in model.opset_import):
        return False
    return any(node.domain == _RUNTIME for node in _nodes(model.graph))


def _bring_home(model: onnx.ModelProto) -> None:
    for node in _strays(model):
        node.domain = _RUNTIME
    if _undeclared(model):
        model.opset_import.append(onnx.helper.make_opsetid(_RUNTIME, 1))


def _check(model: onnx.ModelProto, file: Path | None) -> None:
    if not model.HasField("graph"):
        raise InvalidModelError(
            f"{'the model' if file is None else repr(str(file))} is not an ONNX model: it has no graph"
        )
    weights = any(map(_weighs, model.graph.initializer))
    shapeless = [value for value in (*model.graph.input, *model.graph.output) if _shapeless(value)]
    if weights or shapeless:
        # the checker wants external files in the working folder and a shape for every input, takes no more than 2 GiB,
        # and copies what it is given twice: it is given the rest, and weights are checked where they are read
        model = onnx.ModelProto(
            ir_version=model.ir_version,
            opset_import=model.opset_import,
            graph=_without_weights(model.graph),
            functions=model.functions,
        )
    onnx.checker.check_model(model)


def _weighs(tensor: onnx.TensorProto) -> bool:
    return tensor.data_location == onnx.TensorProto.EXTERNAL or math.prod(tensor.dims) > _CHECKED


def _shapeless(value: onnx.ValueInfoProto) -> bool:
    return value.type.WhichOneof("value") == "tensor_type" and not value.type.tensor_type.HasField("shape")


def _without_weights(graph: onnx.GraphProto) -> onnx.GraphProto:
    stripped = onnx.GraphProto(name=graph.name, node=graph.node, input=graph.input, output=graph.output)
    known = {value.name for value in graph.input}
    names = Counter(tensor.name for tensor in graph.initializer)
    for tensor in graph.initializer:
        if names[tensor.name] > 1:
            raise InvalidModelError(f"{tensor.name} initializer name is not unique")
        if not _weighs(tensor):
            stripped.initializer.append(tensor)
        elif tensor.name not in known:
            stripped.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    for value in (*stripped.input, *stripped.output):
        if _shapeless(value):
            value.type.tensor_type.shape.SetInParent()
    return stripped


def _info(value: onnx.ValueInfoProto) -> ValueInfo:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        what = "has no type" if kind is None else f"is a {kind.removesuffix('_type').replace('_', ' ')}"
        raise UnsupportedOperatorError(f"{value.name!r} {what}: MLX programs take and give arrays only")
    tensor = value.type.tensor_type
    if tensor.elem_type not in CARRIERS:
        try:
            mlx_type(tensor.elem_type)
        except UnsupportedOperatorError as error:
            raise UnsupportedOperatorError(f"{value.name!r}: {error}") from None
    shape: tuple[int | str | None, ...] | None = None
    if tensor.HasField("shape"):
        shape = tuple(
            int(dim.dim_value) if dim.HasField("dim_value") else (dim.dim_param or None) for dim in tensor.shape.dim
        )
        if any(isinstance(dim, int) and dim < 0 for dim in shape):
            raise InvalidModelError(f"{value.name!r} has a negative dimension: {list(shape)}")
    return ValueInfo(value.name, mlx_type(tensor.elem_type), shape)


def _as_array(info: ValueInfo, value: Any, number: int) -> mx.array:
    expected = type_name(number) if number in CARRIERS else mlx_name(info.dtype)
    if isinstance(value, mx.array):
        if value.dtype != info.dtype:
            raise InvalidInputError(
                f"input {info.name!r} must be {expected}, but {mlx_name(value.dtype)} came: "
                f"pass {info.name}.astype(mx.{mlx_name(info.dtype)})"
            )
        if value.dtype == mx.float64:
            refuse_float64_on_gpu()
        return value
    host: Host = np.asarray(value)
    try:
        came = onnx_type(host)
    except UnsupportedOperatorError:
        came = -1
    if came != number:
        raise InvalidInputError(
            f"input {info.name!r} must be {expected}, but {host.dtype} came: pass {info.name}.astype({expected!r})"
        )
    return _plain(to_mlx(host))


def _plain(value: mx.array | Narrow) -> mx.array:
    return value.carrier if isinstance(value, Narrow) else value


def _check_shape(info: ValueInfo, shape: tuple[int, ...], sizes: dict[str, tuple[int, str]]) -> None:
    if info.shape is None:
        return
    if len(shape) != len(info.shape):
        raise InvalidInputError(
            f"input {info.name!r} must have {len(info.shape)} dimensions, {info}, but shape {list(shape)} came"
        )
    for axis, (declared, size) in enumerate(zip(info.shape, shape, strict=True)):
        if isinstance(declared, int) and declared != size:
            found = f"axis {axis} of {list(shape)} is {size}"
            raise InvalidInputError(f"input {info.name!r} must be {_type(info)}, but {found}")
        if isinstance(declared, str):
            known, where = sizes.setdefault(declared, (size, info.name))
            if known != size:
                found = f"{declared!r} is {known} in {where!r} and {size} here"
                raise InvalidInputError(f"input {info.name!r} must be {_type(info)}, but {found}")


def _type(info: ValueInfo) -> str:
    return str(info).removeprefix(f"{info.name}: ")
