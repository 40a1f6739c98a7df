"""Nodes in an order in which each comes after what it takes: ONNX wants it, ONNX Runtime's tools do not keep to it."""

from __future__ import annotations

from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter

from onnx import AttributeProto, GraphProto, NodeProto


def unsorted(graph: GraphProto) -> bool:
    """Whether a node takes what a later one gives."""
    later = {name for node in graph.node for name in node.output}
    for node in graph.node:
        if any(name in later for name in _taken(node)):
            return True
        later.difference_update(node.output)
    return False


def sort(graph: GraphProto) -> None:
    """Put the nodes of the outermost graph in order; a graph with a cycle stays as it is."""
    makers = {name: number for number, node in enumerate(graph.node) for name in node.output if name}
    sorter: TopologicalSorter[int] = TopologicalSorter()
    for number, node in enumerate(graph.node):
        sorter.add(number, *(makers[name] for name in _taken(node) if name in makers))
    try:
        order = list(sorter.static_order())
    except CycleError:
        return
    nodes = [graph.node[number] for number in order]
    copies = GraphProto(node=nodes)
    del graph.node[:]
    graph.node.extend(copies.node)


def _taken(node: NodeProto) -> Iterator[str]:
    """The names that a node takes, and those that are read inside of its graphs."""
    yield from node.input
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            for inner in attribute.g.node:
                yield from _taken(inner)
            yield from (value.name for value in attribute.g.output)
