"""A callable with its attentions fused: traced once for each signature, then run compiled."""

from __future__ import annotations

import functools
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, ParamSpec, TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from fuser.errors import TraceError
from fuser.execute import Flat, runner
from fuser.frontends import trees
from fuser.frontends.mlx import trace
from fuser.frontends.modules import modules_of
from fuser.frontends.state import Slot, slots, swapped
from fuser.frontends.trees import Spec
from fuser.fusion import fuse_given
from fuser.ir.graph import Graph, Node
from fuser.ir.ops import UnsupportedPrimitive
from fuser.report import Report

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger("fuser")
# as many signatures are kept as a decoder meets prompt lengths; the oldest is dropped
KEPT = 64


@dataclass
class Traced:
    """A program as a graph: its arguments' arrays, then those of its state, to its results, then the changed state."""

    graph: Graph
    results: Spec
    places: list[Slot]
    """Where the state's arrays are read from."""
    changed: list[Slot]
    """Where the arrays after the results go."""
    arguments: int
    seconds: float


@dataclass
class Entry:
    """What is kept for one signature."""

    report: Report
    run: Flat | None = None
    """None: the original program runs."""
    traced: Traced | None = None
    watched: tuple[tuple[Slot, mx.array, int], ...] = ()
    """State whose value was relied on (a mask in a module): it must be the same array still."""


class Optimized(Generic[P, R]):
    """What `fuser.optimize` returns; called like the original."""

    def __init__(self, fn: Callable[P, R], inputs: Any = None, outputs: Any = None, *, fuse: bool = True) -> None:
        self._fn = fn
        self._fuse = fuse
        self._state = [tree for tree in (inputs, outputs) if tree is not None] + list(modules_of(fn))
        self._modules = [module for root in modules_of(fn) for _, module in root.named_modules()]
        self._entries: OrderedDict[Hashable, Entry] = OrderedDict()
        self._last: Entry | None = None
        functools.update_wrapper(self, fn, updated=())

    @property
    def original(self) -> Callable[P, R]:
        """The program as it was given."""
        return self._fn

    @property
    def report(self) -> Report:
        """The report of the signature that was last run; an empty one before the first call."""
        return self._last.report if self._last is not None else Report(program=name_of(self._fn))

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """A decorated method is optimized for each object on its own."""
        if instance is None:
            return self
        bound = Optimized(self._fn.__get__(instance, owner), fuse=self._fuse)
        if self.__name__ and hasattr(instance, "__dict__"):
            object.__setattr__(instance, self.__name__, bound)
        return bound

    def __getattr__(self, name: str) -> Any:
        # an optimized module is asked for what the module has: parameters(), layers, ...
        if name.startswith("__") or "_fn" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._fn, name)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            arrays, spec = trees.flatten((args, kwargs))
        except TraceError as error:
            return self._original(error, args, kwargs)
        places = slots(self._state)
        key = (
            spec,
            tuple((array.shape, array.dtype) for array in arrays),
            tuple((id(container), key, array.shape, array.dtype) for (container, key), array in held(places)),
            tuple(module.training for module in self._modules),
        )
        entry = self._entries.get(key)
        if entry is None or not all(_unchanged(*watch) for watch in entry.watched):
            entry = self._entries[key] = self._compile(args, kwargs, arrays)
            if len(self._entries) > KEPT:
                self._entries.popitem(last=False)
        self._last = entry
        if entry.run is None or entry.traced is None:
            return self._fn(*args, **kwargs)
        traced = entry.traced
        state = places if traced.places == places else traced.places
        results = entry.run([*arrays, *(slot.array for slot in state)])
        count = len(results) - len(traced.changed)
        for slot, array in zip(traced.changed, results[count:], strict=True):
            slot.container[slot.key] = array
        return trees.unflatten(traced.results, results[:count])  # type: ignore[no-any-return]

    def _compile(self, args: Any, kwargs: Any, arrays: Sequence[mx.array]) -> Entry:
        try:
            traced = traced_call(self._fn, args, kwargs, self._state)
            if not self._fuse:
                report = Report(program=name_of(self._fn), nodes=len(traced.graph), notes=("fusing was switched off",))
                return Entry(report, runner(traced.graph), traced)
            given = given_state(traced)
            fused = fuse_given(traced.graph, {node: slot.array for node, slot in given.items()}, name_of(self._fn))
            run = mx.compile(_listed(runner(fused.graph)))
        except (TraceError, UnsupportedPrimitive) as error:
            return self._fallback(error)
        watched = tuple((given[node], given[node].array, _address(given[node].array)) for node in fused.relied)
        report = replace(fused.report, seconds={"trace": traced.seconds, **fused.report.seconds})
        for region in report.regions:
            log.info("%s", region)
        return Entry(report, lambda inputs: run(*inputs), traced, watched)

    def _fallback(self, error: Exception) -> Entry:
        log.info("%s runs as it is: %s", name_of(self._fn), error)
        return Entry(Report(program=name_of(self._fn), notes=(f"the original program runs: {error}",)))

    def _original(self, error: Exception, args: Any, kwargs: Any) -> R:
        self._last = self._fallback(error)
        return self._fn(*args, **kwargs)


def traced_call(fn: Callable[..., Any], args: Any, kwargs: Any, state: Sequence[Any] = ()) -> Traced:
    """Trace the call `fn(*args, **kwargs)`, with the arrays of `state` as further inputs."""
    start = time.perf_counter()
    arrays, spec = trees.flatten((args, kwargs))
    state = [*state, *(root for root in modules_of(fn) if not any(root is tree for tree in state))]
    places = slots(state)
    held = [slot.array for slot in places]
    mx.eval(held)
    seen: dict[str, Any] = {}

    def program(inputs: Sequence[mx.array]) -> list[mx.array]:
        arguments, keywords = trees.unflatten(spec, inputs[: len(arrays)])
        with swapped(state, places, inputs[len(arrays) :]) as changed:
            results, seen["results"] = trees.flatten(fn(*arguments, **keywords))
            seen["changed"] = changed()
            return results + [slot.array for slot in seen["changed"]]

    graph = trace(program, arrays + held, fn)
    graph.state = frozenset(graph.inputs[len(arrays) :])
    if _draws(graph) and not any(tree is mx.random.state for tree in state):
        return traced_call(fn, args, kwargs, [*state, mx.random.state])
    return Traced(graph, seen["results"], places, seen["changed"], len(arrays), time.perf_counter() - start)


def _draws(graph: Graph) -> bool:
    """Whether the program draws random numbers from a key that no input gives: from MLX's global state."""
    return any(node.op == "RandomBits" for node in graph.nodes)


def given_state(traced: Traced) -> dict[Node, Slot]:
    """The graph's inputs that are state, which changes seldom: its values may be relied on while watched."""
    return dict(zip(traced.graph.inputs[traced.arguments :], traced.places, strict=True))


def held(places: Sequence[Slot]) -> list[tuple[Slot, mx.array]]:
    """The places with what they hold."""
    return [(slot, slot.array) for slot in places]


def _unchanged(slot: Slot, array: mx.array, address: int) -> bool:
    now = slot.array
    return now is array and _address(now) == address


def _address(array: mx.array) -> int:
    """Where the array's memory lies: an update in place gives it another, while we hold the old one."""
    view = np.asarray(memoryview(array))  # type: ignore[arg-type]
    return int(view.__array_interface__["data"][0])


def _listed(run: Flat) -> Callable[..., list[mx.array]]:
    def listed(*inputs: mx.array) -> list[mx.array]:
        return run(inputs)

    return listed


def name_of(fn: Any) -> str:
    """What a report calls a program."""
    if isinstance(fn, nn.Module):
        return type(fn).__name__
    if isinstance(fn, functools.partial):
        return name_of(fn.func)
    return getattr(fn, "__qualname__", None) or getattr(fn, "name", None) or type(fn).__name__
