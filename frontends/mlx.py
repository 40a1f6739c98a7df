"""MLX programs become graphs, through the callback of `mx.export_function`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from fuser.errors import TraceError
from fuser.frontends.lines import is_read, marked_lines, user_line
from fuser.frontends.marks import Mark, collect, mark
from fuser.frontends.modules import named_calls
from fuser.frontends.records import Program, build
from fuser.frontends.state import random_state, readable
from fuser.ir.graph import KERNEL, Graph
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
) -> Trace:
    """The graph of `fn(inputs)`, a function from arrays to arrays.

    `inputs` give shapes and dtypes; their values are not read. Arrays that `fn` captures become constants of the
    graph, shared. Pieces of the program that mark themselves (`fuser.frontends.marks`), calls of the `modules`
    under the `names` that they have by id, and lines of plain functions give the nodes their scopes.

    Raises `TraceError` when MLX cannot export what `fn` does (it evaluates an array, or calls a primitive that
    the export does not know); errors of `fn` itself pass through.
    """
    key = random_state.get()
    if not readable(key) or not random_state.put(key):
        raise TraceError("the global random state is itself being traced by MLX")
    key = random_state.get()  # the same numbers, but another array where MLX's compilation is switched off
    try:
        program = _Tracer(fn, inputs, key, names or {}, list(modules))
        try:
            result = program.run(marked=True)
        except _Unmarked:
            # an array inside of a transformation that is marked cannot come out: without names, then
            random_state.put(key)
            result = program.run(marked=False)
    finally:
        random_state.put(key)
    return result


class _Unmarked(Exception):
    """The trace failed, and may do without marks."""


class _Tracer:
    def __init__(
        self,
        fn: Function,
        inputs: Sequence[mx.array],
        key: mx.array,
        names: dict[int, str],
        modules: list[nn.Module],
    ) -> None:
        self._fn, self._key, self._names, self._modules = fn, key, names, modules
        # only shapes and dtypes count: an argument may be updated in place, or be traced by somebody else
        self._blanks = [mx.zeros(array.shape, array.dtype) for array in inputs]

    def run(self, *, marked: bool) -> Trace:
        records: list[dict[str, Any]] = []
        counts: list[int] = []
        ours = _Ours()
        with (
            collect() as marks,
            _compile_disabled(),
            _patched(ours),
            named_calls(self._names, self._modules) as depth,
        ):

            def program(*arrays: mx.array) -> list[mx.array]:
                try:
                    with marked_lines(depth) as watch:
                        results = list(self._fn(arrays))
                except (RuntimeError, ValueError) as error:
                    if is_read(error):
                        where = user_line(error.__traceback__)
                        raise TraceError(_read_message(where)) from error
                    raise
                if watch.failure is not None:
                    raise TraceError(_read_message(watch.failure[0]))
                counts.append(len(results))
                extra = [array for each in marks for array in (*each.inputs, *each.outputs)] if marked else []
                random = [self._key, random_state.get()]
                return [*results, *arrays, *random, *ours.tokens.values(), *extra]

            try:
                mx.export_function(records.append, program, *self._blanks)
            except (RuntimeError, ValueError) as error:
                if counts and marked and marks and "Unable to get state" not in str(error):
                    raise _Unmarked from error
                if counts:
                    raise TraceError(_export_message(error)) from error
                raise
        described = Program(records, counts[0], len(self._blanks), list(ours.tokens), marks if marked else [])
        try:
            graph, mutated, draws = build(described)
        except KeyError:
            if marked and marks:
                raise _Unmarked from None
            raise TraceError("the program returns an array that belongs to a transformation inside of it") from None
        return Trace(graph, mutated, draws)


def _read_message(where: str | None) -> str:
    return (
        f"MLX cannot trace the program: {where or 'a line of it'} reads the value of an array (if, float, item, "
        "eval, print, numpy), which has none while it is traced; use mx.where and arrays, or keep that line outside "
        "of the optimized function"
    )


def _export_message(error: Exception) -> str:
    line = str(error).strip().split("\n")[0]
    found = re.search(r"Unable to get state for primitive (\w+)", line)
    if found is None:
        return f"MLX cannot trace the program: {line}"
    calls = NOT_EXPORTED.get(found[1])
    return f"MLX cannot export the primitive {found[1]}" + (f" ({calls})" if calls else "")


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


class _Ours:
    """Primitives that a trace leaves out or cannot hold, told by a choice between an array and itself.

    MLX exports such a choice from any place, inside of `mx.vmap` and `mx.grad` too; its condition is a token, one
    for each primitive, which is how it is known in the graph.
    """

    def __init__(self) -> None:
        self.tokens: dict[str, mx.array] = {}

    def choice(self, primitive: str, array: mx.array) -> mx.array:
        if primitive not in self.tokens:
            self.tokens[primitive] = mx.array(True)
            mx.eval(self.tokens[primitive])
        return mx.where(self.tokens[primitive], array, array)


@contextmanager
def _patched(ours: _Ours) -> Iterator[None]:
    kernel, stop, contiguous = mx.fast.scaled_dot_product_attention, mx.stop_gradient, mx.contiguous

    def marked(q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: Any = None, **options: Any) -> mx.array:
        # on a CPU the kernel's call is traced as its fallback: the mark shows it on any backend
        result: mx.array = kernel(q, k, v, scale=scale, mask=mask, **options)
        sinks = options.get("sinks")
        arrays = [q, k, v, *(extra for extra in (mask, sinks) if isinstance(extra, mx.array))]
        causal, forced = (
            mask == "causal" if isinstance(mask, str) else False,
            bool(options.get("force_fused", False)),
        )
        mark(KERNEL, arrays, [result], (float(scale), causal, sinks is not None, False, forced))
        return result

    def stopped(a: mx.array, /, **options: Any) -> mx.array:
        # a trace leaves it out, and gradients of the graph would flow
        return ours.choice("StopGradient", stop(a, **options))

    def laid_out(a: mx.array, /, *arguments: Any, **options: Any) -> mx.array:
        if arguments or options:
            return contiguous(a, *arguments, **options)
        return ours.choice("Contiguous", a)

    if isinstance(kernel, type(mx.sin)):
        # MLX's own, and not what somebody has put in its place
        mx.fast.scaled_dot_product_attention = marked
    mx.stop_gradient, mx.contiguous = stopped, laid_out
    try:
        yield
    finally:
        mx.fast.scaled_dot_product_attention, mx.stop_gradient, mx.contiguous = kernel, stop, contiguous


__all__ = ["Mark", "Trace", "trace"]
