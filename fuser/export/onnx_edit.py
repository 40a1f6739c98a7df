"""Edits of an ONNX graph that leave everything else as it is: nodes put in, and what they leave dead taken out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from fuser.frontends.onnx_graph import node_name


class Editor:
    """The main graph of a model, indexed, and the changes that are to be made to it."""

    def __init__(self, model: ModelProto) -> None:
        self.model, self.graph = model, model.graph
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.producer = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}
        self.places: dict[str, int] = {}
        for i, node in enumerate(self.nodes):
            self.places.setdefault(node_name(node), i)
        self.initializers: dict[str, TensorProto] = {tensor.name: tensor for tensor in model.graph.initializer}
        self.given = {value.name for value in model.graph.input} | set(self.initializers)
        self.outputs = {value.name for value in model.graph.output}
        self.readers: dict[str, list[int]] = {}
        for i, node in enumerate(self.nodes):
            for name in reads(node):
                self.readers.setdefault(name, []).append(i)
        self._names = self.given | set(self.producer) | _inner_names(self.nodes)
        self._node_names = {node.name for node in self.nodes}
        self.before: dict[int, list[NodeProto]] = {}
        """New nodes by the place of the node that they stand before."""
        self.gone: set[int] = set()
        self.new_initializers: list[TensorProto] = []
        self.told: dict[str, ValueInfoProto] = {}
        """What is told of the shapes of values of which the model tells nothing."""
        self._constants: dict[tuple[str, bytes, tuple[int, ...]], str] = {}

    def available(self, name: str, place: int) -> bool:
        """Whether a value is there before the node at `place` runs."""
        return name in self.given or self.producer.get(name, place) < place

    def unique(self, stem: str) -> str:
        """A name for a value that nothing has yet."""
        return _unique(stem, self._names)

    def add(self, place: int, op: str, inputs: Sequence[str], stem: str, output: str = "", **attributes: Any) -> str:
        """A new node before the one at `place`; the name of its output."""
        domain = attributes.pop("domain", "")
        name = _unique(stem, self._node_names)
        output = output or self.unique(f"{name}_output")
        node = helper.make_node(op, list(inputs), [output], name, domain=domain, **attributes)
        self.before.setdefault(place, []).append(node)
        return output

    def tell(self, name: str, type_: int, shape: Sequence[int | None]) -> None:
        """Say what shape a value has, where the model does not."""
        if name not in self.given | self.outputs:
            self.told[name] = helper.make_tensor_value_info(name, type_, list(shape))

    def constant(self, array: NDArray[Any], type_: int, stem: str) -> str:
        """The name of an initializer with this value, made once."""
        tensor = numpy_helper.from_array(np.asarray(array), "")
        if tensor.data_type != type_:  # bfloat16, which NumPy does not have
            tensor = helper.make_tensor("", type_, np.shape(array), np.asarray(array).reshape(-1).tolist())
        key = (str(type_), tensor.SerializeToString(), tuple(tensor.dims))
        if key not in self._constants:
            tensor.name = self._constants[key] = self.unique(stem)
            self.new_initializers.append(tensor)
        return self._constants[key]

    def live(self, *, after: bool) -> set[int]:
        """The places of nodes that the outputs need, as the graph was or as it will be; new nodes are negative."""
        nodes: dict[int, NodeProto] = {}
        for i, node in enumerate(self.nodes):
            if not after or i not in self.gone:
                nodes[i] = node
        fresh = [node for added in self.before.values() for node in added] if after else []
        nodes.update((-1 - i, node) for i, node in enumerate(fresh))
        made = {name: i for i, node in nodes.items() for name in node.output if name}
        alive: set[int] = set()
        stack = [made[name] for name in self.outputs if name in made]
        while stack:
            place = stack.pop()
            if place not in alive:
                alive.add(place)
                stack += [made[name] for name in reads(nodes[place]) if name in made]
        return alive

    def apply(self) -> None:
        """Write the changes into the model: new nodes in place, without what was needed before and is no longer."""
        was, now = self.live(after=False), self.live(after=True)
        fresh = [node for added in self.before.values() for node in added]
        needed = {id(node) for i, node in enumerate(fresh) if -1 - i in now}
        kept: list[NodeProto] = []
        for i, node in enumerate(self.nodes):
            kept += [each for each in self.before.get(i, ()) if id(each) in needed]
            if i not in self.gone and (i in now or i not in was):
                kept.append(node)
        copies = []
        for node in kept:
            copy = NodeProto()
            copy.CopyFrom(node)
            copies.append(copy)
        used_before = {name for node in self.nodes for name in reads(node)} | self.outputs
        used = {name for node in copies for name in reads(node)} | self.outputs
        made = {name for node in copies for name in node.output} | self.given
        initializers = [t for t in self.graph.initializer if t.name in used or t.name not in used_before]
        initializers += [tensor for tensor in self.new_initializers if tensor.name in used]
        infos = {info.name: info for info in self.graph.value_info if info.name in made}
        _keep(self.graph.value_info, [*infos.values(), *(self.told[n] for n in self.told if n in made - {*infos})])
        if len(initializers) != len(self.graph.initializer) or self.new_initializers:
            _keep(self.graph.initializer, initializers)
        del self.graph.node[:]
        self.graph.node.extend(copies)


def _keep(field: Any, items: Iterable[Any]) -> None:
    copies = []
    for item in items:
        copy = type(item)()
        copy.CopyFrom(item)
        copies.append(copy)
    del field[:]
    field.extend(copies)


def reads(node: NodeProto) -> list[str]:
    """The names that a node reads, those that its graphs read from around them included."""
    names = [name for name in node.input if name]
    for graph in graphs(node):
        names += [name for inner in graph.node for name in reads(inner)]
        names += [value.name for value in graph.output]
    return names


def graphs(node: NodeProto) -> list[GraphProto]:
    """The graphs among a node's attributes."""
    found = [attribute.g for attribute in node.attribute if attribute.type == AttributeProto.GRAPH]
    return found + [graph for attribute in node.attribute for graph in attribute.graphs]


def every(nodes: Iterable[NodeProto]) -> Iterable[NodeProto]:
    """All nodes, those of inner graphs included."""
    for node in nodes:
        yield node
        for graph in graphs(node):
            yield from every(graph.node)


def _inner_names(nodes: Iterable[NodeProto]) -> set[str]:
    found: set[str] = set()
    for node in every(nodes):
        for graph in graphs(node):
            found.update(value.name for value in (*graph.input, *graph.output))
            found.update(tensor.name for tensor in graph.initializer)
            found.update(name for inner in graph.node for name in (*inner.input, *inner.output))
    return found


def _unique(stem: str, names: set[str]) -> str:
    name, number = stem, 1
    while name in names:
        number += 1
        name = f"{stem}_{number}"
    names.add(name)
    return name


def attention_name(softmax: str) -> str:
    """What an attention is called, from the name of its softmax."""
    name = softmax.rpartition("/")[2]
    stem = re.sub("softmax", "attention", re.sub("Softmax", "Attention", name))
    stem = stem if stem != name else f"{stem}_attention"
    return softmax[: len(softmax) - len(name)] + stem
