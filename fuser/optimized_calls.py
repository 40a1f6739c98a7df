"""A call of a program as a graph, with all that it reads and changes besides arguments and results."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from fuser.errors import TraceError
from fuser.frontends.captures import captures, names_in, parameters_of, tops_of
from fuser.frontends.mlx import ValueRead, trace
from fuser.frontends.stand_ins import replacement
from fuser.frontends.state import (
    WHOLE,
    Change,
    Held,
    RandomState,
    differentiated,
    number_of,
    random_state,
    readable,
    swapped,
    unmoved,
    unwritten,
)
from fuser.frontends.trees import Slot, Spec, Walk, loosened
from fuser.ir.graph import Graph, Node
from fuser.ir.pause import uncollected
from fuser.optimized_turns import turns


@dataclass
class Traced:
    """A program as a graph, from the arrays of arguments and state.

    Outputs of the graph: the results' arrays, those of the `changes`, the `mutated` inputs, the random state.
    """

    graph: Graph
    results: Spec
    places: list[Slot | RandomSlot]
    """Where the state's arrays are read from."""
    changes: list[Change]
    """What goes into containers after the call: those of the arguments first, then those of the state."""
    mutated: list[int]
    """The inputs that are updated in place."""
    draws: bool
    """Whether the last input, and the last output, is the global random state."""
    arguments: int
    counts: tuple[int, int]
    """How many arrays the results hold, and how many the changes."""
    same: list[int]
    """Which array object each of those is: the number of an input, or, from -1 downwards, one of the program's own."""
    seconds: float
    numbers: Mapping[int, str]
    """State of one element whose value the graph holds, by its place among `places`; it is an input without users."""


@dataclass(frozen=True)
class RandomSlot:
    """The place of MLX's global random state."""

    state: RandomState

    @property
    def array(self) -> mx.array:
        """The key of the next draw."""
        return self.state.get()


class Call:
    """The arguments of a call, taken apart."""

    def __init__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.args, self.kwargs = tuple(args), dict(kwargs)
        walk = self.walk = Walk()
        self.spec = walk.walk((self.args, tuple(self.kwargs.values())))
        self.key = (self.spec, tuple(self.kwargs))

    def with_arrays(self, arrays: Sequence[mx.array]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with other arrays, but for those in containers."""
        loose: Iterator[mx.array] = iter(
            [array for slot, array in zip(self.walk.slots, arrays, strict=True) if slot is None]
        )
        args, values = loosened((self.args, tuple(self.kwargs.values())), loose)
        return args, dict(zip(self.kwargs, values, strict=True))


def traced_call(fn: Callable[..., Any], args: Any, kwargs: Any, state: Sequence[Any] = ()) -> Traced:
    """Trace the call `fn(*args, **kwargs)`; arrays of `state` and of modules in `fn` are further inputs."""
    call = Call(args, kwargs)
    roots = captures(fn)
    inputs = [*state, *(module for _, module in tops_of(roots))]
    held = Held([*inputs, *roots], call.walk)
    # other captured arrays are constants of the graph, though what happens to their containers is undone
    count = len(Held(inputs, call.walk).slots)
    constants = held.arrays[count:]
    del held.slots[count:], held.arrays[count:]
    with unmoved(constants):
        return trace_with(fn, call, held)


def trace_with(fn: Callable[..., Any], call: Call, held: Held, *, shapeless: bool = False) -> Traced:
    """Trace a call with the state that is `held`; see `fuser.frontends.mlx.trace` for `shapeless`.

    Where the program reads a value, state of one element that it does not change is taken as numbers, which the
    caller has to watch.
    """
    try:
        return _trace_with(fn, call, held, {}, shapeless)
    except (ValueRead, TypeError, ValueError):
        known = {place: number_of(array) for place, array in enumerate(held.arrays)}
        numbers = {
            place: number
            for place, number in known.items()
            if number is not None and not differentiated(held.arrays[place])
        }
        if shapeless or not numbers:
            raise
        try:
            return _trace_with(fn, call, held, numbers, shapeless)
        except _Updated as error:
            numbers = {place: number for place, number in numbers.items() if place not in error.places}
            if not numbers:
                raise
    return _trace_with(fn, call, held, numbers, shapeless)


class _Updated(TraceError):
    def __init__(self, places: set[int]) -> None:
        super().__init__("the program updates state of one element that it reads as a number: let it not be read")
        self.places = places


def _trace_with(fn: Callable[..., Any], call: Call, held: Held, numbers: Mapping[int, str], shapeless: bool) -> Traced:
    start = time.perf_counter()
    walk = call.walk
    arrays = [*walk.arrays, *held.arrays]
    stores = [*walk.stores, *held.stores]
    slots = [*walk.slots, *held.slots]
    count = len(walk.arrays)
    seen: dict[str, Any] = {}
    # arrays of their own: MLX compiles no function with a constant that is one of its inputs, too
    copies = {place: mx.stop_gradient(held.arrays[place]) for place in numbers}
    mx.eval(*copies.values())

    def program(inputs: Sequence[mx.array]) -> list[mx.array]:
        arguments, keywords = call.with_arrays(inputs[:count])
        # handles: the program may update them in place
        fixed = {place: array[...] for place, array in copies.items()}
        state = [fixed.get(place, blank) for place, blank in enumerate(inputs[count:])]
        given = [*inputs[:count], *state]
        with swapped(stores, slots, given, replacement) as changes, unwritten([*walk.numpy, *held.numpy]):
            # the program may itself be a function that MLX has made
            result = (replacement(fn) or fn)(*arguments, **keywords)
            if isinstance(result, Coroutine):
                result.close()  # nobody will wait for this one
            found = Walk({id(each): number for number, each in enumerate([*walk.objects, *held.objects])})
            seen["results"] = found.walk(result)
            seen["count"] = len(found.arrays)
            seen["changes"] = changes(found)
            if found.numpy:
                raise TraceError("the program returns or keeps a NumPy array: let it be an mx.array")
            updated = {
                place
                for place, array in fixed.items()
                if number_of(array) != numbers[place]
                or any(
                    stores[change.store] is held.slots[place].store and change.key in (held.slots[place].key, WHOLE)
                    for change in seen["changes"]
                )
            }
            if updated:
                raise _Updated(updated)
            known = {id(array): number for number, array in enumerate(given)}
            seen["same"] = [known.setdefault(id(array), len(inputs) - 1 - len(known)) for array in found.arrays]
            return found.arrays

    objects = [*walk.objects, *held.objects]
    modules = [each for each in objects if isinstance(each, nn.Module)]
    # what the program itself holds gives the better names
    tops = tops_of([*captures(fn), *held.roots, call.args, call.kwargs]) if modules else []
    names = names_in(tops)
    with turns.tracing(), uncollected(), unmoved(held.constants) as still:
        traced = trace(program, arrays, names, modules, shapeless=shapeless)
    if not still():
        raise TraceError("the program updates an array in place that functools.partial has bound: bind a list of it")
    _refuse_aliases(arrays, traced.mutated)
    # what a module holds can be trained: it is seen at every call, and not read as a number
    trained = {id(array) for _, module in tops for array in parameters_of(module)}
    inputs = zip(traced.graph.inputs, arrays, strict=False)
    traced.graph.state = frozenset(node for node, array in inputs if id(array) in trained)
    places: list[Slot | RandomSlot] = [*held.slots, *([RandomSlot(random_state)] if traced.draws else [])]
    counts = (seen["count"], len(traced.graph.outputs) - seen["count"] - len(traced.mutated) - traced.draws)
    seconds = time.perf_counter() - start
    return Traced(
        traced.graph,
        seen["results"],
        places,
        seen["changes"],
        traced.mutated,
        traced.draws,
        count,
        counts,
        seen["same"],
        seconds,
        numbers,
    )


def _refuse_aliases(arrays: Sequence[mx.array], mutated: Sequence[int]) -> None:
    if mutated and len(set(map(id, arrays))) < len(arrays):
        raise TraceError("the program updates an array in place that it holds under two names")


def given_state(traced: Traced) -> dict[Node, Slot]:
    """The graph's inputs that are state, which changes seldom: its values may be relied on while watched."""
    inputs = traced.graph.inputs[traced.arguments :]
    return {
        node: place
        for node, place in zip(inputs, traced.places, strict=True)
        if isinstance(place, Slot) and readable(place.array)
    }


def name_of(fn: Any) -> str:
    """What a report calls a program."""
    if isinstance(fn, nn.Module):
        return type(fn).__name__
    if isinstance(fn, functools.partial):
        return name_of(fn.func)
    return getattr(fn, "__qualname__", None) or getattr(fn, "name", None) or type(fn).__name__
