"""An ONNX graph made ready to run: attributes and tensors decoded, operators looked up, names given to every node."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
from onnx import AttributeProto, FunctionProto, GraphProto, NodeProto, OperatorSetIdProto, ValueInfoProto, defs, helper

from fuser.errors import InvalidModelError, UnsupportedOperatorError
from fuser.frontends.onnx_ops.refused import reason
from fuser.frontends.onnx_ops.registry import Operator, find
from fuser.frontends.onnx_ops.shape import constant_value
from fuser.frontends.onnx_types import NUMPY_TYPES, Host, Value
from fuser.frontends.onnx_weights import Weights

OLDEST = 7
MAX_STEPS = 1_000_000
_SCOPES = "pkg.torch.onnx.name_scopes"
_FLOATS_ON_HOST = 1024
_BYTES_ON_HOST = 4096
_INTEGERS_ON_HOST = 1 << 20


@dataclass(slots=True, eq=False)
class Step:
    """One node: what to compute, from and to which names.

    `fixed`: it depends on constants only; `folded` and `memo` hold what was computed from constants once.
    """

    name: str
    kind: str
    version: int
    operator: Operator | None
    attributes: dict[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    body: Graph | None = None
    folded: tuple[Value | None, ...] | None = None
    fixed: bool = False
    fixed_inputs: tuple[bool, ...] = ()
    memo: dict[str, tuple[mx.array, ...]] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Graph:
    """A graph, a subgraph or a function's body.

    `types` are the declared types of its inputs, `empty` holds for each output what a loop of no steps stacks of it.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: dict[str, Value]
    steps: list[Step]
    types: dict[str, int] = field(default_factory=dict)
    empty: dict[str, Host] = field(default_factory=dict)


def node_name(node: NodeProto) -> str:
    """A name for a report: the node's own, with the module path where torch's exporter wrote one."""
    name = node.name or next((f"{node.op_type}_of_{output}" for output in node.output if output), node.op_type)
    scopes = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "")
    if scopes:
        try:
            path = ast.literal_eval(scopes)
            module = path[-2] if isinstance(path, list) and len(path) > 1 else ""
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            module = ""
        if isinstance(module, str) and module:
            return f"{module}/{name}"
    return name


@dataclass(slots=True)
class Builder:
    """Turns the graphs of one model into `Graph`s; collects what is missing instead of stopping at it."""

    opsets: Mapping[str, int]
    functions: Mapping[tuple[str, str, str], FunctionProto]
    weights: Weights
    missing: dict[str, list[str]] = field(default_factory=dict)
    steps: int = 0

    def graph(self, proto: GraphProto) -> Graph:
        """The model's graph, or an error that lists every operator that is missing."""
        graph = self._graph(proto, _Context(self.opsets, {}, "", ()))
        if self.missing:
            listed = "; ".join(f"{kind} ({_some(names)})" for kind, names in sorted(self.missing.items()))
            raise UnsupportedOperatorError(f"operators that fuser does not have: {listed}")
        return graph

    def _graph(self, proto: GraphProto, context: _Context, outer_fixed: frozenset[str] = frozenset()) -> Graph:
        constants: dict[str, Value] = {
            tensor.name: self._constant(self.weights.read(tensor)) for tensor in proto.initializer
        }
        if proto.sparse_initializer:
            raise UnsupportedOperatorError("the model has sparse initializers: MLX has no sparse arrays")
        inputs = tuple(value.name for value in proto.input)
        types = {
            value.name: value.type.tensor_type.elem_type
            for value in proto.input
            if value.type.WhichOneof("value") == "tensor_type"
        }
        outputs = tuple(value.name for value in proto.output)
        graph = self._body(proto.node, inputs, outputs, constants, context, outer_fixed, types)
        graph.empty.update({value.name: _nothing(value) for value in proto.output})
        return graph

    def _body(
        self,
        nodes: Iterable[NodeProto],
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
        constants: dict[str, Value],
        context: _Context,
        outer_fixed: frozenset[str],
        types: dict[str, int],
    ) -> Graph:
        steps: list[Step] = []
        overridable = set(inputs)
        fixed = set(outer_fixed) - overridable
        fixed.update(name for name in constants if name not in overridable)
        for node in nodes:
            self.steps += 1
            if self.steps > MAX_STEPS:
                raise InvalidModelError(f"the model has more than {MAX_STEPS:,} nodes with its functions written out")
            step = self._step(node, context, frozenset(fixed) if _has_graphs(node) else frozenset())
            if step is None:
                continue
            if step.kind == "Constant" and step.operator is not None and step.outputs:
                constants[step.outputs[0]] = self._constant(constant_value(step.name, step.attributes))
                fixed.add(step.outputs[0])
                continue
            step.fixed_inputs = tuple(not name or name in fixed for name in step.inputs)
            step.fixed = (
                step.operator is not None
                and step.operator.pure
                and step.body is None
                and not _has_graphs(node)
                and all(step.fixed_inputs)
            )
            if step.fixed:
                fixed.update(step.outputs)
            steps.append(step)
        return Graph(inputs, outputs, constants, steps, types)

    def _constant(self, host: Host) -> Value:
        """Small values stay on the host, where shape arithmetic may need them; weights become MLX arrays, once."""
        if host.dtype == np.bool_:
            return self.weights.held(host)
        limit = _INTEGERS_ON_HOST if host.dtype.kind in "iu" and host.itemsize > 1 else _FLOATS_ON_HOST
        if host.itemsize == 1 and host.dtype.kind in "iu":
            limit = _BYTES_ON_HOST
        return self.weights.held(host) if host.size <= limit else self.weights.lazy(host)

    def _step(self, node: NodeProto, context: _Context, fixed: frozenset[str]) -> Step | None:
        domain = "" if node.domain == "ai.onnx" else node.domain
        name = context.prefix + node_name(node)
        version = context.opsets.get(domain, 1)
        attributes = {
            key: value
            for attribute in node.attribute
            for key, value in [self._attribute(attribute, context, name, fixed)]
            if value is not None
        }
        step = Step(name, node.op_type, version, None, attributes, tuple(node.input), tuple(node.output))
        function = self.functions.get((domain, node.op_type, getattr(node, "overload", "")))
        if function is not None:
            step.body = self._function(function, attributes, name, context)
            return step
        old = domain == "" and _changed(node.op_type, version)
        step.operator = None if old else find(domain, node.op_type, version)
        if step.operator is None:
            kind = f"{domain}.{node.op_type}" if domain else node.op_type
            why = "it changed since: use onnx.version_converter" if old else reason(domain, node.op_type)
            entry = f"{kind}-{version}" + (f", as {why}" if why else "")
            self.missing.setdefault(entry, []).append(repr(name))
        return step

    def _function(self, proto: FunctionProto, given: dict[str, Any], name: str, context: _Context) -> Graph:
        key = f"{proto.domain}.{proto.name}"
        if key in context.within:
            raise InvalidModelError(f"node {name!r}: function {key} calls itself")
        attributes = {
            attribute.name: self._attribute(attribute, context, name, frozenset())[1]
            for attribute in proto.attribute_proto
        }
        attributes.update(given)
        opsets = opset_versions(proto.opset_import)
        inner = _Context(opsets, attributes, f"{name}/", (*context.within, key))
        return self._body(proto.node, tuple(proto.input), tuple(proto.output), {}, inner, frozenset(), {})

    def _attribute(self, proto: AttributeProto, context: _Context, node: str, fixed: frozenset[str]) -> tuple[str, Any]:
        if proto.ref_attr_name:
            return proto.name, context.attributes.get(proto.ref_attr_name)
        kind = proto.type
        if kind == AttributeProto.GRAPH:
            inner = _Context(context.opsets, context.attributes, f"{node}/", context.within)
            return proto.name, self._graph(proto.g, inner, fixed)
        if kind == AttributeProto.TENSOR:
            return proto.name, self.weights.read(proto.t)
        if kind == AttributeProto.STRING:
            return proto.name, proto.s.decode("utf-8", "replace")
        if kind == AttributeProto.STRINGS:
            return proto.name, [item.decode("utf-8", "replace") for item in proto.strings]
        if kind in (AttributeProto.FLOAT, AttributeProto.INT):
            return proto.name, helper.get_attribute_value(proto)
        if kind in (AttributeProto.FLOATS, AttributeProto.INTS):
            return proto.name, list(helper.get_attribute_value(proto))
        raise UnsupportedOperatorError(
            f"node {node!r}: attribute {proto.name!r} is of a kind that fuser does not read "
            f"({AttributeProto.AttributeType.Name(kind).lower()})"
        )


@dataclass(frozen=True, slots=True)
class _Context:
    opsets: Mapping[str, int]
    attributes: Mapping[str, Any]
    prefix: str
    within: tuple[str, ...]


def _nothing(value: ValueInfoProto) -> Host:
    tensor = value.type.tensor_type
    dims = tuple(max(0, dim.dim_value) for dim in tensor.shape.dim)
    return np.broadcast_to(np.zeros((), dtype=NUMPY_TYPES.get(tensor.elem_type, np.float32)), (0, *dims))


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"node{'s' if len(names) > 1 else ''} {', '.join(names[:8])}{rest}"


def _has_graphs(node: NodeProto) -> bool:
    return any(attribute.type == AttributeProto.GRAPH for attribute in node.attribute)


def opset_versions(imports: Iterable[OperatorSetIdProto]) -> dict[str, int]:
    """The imported opsets by domain."""
    return {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in imports}


def _changed(name: str, version: int) -> bool:
    """Whether an old opset's operator meant something else than in the oldest opset that fuser reads."""
    if version >= OLDEST:
        return False
    try:
        return bool(defs.get_schema(name, OLDEST, "").since_version > version)
    except defs.SchemaError:
        return False


def shape_inputs(graph: Graph) -> tuple[str, ...]:
    """The inputs of a graph whose values may decide about shapes, branches or loops in it."""
    wanted = _wanted(graph, set())
    return tuple(name for name in graph.inputs if name in wanted and name not in graph.constants)


def _wanted(graph: Graph, wanted: set[str]) -> set[str]:
    """Names whose values must be known while tracing, so that those in `wanted` and all shapes are."""
    wanted = set(wanted)
    for step in reversed(graph.steps):
        inner = [step.body] if step.body is not None else []
        inner += [value for value in step.attributes.values() if isinstance(value, Graph)]
        needed = any(name in wanted for name in step.outputs if name)
        for body in inner:
            below = _wanted(body, set(body.outputs) if needed else set())
            wanted |= below  # what it takes from around it
            needed = needed or any(name in below for name in body.inputs)
        if step.operator is not None:
            wanted.update(name for place, name in enumerate(step.inputs) if place in step.operator.host)
            needed = needed and not step.operator.shapes
        if needed:
            wanted.update(step.inputs)
    return wanted
