"""Every softmax of a graph, as the primitive or written out: the anchors from which attention is looked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fuser.ir.graph import Node, Value
from fuser.patterns.cursor import IDENTITIES, Program, is_float

MAX, SUM = 5, 2


@dataclass(frozen=True)
class Softmax:
    """A softmax: `weights = softmax(scores)` along `axes`."""

    node: Node
    scores: Value
    weights: Value
    axes: tuple[int, ...]


def softmaxes(program: Program) -> Iterator[Softmax]:
    """All softmaxes of the program, in order."""
    for node in program.graph.nodes:
        if node.op == "Softmax":
            yield Softmax(node, program.graph.operands(node)[0], Value(node), (len(node.outputs[0].shape) - 1,))
        elif node.op in ("Divide", "Multiply", "Exp"):
            found = written_out(program, Value(node))
            if found is not None:
                yield found


def written_out(program: Program, value: Value) -> Softmax | None:
    """`exp(x - max(x)) / sum(exp(x - max(x)))`, with or without the maximum, or `exp(x - logsumexp(x))`."""
    operands = program.operands(value)
    if value.node.op == "Exp":
        return _from_logarithm(program, value)
    for exponential, other in (operands, operands[::-1]) if value.node.op == "Multiply" else (operands,):
        total = other if value.node.op == "Divide" else _inverted(program, stripped(program, other))
        total = stripped(program, total) if total is not None else None
        power = stripped(program, exponential)
        if total is None or power.node.op != "Exp" or not _is_reduction(total, SUM):
            continue
        if stripped(program, program.operands(total)[0]) != power:
            continue
        return Softmax(value.node, _unshifted(program, power, total), value, tuple(total.node.arguments[1]))
    return None


def _from_logarithm(program: Program, value: Value) -> Softmax | None:
    """`exp(x - logsumexp(x))`, and `exp(log_softmax(x))`, which is the same."""
    difference = stripped(program, program.operands(value)[0])
    if difference.node.op != "Subtract":
        return None
    scores, shift = program.operands(difference)
    total = stripped(program, shift)
    if total.node.op == "LogSumExp" and program.operands(total)[0] == scores:
        return Softmax(value.node, scores, value, (len(scores.shape) - 1,))
    return None


def _inverted(program: Program, value: Value) -> Value | None:
    """`x`, when `value` is `1 / x`."""
    operands = program.operands(value)
    if value.node.op == "Divide" and program.known.number(operands[0]) == 1:
        return operands[1]
    if value.node.op == "Power" and program.known.number(operands[1]) == -1:
        return operands[0]
    return None


def _unshifted(program: Program, power: Value, total: Value) -> Value:
    """What is exponentiated, without the maximum along the same axes that is subtracted from it first."""
    scores = program.operands(power)[0]
    if scores.node.op == "Subtract":
        left, right = program.operands(scores)
        largest = stripped(program, right)
        if _is_reduction(largest, MAX) and largest.node.arguments[1] == total.node.arguments[1]:
            inner = program.operands(largest)[0]
            if stripped(program, inner) == stripped(program, left):
                return left
    return scores


def _is_reduction(value: Value, kind: int) -> bool:
    return value.node.op == "Reduce" and value.node.arguments[0] == kind


def stripped(program: Program, value: Value) -> Value:
    """`value` without the float casts, broadcasts and identities around it that change no number."""
    while True:
        op = value.node.op
        source = program.operands(value)[0] if op in IDENTITIES or op in ("AsType", "Broadcast") else None
        if op in ("ExpandDims", "Squeeze"):
            source = program.operands(value)[0]
        if source is None or (op == "AsType" and not is_float(source)):
            return value
        value = source
