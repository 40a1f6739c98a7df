"""A callable that is traced once for arguments of any sizes, as far as that is the same program for all of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ParamSpec, TypeVar

import mlx.core as mx

from fuser.errors import TraceError
from fuser.frontends.state import Held
from fuser.fusion import fuse_given
from fuser.ir.graph import Graph, Node, Value
from fuser.optimized import Entry, Optimized
from fuser.optimized_calls import Call, Traced, name_of, trace_with
from fuser.optimized_replay import Replay
from fuser.optimized_turns import turns
from fuser.report import Report

P = ParamSpec("P")
R = TypeVar("R")
Sizes = tuple[int, ...]
# as many programs are kept, by static arguments and types
KEPT = 64
# constants up to this many elements are compared by value
FEW = 4096


@dataclass
class Made:
    """A program traced at some sizes."""

    sizes: Sizes
    traced: Traced
    plain: Graph
    fused: Graph
    report: Report
    entry: Entry | None = None
    varied: set[int] = field(default_factory=set)
    """The sizes of which it is known that the program does not depend on them."""


class Family:
    """The traces for one set of types; sizes that are 0, 1, alike, or those of the weights are told apart."""

    def __init__(self) -> None:
        self._fixed: frozenset[int] = frozenset({0, 1})
        self._made: dict[Sizes, Made] = {}

    def entry(self, sizes: Sizes, make: Callable[[], Made]) -> Entry:
        """What to run for arguments of these `sizes`; raises `TraceError` where the program is another for them."""
        known = self._made.get(self._pattern(sizes)) if self._made else None
        if known is None:
            known = make()
            self._fixed |= _fixed(known)
            known.entry = _entry(known, known.fused, known.report)
            self._made[self._pattern(sizes)] = known
        varied = {place for place, (one, other) in enumerate(zip(sizes, known.sizes, strict=True)) if one != other}
        if not varied <= known.varied:
            self._compare(known, make())
            known.varied |= varied
        assert known.entry is not None
        return known.entry

    def _pattern(self, sizes: Sizes) -> Sizes:
        """What a decision about a program may have looked at: numbers of its own, and which sizes are alike."""
        first: dict[int, int] = {}
        return tuple(
            size if size in self._fixed else -1 - first.setdefault(size, place) for place, size in enumerate(sizes)
        )

    @staticmethod
    def _compare(known: Made, other: Made) -> None:
        at = _difference(known.plain, other.plain)
        if at is None and _results(known.traced) != _results(other.traced):
            at = "what it returns or changes"
        if at is not None:
            raise TraceError(
                f"shapeless: the program depends on the sizes of its arguments at {at}; give no shapeless=True"
            )
        at = _difference(known.fused, other.fused)
        if at is not None:
            reason = f"shapeless: the fused program would be of fixed sizes at {at}"
            regions = [
                replace(region, verdict="refused", reason=reason) if region.verdict == "fused" else region
                for region in known.report.regions
            ]
            known.fused = known.plain
            known.report = replace(known.report, regions=tuple(regions))
            known.entry = _entry(known, known.plain, known.report)


def _entry(made: Made, graph: Graph, report: Report) -> Entry:
    return Entry(report, Replay(made.traced, graph.copy(), compiled=True, sized=False))


def _fixed(made: Made) -> frozenset[int]:
    """The sizes of the program's own arrays."""
    nodes = [node for node in made.plain.nodes if node.array is not None]
    nodes += made.plain.inputs[made.traced.arguments :]
    return frozenset(size for node in nodes for size in node.outputs[0].shape)


def _results(traced: Traced) -> tuple[object, ...]:
    return traced.results, traced.changes, traced.mutated, traced.draws, traced.same


def _difference(one: Graph, other: Graph) -> str | None:
    """The first node at which two graphs are not the same program; None: they are."""
    places: list[dict[Node, int]] = [{}, {}]

    def wires(graph: Graph, values: Sequence[Value], seen: dict[Node, int]) -> list[tuple[int, int]]:
        return [(seen[value.node], value.index) for value in values]

    if len(one.nodes) != len(other.nodes):
        return f"one of its {len(one.nodes)} nodes, which are {len(other.nodes)} at other sizes"
    for number, (a, b) in enumerate(zip(one.nodes, other.nodes, strict=True)):
        same = (
            a.op == b.op
            and _alike(a, b, len(one.operands(a)))
            and wires(one, one.operands(a), places[0]) == wires(other, other.operands(b), places[1])
        )
        if not same:
            # a constant has no line of its own
            return one.label(a if a.array is None else one.users(Value(a))[0][0])
        places[0][a] = places[1][b] = number
    return None if wires(one, one.outputs, places[0]) == wires(other, other.outputs, places[1]) else "its outputs"


def _alike(a: Node, b: Node, operands: int) -> bool:
    if [each.dtype for each in a.outputs] != [each.dtype for each in b.outputs]:
        return False
    if a.array is not None or b.array is not None:
        return a.array is b.array or (
            a.array is not None
            and b.array is not None
            and a.array.shape == b.array.shape
            and a.array.size <= FEW
            and mx.array_equal(a.array, b.array, equal_nan=True).item() is True
        )
    if a.op == "Broadcast" and operands > 1:
        # against other arrays, whose sizes are seen when it runs
        return a.arguments[1:] == b.arguments[1:]
    # what is reshaped gets the sizes that the trace has
    return a.arguments == b.arguments and (a.op != "Reshape" or a.outputs == b.outputs)


def _unspread(graph: Graph) -> None:
    """Leave out what broadcasts an array to its own shape: a trace for any sizes has that before each step."""
    for node in list(graph.nodes):
        idle = node.op == "Broadcast" and graph.operands(node)[0].type == node.outputs[0]
        if idle and Value(node) not in graph.outputs:
            graph.redirect(Value(node), graph.operands(node)[0])
    graph.prune()


class Shapeless(Optimized[P, R]):
    """What `fuser.optimize(fn, shapeless=True)` returns."""

    @cached_property
    def _families(self) -> dict[Hashable, Family]:
        return {}

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """What the original gives, and does; raises `TraceError` where it cannot be traced for any sizes."""
        if turns.mine:
            return self._fn(*args, **kwargs)
        call = Call(args, kwargs)
        arrays, held = call.walk.arrays, self._state(call)
        key: Hashable = (call.key, tuple((array.ndim, array.dtype) for array in arrays), held.signature)
        families = self._families
        family = families.setdefault(key, Family())
        if len(families) > KEPT:
            del families[next(iter(families))]
        sizes = tuple(size for array in arrays for size in array.shape)
        entry = family.entry(sizes, lambda: self._made(call, held, sizes))
        assert entry.replay is not None
        inputs = [*arrays, *held.arrays]
        with turns.running():
            result = entry.replay.finish(entry.replay.outputs(inputs), inputs, call, held)
        self._last = entry
        return result  # type: ignore[no-any-return]

    def _made(self, call: Call, held: Held, sizes: Sizes) -> Made:
        traced = trace_with(self._fn, call, held, shapeless=True)
        self._traces += 1
        plain = traced.graph.copy()
        if not self._fuse:
            report = Report(program=name_of(self._fn), nodes=len(plain), notes=("fusing was switched off",))
            return Made(sizes, traced, plain, plain, report)
        # values of the state are not read, and no kernel of ours is called: both are matters of one set of sizes
        _unspread(traced.graph)
        fused = fuse_given(traced.graph, {}, name_of(self._fn), when=self._when)
        return Made(sizes, traced, plain, fused.graph, fused.report)
