"""MLX programs become graphs, through the callback of `mx.export_function`."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from fuser.checkpoints import check
from fuser.errors import TraceError
from fuser.frontends.lines import is_read, marked_lines, user_line
from fuser.frontends.marks import Mark, collect
from fuser.frontends.modules import named_calls
from fuser.frontends.records import Program, build
from fuser.frontends.stand_ins import StandIns, standing_in
from fuser.frontends.state import random_state, readable
from fuser.ir.graph import CHECKPOINT, Graph
from fuser.ir.ops import NOT_EXPORTED

Function = Callable[[Sequence[mx.array]], Sequence[mx.array]]


@dataclass
class Trace:
    """A program as a graph whose outputs are its results, and then what `mutated` and `draws` say."""

    graph: Graph
    mutated: list[int] = field(default_factory=list)
    """The inputs that the program updates in place; their new values are outputs after the results."""
    draws: bool = False
    """Whether it draws from the global random state, which is the last input then, and the last output."""


def trace(
    fn: Function,
    inputs: Sequence[mx.array],
    names: dict[int, str] | None = None,
    modules: Sequence[nn.Module] = (),
    *,
    shapeless: bool = False,
) -> Trace:
    """The graph of `fn(inputs)`, a function from arrays to arrays.

    `inputs` give shapes and dtypes; their values are not read. Arrays that `fn` captures become constants of the
    graph, shared. Pieces of the program that mark themselves (`fuser.frontends.marks`), calls of the `modules`
    under the `names` that they have by id, and lines of plain functions give the nodes their scopes.

    With `shapeless`, arrays that are broadcast to others have those as further operands, so that the graph does not
    say to which shape.

    Raises `TraceError` when MLX cannot export what `fn` does (it evaluates an array, or calls a primitive that
    the export does not know); errors of `fn` itself pass through.
    """
    if shapeless and not _traces_any_shape():
        raise TraceError("shapeless: inside of a gradient or mx.vmap MLX traces for fixed sizes; call it outside first")
    key = random_state.get()
    if not readable(key) or not random_state.put(key):
        raise TraceError("the global random state is itself being traced by MLX")
    key = random_state.get()  # the same numbers, but another array where MLX's compilation is switched off
    return _Tracer(fn, inputs, key, names or {}, list(modules), shapeless).run()


class ValueRead(TraceError):
    """The program reads the value of an array, which has none while it is traced."""


class _Unmarked(Exception):
    """The trace failed, and may do without marks."""


class _Unexported(TraceError):
    """The trace failed at a primitive that MLX does not export."""


class _Tracer:
    def __init__(
        self,
        fn: Function,
        inputs: Sequence[mx.array],
        key: mx.array,
        names: dict[int, str],
        modules: list[nn.Module],
        shapeless: bool,
    ) -> None:
        self._fn, self._key, self._names, self._modules = fn, key, names, modules
        self._shapeless = shapeless
        # only shapes and dtypes count: an argument may be updated in place, or be traced by somebody else
        self._blanks = [mx.zeros(array.shape, array.dtype) for array in inputs]

    def run(self) -> Trace:
        """A trace of the program as it is, or else of one in which something stands for what MLX cannot export."""
        first: Trace | None = None
        try:
            first = self._blaming(StandIns(carry=False))
            if not any(node.op == "CustomKernel" for node in first.graph.nodes):
                return first
        except _Unexported:
            pass
        try:
            return self._blaming(StandIns(carry=True))
        except TraceError:
            if first is None:
                raise
        return first

    def _blaming(self, ours: StandIns) -> Trace:
        try:
            return self._named(ours)
        except (RuntimeError, ValueError) as error:
            # MLX's own words are about what stands for a call, of which the program knows nothing
            if not ours.pieces or "CustomKernel" not in str(error):
                raise
            calls = " and ".join(dict.fromkeys(map(str, ours.pieces)))
            raise TraceError(f"MLX cannot export {calls} inside of a gradient or mx.vmap") from error

    def _named(self, ours: StandIns) -> Trace:
        # an array inside of a transformation that is marked cannot come out: without lines, then, or without names
        for fewest in (0, 1):
            try:
                return self._attempt(ours, fewest)
            except _Unmarked:
                ours = StandIns(carry=ours.carry)
        return self._attempt(ours, sys.maxsize)

    def _attempt(self, ours: StandIns, fewest: int) -> Trace:
        random_state.put(self._key)
        try:
            return self._traced(ours, fewest)
        finally:
            random_state.put(self._key)

    def _traced(self, ours: StandIns, fewest: int) -> Trace:
        """A trace with the marks whose names have that many letters."""
        records: list[dict[str, Any]] = []
        counts: list[int] = []
        before = random_state.get()  # not the array that was put, where MLX's compilation is switched off
        with (
            collect() as marks,
            _compile_disabled(),
            standing_in(ours),
            named_calls(self._names, self._modules) as depth,
        ):

            def program(*arrays: mx.array) -> list[mx.array]:
                try:
                    with marked_lines(depth) as watch:
                        results = list(self._fn(arrays))
                except (RuntimeError, ValueError) as error:
                    if is_read(error):
                        where = user_line(error.__traceback__)
                        raise ValueRead(_read_message(where)) from error
                    raise
                if watch.failure is not None:
                    raise ValueRead(_read_message(watch.failure[0]))
                counts.append(len(results))
                marks[:] = [each for each in marks if len(each.name) >= fewest]
                extra = [array for each in marks for array in (*each.inputs, *each.outputs)]
                random = [before, random_state.get()]
                return [*results, *arrays, *random, *ours.tokens.values(), *extra]

            try:
                mx.export_function(records.append, program, *self._blanks, shapeless=self._shapeless)
            except (RuntimeError, ValueError) as error:
                if counts and marks and "Unable to get state" not in str(error):
                    raise _Unmarked from error
                if counts:
                    raise _export_error(error) from error
                raise
        tokens, pieces = list(ours.tokens), ours.pieces
        described = Program(records, counts[0], len(self._blanks), tokens, pieces, marks, self._shapeless)
        try:
            graph, mutated, draws = build(described)
        except KeyError:
            if marks:
                raise _Unmarked from None
            raise TraceError("the program returns an array that belongs to a transformation inside of it") from None
        if not marks and any(token.op == CHECKPOINT for token in ours.tokens):
            raise TraceError("mx.checkpoint is inside of a transformation that is traced with it")
        check(graph)
        return Trace(graph, mutated, draws)


def _read_message(where: str | None) -> str:
    return (
        f"MLX cannot trace the program: {where or 'a line of it'} reads the value of an array (if, float, item, "
        "eval, print, numpy), which has none while it is traced; use mx.where and arrays, or keep that line outside "
        "of the optimized function"
    )


def _export_error(error: Exception) -> TraceError:
    line = str(error).strip().split("\n")[0]
    found = re.search(r"Unable to get state for primitive (\w+)", line)
    if found is None:
        return TraceError(f"MLX cannot trace the program: {line}")
    calls = NOT_EXPORTED.get(found[1])
    return _Unexported(f"MLX cannot export the primitive {found[1]}" + (f" ({calls})" if calls else ""))


@contextmanager
def _compile_disabled() -> Iterator[None]:
    enabled = _compiles()
    mx.disable_compile()
    try:
        yield
    finally:
        if enabled:
            mx.enable_compile()


def _traces_any_shape() -> bool:
    # MLX looks at the outermost transformation that is on
    records: list[dict[str, Any]] = []
    mx.export_function(records.append, lambda x: x + 1, mx.zeros((2,)), shapeless=True)
    return any(record.get("name") == "Broadcast" and len(record["inputs"]) > 1 for record in records)


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


__all__ = ["Mark", "Trace", "ValueRead", "trace"]
