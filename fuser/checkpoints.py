"""Calls of functions that `mx.checkpoint` gave: seen through when a program is traced, one node again when it runs.

So their attentions are found, and a gradient computes what lies inside again, as the program wants it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from fuser.errors import TraceError
from fuser.execute import runner
from fuser.ir.graph import Checkpoint, Graph, Node, Value
from fuser.ir.ops import ENTRY, OPAQUE, Piece


def check(graph: Graph) -> None:
    """Raises `TraceError` where something inside of a checkpoint is read outside: it cannot be computed again."""
    for each in graph.checkpoints:
        inside = _inside(graph, each)
        for value in _made(graph, inside):
            if value not in each.outputs and _leaves(graph, value, inside):
                raise TraceError(f"mx.checkpoint ({each.place}): what is computed inside of it is read outside of it")


def collapse(graph: Graph) -> None:
    """Make each checkpoint one node of `graph`, which calls `mx.checkpoint`."""
    while graph.checkpoints:
        each = graph.checkpoints.pop(0)
        inside = _inside(graph, each)
        given = [value for value in _made(graph, inside) if _leaves(graph, value, inside)]
        if not given:
            continue
        body, reads = graph.part(inside, given)
        entered = [_enters(value.node, each) for value in reads]
        # MLX gives no gradient to what the function of a checkpoint reads besides its arguments
        piece = Piece("mx.checkpoint", each.place, _again(body, [not enters for enters in entered]))
        operands = [
            graph.operands(value.node)[0] if enters else value for value, enters in zip(reads, entered, strict=True)
        ]
        call = graph.add(OPAQUE, operands, piece, outputs=[value.type for value in given])
        for number, value in enumerate(given):
            graph.redirect(value, Value(call.node, number))
        graph.prune()


def _enters(node: Node, each: Checkpoint) -> bool:
    return node.op == ENTRY and node.arguments[0] == each.number


def _inside(graph: Graph, each: Checkpoint) -> dict[Node, None]:
    """The nodes on the ways from what enters a checkpoint to its outputs, in order."""
    after: set[Node] = set()
    order = graph.nodes
    reached: set[Node] = set()
    for node in order:
        if any(operand.node in reached or _enters(operand.node, each) for operand in graph.operands(node)):
            reached.add(node)
    stack = [value.node for value in each.outputs]
    while stack:
        node = stack.pop()
        if node in reached and node not in after:
            after.add(node)
            stack.extend(operand.node for operand in graph.operands(node))
    return {node: None for node in order if node in after}


def _made(graph: Graph, nodes: dict[Node, None]) -> list[Value]:
    return [Value(node, index) for node in nodes for index in range(len(node.outputs))]


def _leaves(graph: Graph, value: Value, inside: dict[Node, None]) -> bool:
    return value in graph.outputs or any(user not in inside for user, _ in graph.users(value))


def _again(body: Graph, fixed: Sequence[bool]) -> Callable[[Sequence[mx.array]], list[mx.array]]:
    run = runner(body)

    def inner(*arrays: mx.array) -> list[mx.array]:
        return run([mx.stop_gradient(each) if still else each for each, still in zip(arrays, fixed, strict=True)])

    def again(arrays: Sequence[mx.array]) -> list[mx.array]:
        checkpoint: Any = mx.checkpoint
        made: list[mx.array] = checkpoint(inner)(*arrays)
        return made

    return again
