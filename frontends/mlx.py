"""MLX programs become graphs, through the callback of `mx.export_function`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

from fuser.errors import TraceError
from fuser.frontends.marks import Mark, collect, mark
from fuser.frontends.modules import named_calls
from fuser.ir.graph import KERNEL, Graph, Value
from fuser.ir.types import TensorType

# tracing swaps functions of MLX and of modules for its own: one trace at a time
_lock = threading.RLock()


def trace(
    fn: Callable[[Sequence[mx.array]], Sequence[mx.array]], inputs: Sequence[mx.array], owner: Any = None
) -> Graph:
    """The graph of `fn(inputs)`, a function from arrays to arrays.

    `inputs` give shapes and dtypes; their values are not read. Arrays that `fn` captures become constants of the graph,
    shared. Pieces of the program that mark themselves (`fuser.frontends.marks`), and the modules that `owner` is or
    holds, give the nodes their scopes.

    Raises `TraceError` when MLX cannot export what `fn` does (it evaluates an array, or calls a primitive that the
    export does not know); errors of `fn` itself pass through.
    """
    records: list[dict[str, Any]] = []
    counts: list[int] = []
    # a call may update its arguments in place: it gets handles of its own (and `mx.array` adds no node)
    handles = [mx.array(array) for array in inputs]
    with _lock, collect() as marks, _compile_disabled(), _kernel_marked(), named_calls(owner):

        def program(*arrays: mx.array) -> list[mx.array]:
            results = list(fn(arrays))
            counts.append(len(results))
            return results + [array for each in marks for array in (*each.inputs, *each.outputs)]

        try:
            mx.export_function(records.append, program, *handles)
        except (RuntimeError, ValueError) as error:
            if counts or _not_traceable(error):
                raise TraceError(f"MLX cannot trace the program: {_first_line(error)}") from error
            raise
    return _build(records, counts[0], marks)


def _not_traceable(error: Exception) -> bool:
    return "eval" in str(error) and "transformation" in str(error)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


@contextmanager
def _compile_disabled() -> Iterator[None]:
    enabled = _compiles()
    mx.disable_compile()
    try:
        yield
    finally:
        if enabled:
            mx.enable_compile()


def _compiles() -> bool:
    # MLX does not tell whether compilation is on: a compiled function is run once for two calls when it is
    runs: list[None] = []

    def probe(x: mx.array) -> mx.array:
        runs.append(None)
        return x

    compiled = mx.compile(probe)
    blank = mx.zeros(())
    compiled(blank)
    compiled(blank)
    return len(runs) == 1


@contextmanager
def _kernel_marked() -> Iterator[None]:
    """On a CPU the kernel's call is traced as its fallback: mark it, so that the graph shows the call on any backend."""
    original = mx.fast.scaled_dot_product_attention

    def marked(q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: Any = None, **options: Any) -> mx.array:
        result: mx.array = original(q, k, v, scale=scale, mask=mask, **options)
        sinks = options.get("sinks")
        arrays = [q, k, v, *(extra for extra in (mask, sinks) if isinstance(extra, mx.array))]
        causal, forced = mask == "causal" if isinstance(mask, str) else False, bool(options.get("force_fused", False))
        mark(KERNEL, arrays, [result], (float(scale), causal, sinks is not None, False, forced))
        return result

    mx.fast.scaled_dot_product_attention = marked
    try:
        yield
    finally:
        mx.fast.scaled_dot_product_attention = original


def _build(records: Sequence[dict[str, Any]], count: int, marks: Sequence[Mark]) -> Graph:
    graph = Graph()
    values: dict[str, Value] = {}
    results: list[str] = []
    parsed: list[tuple[str, list[str], tuple[Any, ...], list[str], tuple[TensorType, ...]]] = []
    for record in records:
        match record["type"]:
            case "inputs":
                for name, shape, dtype in record["inputs"]:
                    values[name] = graph.add_input(TensorType(tuple(shape), dtype))
            case "constants":
                for name, array in record["constants"]:
                    values[name] = graph.add_constant(array)
            case "outputs":
                results = [name for name, _, _ in record["outputs"]]
            case "primitive":
                outputs = record["outputs"]
                parsed.append(
                    (
                        record["name"],
                        [name for name, _, _ in record["inputs"]],
                        _frozen(record["arguments"]),
                        [name for name, _, _ in outputs],
                        tuple(TensorType(tuple(shape), dtype) for _, shape, dtype in outputs),
                    )
                )
    pieces = _pieces(marks, results[count:])
    scopes = _scopes(parsed, pieces)
    for op, operands, arguments, names, types in parsed:
        made = graph.add(
            op, [values[name] for name in operands], *arguments, scope=scopes.get(names[0], ""), outputs=types
        )
        values.update((name, Value(made.node, index)) for index, name in enumerate(names))
    graph.outputs = [values[name] for name in results[:count]]
    for piece, inputs, outputs in pieces:
        if piece.primitive is not None:
            _restore(graph, piece, [values[name] for name in inputs], values[outputs[0]])
    graph.prune()
    return graph


def _restore(graph: Graph, piece: Mark, inputs: list[Value], inlined: Value) -> None:
    arguments = piece.primitive or ()
    if inlined.node.op != piece.name:
        call = graph.add(piece.name, inputs, *arguments, scope=inlined.node.scope, outputs=[inlined.type])
        graph.redirect(inlined, call)


def _pieces(marks: Sequence[Mark], names: Sequence[str]) -> list[tuple[Mark, list[str], list[str]]]:
    pieces, start = [], 0
    for each in marks:
        middle = start + len(each.inputs)
        end = middle + len(each.outputs)
        pieces.append((each, list(names[start:middle]), list(names[middle:end])))
        start = end
    return pieces


def _scopes(
    parsed: Sequence[tuple[str, list[str], tuple[Any, ...], list[str], tuple[TensorType, ...]]],
    pieces: Sequence[tuple[Mark, list[str], list[str]]],
) -> dict[str, str]:
    """The scope of each node, by its first output: the innermost piece between whose inputs and outputs it lies.

    Inner pieces end first, so each takes what is not taken yet on the way back from its outputs to its inputs.
    """
    made_from = {name: operands for _, operands, _, names, _ in parsed for name in names}
    first = {name: names[0] for _, _, _, names, _ in parsed for name in names}
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
