"""What MLX's export reports of a program, as a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from fuser.errors import TraceError
from fuser.frontends.marks import Mark
from fuser.frontends.stand_ins import Token, piece_of
from fuser.ir.graph import CHECKPOINT, Checkpoint, Graph, Value
from fuser.ir.ops import ENTRY, OPAQUE, Piece
from fuser.ir.types import TensorType


class Program(NamedTuple):
    """The records of an export; it puts out results, inputs, random state before and after, tokens, marks."""

    records: Sequence[dict[str, Any]]
    results: int
    inputs: int
    tokens: Sequence[Token]
    """The primitives for which a choice under a token stands."""
    pieces: Sequence[Piece]
    """The calls for which kernels stand."""
    marks: Sequence[Mark]
    shapeless: bool = False
    """Whether the graph says to which other arrays one is broadcast, rather than to which shape."""


class Record(NamedTuple):
    """A primitive of the export, its operands and outputs by name."""

    op: str
    operands: list[str]
    arguments: tuple[Any, ...]
    names: list[str]
    types: tuple[TensorType, ...]


Marked = tuple[Mark, list[str], list[str]]
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
    pieces = _pieces(program.marks, rest[len(program.tokens) :])
    draws = before != after
    if draws:
        values[before] = graph.add_input(TensorType((2,), mx.uint32))
    scopes = _scopes(parsed, pieces)
    broadcast: dict[str, str] = {}
    for each in parsed:
        op, operands, arguments = each.op, each.operands, each.arguments
        if op in ("Broadcast", "BroadcastAxes"):
            # what an array is broadcast against is told where the export is one for any shapes
            broadcast[each.names[0]] = broadcast.get(operands[0], operands[0])
            op, arguments = "Broadcast", (each.types[0].shape, *(arguments if op == "BroadcastAxes" else ()))
            if not program.shapeless:
                operands, arguments = operands[:1], arguments[:1]
        token = next((tokens[name] for name in operands if name in tokens), None)
        if op in _SPREADS:
            if operands[0] in tokens:
                tokens[each.names[0]] = tokens[operands[0]]
        elif token is not None and op == "Select" and len({broadcast.get(name, name) for name in operands[1:]}) == 1:
            if token.op == CHECKPOINT:
                values[each.names[0]] = values[operands[1]]
                continue
            op, operands, arguments = token.op, operands[1:2], token.arguments
        elif token is not None and token.op in (CHECKPOINT, ENTRY):
            raise TraceError(f"mx.checkpoint ({token.arguments[1]}) is inside of a gradient that is traced with it")
        elif op == "CustomKernel" and (number := piece_of(arguments[0])) is not None:
            op, arguments = OPAQUE, (program.pieces[number],)
        scope, source = scopes.get(each.names[0], ("", ""))
        made = graph.add(
            op, [values[name] for name in operands], *arguments, scope=scope, source=source, outputs=each.types
        )
        values.update((name, Value(made.node, index)) for index, name in enumerate(each.names))
    mutated = [number for number, (now, was) in enumerate(zip(held, inputs, strict=True)) if now != was]
    ends = [*results, *(held[number] for number in mutated), *([after] if draws else [])]
    graph.outputs = [values[name] for name in ends]
    for piece, operands, made_names in pieces:
        if piece.name == CHECKPOINT:
            number, place = piece.primitive or (0, "")
            graph.checkpoints.append(Checkpoint(number, tuple(values[name] for name in made_names), place))
        elif piece.primitive is not None:
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


def _restore(graph: Graph, piece: Mark, inputs: list[Value], inlined: Value) -> None:
    arguments = piece.primitive or ()
    if inlined.node.op != piece.name:
        scope, source = inlined.node.scope, piece.source
        call = graph.add(piece.name, inputs, *arguments, scope=scope, source=source, outputs=[inlined.type])
        graph.redirect(inlined, call)


def _pieces(marks: Sequence[Mark], names: Sequence[str]) -> list[Marked]:
    pieces, start = [], 0
    for each in marks:
        middle = start + len(each.inputs)
        end = middle + len(each.outputs)
        pieces.append((each, list(names[start:middle]), list(names[middle:end])))
        start = end
    return pieces


def _scopes(parsed: Sequence[Record], pieces: Sequence[Marked]) -> dict[str, tuple[str, str]]:
    """Scope and source line of each node, by its first output: those of the innermost piece that it lies in.

    Inner pieces end first, so each takes what is not taken yet on the way back from outputs to inputs.
    """
    made_from = {name: each.operands for each in parsed for name in each.names}
    first = {name: each.names[0] for each in parsed for name in each.names}
    lines = {first[name]: piece.source for piece, _, made in pieces for name in made if piece.source and name in first}
    scopes: dict[str, tuple[str, str]] = {}
    reached: dict[int, set[str]] = {}
    for piece, inputs, outputs in pieces:
        if piece.primitive is not None or not piece.name:
            continue
        seen = set[str]() if piece.within is None else reached.setdefault(id(piece.within), set())
        seen.update(inputs)
        stack = list(outputs)
        while stack:
            name = stack.pop()
            if name in made_from and name not in seen:
                seen.add(name)
                scopes.setdefault(first[name], (piece.name, lines.get(first[name], piece.source)))
                stack.extend(made_from[name])
    return {name: ("", line) for name, line in lines.items()} | scopes


def _frozen(argument: Any) -> Any:
    return tuple(map(_frozen, argument)) if isinstance(argument, list | tuple) else argument
