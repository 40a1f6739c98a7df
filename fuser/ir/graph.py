"""The graph of a program: MLX primitives over typed values, wired by a networkx multigraph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import networkx as nx

from fuser.ir.ops import OPS, rebuild
from fuser.ir.types import TensorType, type_of

INPUT = "Input"
CONSTANT = "Constant"
KERNEL = "ScaledDotProductAttention"
CHECKPOINT = "Checkpoint"


@dataclass(frozen=True, eq=False, slots=True)
class Node:
    """One operation; two nodes are equal only when they are the same node."""

    op: str
    arguments: tuple[Any, ...]
    outputs: tuple[TensorType, ...]
    scope: str = ""
    """The piece of the program that made it: a module's path or an ONNX node's name."""
    array: mx.array | None = None
    """What a constant holds; shared with the program, never copied."""
    source: str = ""
    """The line of the user's program that made it, where that is known: `file.py:12`."""

    def __repr__(self) -> str:
        return f"<{self.op} {', '.join(map(str, self.outputs))}>"


class Value(NamedTuple):
    """One output of a node."""

    node: Node
    index: int = 0  # type: ignore[assignment]  # a tuple's own `index` is of no use here

    @property
    def type(self) -> TensorType:
        """Shape and dtype."""
        return self.node.outputs[self.index]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape alone."""
        return self.node.outputs[self.index].shape

    @property
    def dtype(self) -> mx.Dtype:
        """The dtype alone."""
        return self.node.outputs[self.index].dtype


class Checkpoint(NamedTuple):
    """A call of a function that `mx.checkpoint` gave: a gradient computes again what makes `outputs` of its entries."""

    number: int
    """The first argument of the nodes by which arrays enter."""
    outputs: tuple[Value, ...]
    place: str
    """The line of the call."""


class Graph:
    """A program as a directed multigraph: an edge leads from producer to consumer, its key is the operand's place."""

    def __init__(self) -> None:
        self._wires: nx.MultiDiGraph = nx.MultiDiGraph()
        # what the wires say, kept as it is asked for
        self._operands: dict[Node, tuple[Value, ...]] = {}
        self._order: tuple[Node, ...] | None = None
        self._positions: dict[Node, int] | None = None
        self._labels: dict[Node, str] | None = None
        self.inputs: list[Node] = []
        self.state: frozenset[Node] = frozenset()
        """The inputs that are the program's own arrays (weights, buffers) rather than arguments."""
        self.outputs: list[Value] = []
        self.checkpoints: list[Checkpoint] = []
        """Inner ones first."""

    # -- reading ---------------------------------------------------------------------------------------------------

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes, each after the nodes that it reads, otherwise in the order in which they came."""
        if self._order is None:
            done: dict[Node, None] = {}
            for root in self._wires:
                stack = [root]
                while stack:
                    waiting = [operand.node for operand in self.operands(stack[-1]) if operand.node not in done]
                    if waiting:
                        stack.extend(reversed(waiting))
                    else:
                        done[stack.pop()] = None
            self._order = tuple(done)
        return self._order

    def position(self, node: Node) -> int:
        """The place of `node` in `nodes`."""
        if self._positions is None:
            self._positions = {each: place for place, each in enumerate(self.nodes)}
        return self._positions[node]

    def behind(self, node: Node, oldest: Node) -> set[Node]:
        """What `node` is computed from, itself included, as far back as `oldest` came."""
        first, found, stack = self.position(oldest), {node}, [node]
        while stack:
            parents = {operand.node for operand in self.operands(stack.pop())} - found
            parents = {parent for parent in parents if self.position(parent) >= first}
            found |= parents
            stack += parents
        return found

    def operands(self, node: Node) -> tuple[Value, ...]:
        """The values that `node` reads, in order."""
        found = self._operands.get(node)
        if found is None:
            found = self._operands[node] = self._read(node)
        return found

    def _read(self, node: Node) -> tuple[Value, ...]:
        wires = [
            (place, Value(producer, index))
            for producer, edges in self._wires.pred[node].items()
            for place, index in ((place, data["index"]) for place, data in edges.items())
        ]
        wires.sort(key=lambda wire: wire[0])
        return tuple(value for _, value in wires)

    def users(self, value: Value) -> list[tuple[Node, int]]:
        """Who reads `value`: nodes, and which operand of theirs it is."""
        return [
            (consumer, place)
            for consumer, edges in self._wires.succ[value.node].items()
            for place, data in edges.items()
            if data["index"] == value.index
        ]

    def __len__(self) -> int:
        return len(self._wires)

    def __contains__(self, node: object) -> bool:
        return node in self._wires

    # -- changing --------------------------------------------------------------------------------------------------

    def add_input(self, type: TensorType, name: str = "") -> Value:
        """A new input of the program, after those it has."""
        node = Node(INPUT, (), (type,), name)
        self._insert(node, ())
        self.inputs.append(node)
        return Value(node)

    def add_constant(self, array: mx.array, scope: str = "") -> Value:
        """A constant; `array` is shared, not copied."""
        node = Node(CONSTANT, (), (type_of(array),), scope, array)
        self._insert(node, ())
        return Value(node)

    def add(
        self,
        op: str,
        operands: Sequence[Value],
        *arguments: Any,
        scope: str = "",
        source: str = "",
        outputs: Iterable[TensorType] = (),
    ) -> Value:
        """A new node of the primitive `op`; its first output.

        The types of the outputs are inferred by building the operation on lazy zeros, unless a trace has told them.
        """
        types = tuple(outputs)
        if not types:
            blank = [mx.zeros(operand.shape, operand.dtype) for operand in operands]
            types = tuple(type_of(array) for array in rebuild(op, arguments, blank))
        node = Node(op, arguments, types, scope, None, source)
        self._insert(node, operands)
        return Value(node)

    def redirect(self, old: Value, new: Value) -> None:
        """Everyone who reads `old`, outputs of the program included, reads `new` instead."""
        if old.type != new.type:
            raise TypeError(f"cannot put {new.type} where {old.type} was")
        for consumer, place in self.users(old):
            self._wires.remove_edge(old.node, consumer, key=place)
            self._wires.add_edge(new.node, consumer, key=place, index=new.index)
            self._operands.pop(consumer, None)
        self.outputs = _swapped(self.outputs, old, new)
        self.checkpoints = [each._replace(outputs=tuple(_swapped(each.outputs, old, new))) for each in self.checkpoints]
        self._changed()

    def prune(self) -> None:
        """Drop what no output needs; inputs stay."""
        alive: set[Node] = set(self.inputs)
        stack = [output.node for output in self.outputs]
        while stack:
            node = stack.pop()
            if node not in alive:
                alive.add(node)
                stack.extend(operand.node for operand in self.operands(node))
        dead = [node for node in self._wires if node not in alive]
        self._wires.remove_nodes_from(dead)
        for node in dead:
            self._operands.pop(node, None)
        self._changed()

    def copy(self) -> Graph:
        """A graph of the same nodes that can be changed on its own."""
        twin = Graph()
        twin._wires = self._wires.copy()
        twin.state = self.state
        twin.inputs, twin.outputs = list(self.inputs), list(self.outputs)
        twin.checkpoints = list(self.checkpoints)
        return twin

    def part(self, nodes: Iterable[Node], outputs: Iterable[Value]) -> tuple[Graph, list[Value]]:
        """The `nodes`, in order, as a graph of their own that gives `outputs`; and which values are its inputs."""
        part, copies, reads = Graph(), dict[Value, Value](), list[Value]()
        for node in nodes:
            operands = self.operands(node)
            for operand in operands:
                if operand not in copies:
                    if operand.node.array is not None:
                        copies[operand] = part.add_constant(operand.node.array)
                    else:
                        copies[operand] = part.add_input(operand.type)
                        reads.append(operand)
            types = node.outputs
            first = part.add(node.op, [copies[each] for each in operands], *node.arguments, outputs=types)
            copies.update({Value(node, index): Value(first.node, index) for index in range(len(types))})
        part.outputs = [copies[value] for value in outputs]
        return part, reads

    def _insert(self, node: Node, operands: Sequence[Value]) -> None:
        self._wires.add_node(node)
        for place, operand in enumerate(operands):
            self._wires.add_edge(operand.node, node, key=place, index=operand.index)
        self._operands[node] = tuple(operands)
        self._changed()

    def _changed(self) -> None:
        self._order = self._positions = self._labels = None

    # -- showing ---------------------------------------------------------------------------------------------------

    def label(self, node: Node) -> str:
        """A readable name of `node`, unique in the graph: `layers.0.attn/Softmax_2`."""
        if self._labels is None:
            seen: Counter[str] = Counter()
            self._labels = {}
            for each in self.nodes:
                stem = f"{each.scope}/{each.op}" if each.scope else each.op
                self._labels[each] = f"{stem}_{seen[stem]}" if seen[stem] else stem
                seen[stem] += 1
        return self._labels.get(node, node.op)

    def __str__(self) -> str:
        names = {value: f"%{number}" for number, value in enumerate(self._values())}
        lines = []
        for node in self.nodes:
            left = ", ".join(f"{names[Value(node, i)]}: {type}" for i, type in enumerate(node.outputs))
            parts = [names[operand] for operand in self.operands(node)] + [_show(a) for a in node.arguments]
            if node.array is not None and node.array.size == 1:
                parts.append(str(node.array.item()))
            scope = f"  # {node.scope}" if node.scope else ""
            lines.append(f"{left} = {node.op}({', '.join(parts)}){scope}")
        lines.append(f"return {', '.join(names[output] for output in self.outputs)}")
        return "\n".join(lines)

    def _values(self) -> Iterator[Value]:
        return (Value(node, index) for node in self.nodes for index in range(len(node.outputs)))

    def lint(self) -> list[str]:
        """What is wrong with the graph, a sentence each, with the node; an empty list when all is well."""
        if not nx.is_directed_acyclic_graph(self._wires):
            return ["the graph has a cycle"]
        complaints = []
        for node in self.nodes:
            places = sorted(place for edges in self._wires.pred[node].values() for place in edges)
            if places != list(range(len(places))):
                complaints.append(f"{self.label(node)}: its operands are numbered {places}")
            for operand in self.operands(node):
                if operand.index >= len(operand.node.outputs):
                    complaints.append(f"{self.label(node)}: reads output {operand.index} of {operand.node}")
            if node.op not in OPS and node.op not in (INPUT, CONSTANT):
                complaints.append(f"{self.label(node)}: no such primitive")
            if (node.op == INPUT) != (node in self.inputs):
                complaints.append(f"{self.label(node)}: an input that the graph does not list")
        complaints += [f"output {i} is not in the graph" for i, v in enumerate(self.outputs) if v.node not in self]
        return complaints


def _swapped(values: Iterable[Value], old: Value, new: Value) -> list[Value]:
    return [new if value == old else value for value in values]


def _show(argument: Any) -> str:
    return str(argument).replace("mlx.core.", "")
