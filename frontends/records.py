"""What MLX's export reports of a program, as a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from fuser.frontends.marks import Mark
from fuser.ir.graph import Graph, Value
from fuser.ir.types import TensorType


class Program(NamedTuple):
    """The records of an export; it puts out results, inputs, random state before and after, tokens, marks."""

    records: Sequence[dict[str, Any]]
    results: int
    inputs: int
    tokens: Sequence[str]
    """The primitives for which a choice under a token stands."""
    marks: Sequence[Mark]


class Record(NamedTuple):
    """A primitive of the export, its operands and outputs by name."""

    op: str
    operands: list[str]
    arguments: tuple[Any, ...]
    names: list[str]
    types: tuple[TensorType, ...]


Piece = tuple[Mark, list[str], list[str]]
_SPREADS = frozenset({"Broadcast", "Reshape", "ExpandDims", "Squeeze", "Transpose", "Flatten", "Unflatten"})


def build(program: Program) -> tuple[Graph, list[int], bool]:
    """The graph, the inputs that are updated in place, and whether the random state is an input of it."""
    graph = Graph()
    values: dict[str, Value] = {}
    inputs: list[str] = []
    outputs: list[str] = []
    parsed: list[Record] = []
    for record in program.records:
        match record["type"]:
            case "inputs":
                for name, shape, dtype in record["inputs"]:
                    inputs.append(name)
                    values[name] = graph.add_input(TensorType(tuple(shape), dtype))
            case "constants":
                for name, array in record["constants"]:
                    values[name] = graph.add_constant(array)
            case "outputs":
                outputs = [name for name, _, _ in record["outputs"]]
            case "primitive":
                parsed.append(_record(record))
    results, rest = outputs[: program.results], outputs[program.results :]
    held, (before, after, *rest) = rest[: program.inputs], rest[program.inputs :]
    tokens = dict(zip(rest, program.tokens, strict=False))
    pieces = _pieces(program.marks, rest[len(tokens) :])
    draws = before != after
    if draws:
        values[before] = graph.add_input(TensorType((2,), mx.uint32))
    scopes = _scopes(parsed, pieces)
    made_from = {name: each for each in parsed for name in each.names}
    for each in parsed:
        op, operands, arguments = each.op, each.operands, each.arguments
        if op == "Select" and operands[1] == operands[2] and tokens:
            token = _token(operands[0], made_from, tokens)
            op, operands = (token, operands[1:2]) if token is not None else (op, operands)
        scope = scopes.get(each.names[0], "")
        made = graph.add(op, [values[name] for name in operands], *arguments, scope=scope, outputs=each.types)
        values.update((name, Value(made.node, index)) for index, name in enumerate(each.names))
    mutated = [number for number, (now, was) in enumerate(zip(held, inputs, strict=True)) if now != was]
    ends = [*results, *(held[number] for number in mutated), *([after] if draws else [])]
    graph.outputs = [values[name] for name in ends]
    for piece, operands, made_names in pieces:
        if piece.primitive is not None:
            _restore(graph, piece, [values[name] for name in operands], values[made_names[0]])
    graph.prune()
    return graph, mutated, draws


def _record(record: dict[str, Any]) -> Record:
    outputs = record["outputs"]
    return Record(
        record["name"],
        [name for name, _, _ in record["inputs"]],
        _frozen(record["arguments"]),
        [name for name, _, _ in outputs],
        tuple(TensorType(tuple(shape), dtype) for _, shape, dtype in outputs),
    )


def _token(name: str, made_from: dict[str, Record], tokens: dict[str, str]) -> str | None:
    """The primitive whose token is spread to the condition `name`."""
    while name not in tokens:
        maker = made_from.get(name)
        if maker is None or maker.op not in _SPREADS:
            return None
        name = maker.operands[0]
    return tokens[name]


def _restore(graph: Graph, piece: Mark, inputs: list[Value], inlined: Value) -> None:
    arguments = piece.primitive or ()
    if inlined.node.op != piece.name:
        call = graph.add(piece.name, inputs, *arguments, scope=inlined.node.scope, outputs=[inlined.type])
        graph.redirect(inlined, call)


def _pieces(marks: Sequence[Mark], names: Sequence[str]) -> list[Piece]:
    pieces, start = [], 0
    for each in marks:
        middle = start + len(each.inputs)
        end = middle + len(each.outputs)
        pieces.append((each, list(names[start:middle]), list(names[middle:end])))
        start = end
    return pieces


def _scopes(parsed: Sequence[Record], pieces: Sequence[Piece]) -> dict[str, str]:
    """The scope of each node, by its first output: the innermost piece that it lies in.

    Inner pieces end first, so each takes what is not taken yet on the way back from outputs to inputs.
    """
    made_from = {name: each.operands for each in parsed for name in each.names}
    first = {name: each.names[0] for each in parsed for name in each.names}
    scopes: dict[str, str] = {}
    for piece, inputs, outputs in pieces:
        if piece.primitive is not None:
            continue
        seen = set(inputs)
        stack = list(outputs)
        while stack:
            name = stack.pop()
            if name in made_from and name not in seen:
                seen.add(name)
                scopes.setdefault(first[name], piece.name)
                stack.extend(made_from[name])
    return scopes


def _frozen(argument: Any) -> Any:
    return tuple(map(_frozen, argument)) if isinstance(argument, list | tuple) else argument
