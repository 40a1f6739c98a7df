"""Run a traced call again: its graph, and then all that the call did to containers and arrays besides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from fuser.checkpoints import collapse
from fuser.errors import TraceError
from fuser.execute import Flat, checked, compile_flat, runner
from fuser.frontends.state import Held, random_state
from fuser.frontends.trees import LEAF, Spec, unflatten
from fuser.ir.graph import Graph, Value
from fuser.kernels.admission import backend
from fuser.optimized_calls import Call, Traced
from fuser.segments import segmented


class Replay:
    """A traced call that can be made again with other arrays of the same shapes (of any, if it is not `sized`)."""

    def __init__(self, traced: Traced, graph: Graph, *, compiled: bool, sized: bool = True) -> None:
        self._traced = traced
        inputs = {Value(node): number for number, node in enumerate(graph.inputs)}
        self._aside = bool(traced.changes or traced.mutated or traced.draws)
        results, changes = traced.counts
        _refuse_reshaped(graph, traced, results + changes)
        # what is an input already is not computed, and what is given twice is computed once
        computed = list(dict.fromkeys(output for output in graph.outputs if output not in inputs))
        place = {output: number for number, output in enumerate(computed)}
        # places from the end are inputs
        picks = [inputs[output] - len(inputs) if output in inputs else place[output] for output in graph.outputs]
        taken: dict[int, int] = {}
        self._handles: list[tuple[int, int]] = []
        for number, same in enumerate(traced.same):
            if same >= 0:
                picks[number] = same - len(inputs)
            elif picks[number] < 0 or taken.setdefault(picks[number], same) != same:
                # the program has two array objects of one value: one may be updated in place without the other
                self._handles.append((number, same))
        self._picks = picks
        self._straight = picks == list(range(len(computed))) and not self._handles
        trimmed = graph.copy()
        trimmed.outputs = computed
        trimmed.prune()
        collapse(trimmed)
        # MLX's compiled programs on CUDA end the process where an array has no elements
        fatal = backend() == "cuda" and _is_empty_somewhere(trimmed)
        compiled = compiled and bool(computed) and not fatal
        # with steps of our own kernels, between compiled pieces or inside
        parts = segmented(trimmed, traced.arguments) if compiled and sized else None
        flat = parts or checked(runner(trimmed), trimmed.inputs, 0 if sized else traced.arguments)
        self._flat: Flat = compile_flat(flat) if compiled and parts is None else flat
        self.direct: Callable[..., Any] | None = None
        """The short way of a program that does nothing but make arrays, from the arrays; it looks at their types."""
        if self._straight and sized and not self._aside:
            if compiled and parts is None and _is_tree(traced.results):
                # MLX builds the tree
                self.direct = mx.compile(lambda *inputs: unflatten(traced.results, flat(inputs)))
            elif traced.results == LEAF:
                self.direct = lambda *inputs: flat(inputs)[0]

    @property
    def aside(self) -> bool:
        """Whether a call does something besides giving its results."""
        return self._aside

    def outputs(self, inputs: list[mx.array]) -> list[mx.array]:
        """All outputs of the graph for arrays of arguments and state. Nothing is changed yet."""
        if self._aside:
            if self._traced.mutated and len(set(map(id, inputs))) < len(inputs):
                raise TraceError("an array that is updated in place is given under two names")
            if self._traced.draws:
                key = random_state.get()
                if not random_state.put(key):
                    raise TraceError("the global random state is itself being traced by MLX")
                inputs.append(key)
        made = self._flat(inputs)
        if self._straight:
            return made
        both = [*made, *inputs]
        given = [both[pick] for pick in self._picks]
        handles: dict[int, mx.array] = {}
        for number, same in self._handles:
            if same not in handles:
                handles[same] = given[number][...]
            given[number] = handles[same]
        return given

    def finish(self, outputs: list[mx.array], inputs: Sequence[mx.array], call: Call | None, held: Held) -> Any:
        """The results of the call; what it changes is changed."""
        traced = self._traced
        results, changes = traced.counts
        objects = [*(call.walk.objects if call else ()), *held.objects]
        rest = iter(outputs)
        found = unflatten(traced.results, rest, objects)
        if self._aside:
            stores = [*(call.walk.stores if call else ()), *held.stores]
            for change in traced.changes:
                change.apply(stores, rest, objects)
            for number, new in zip(traced.mutated, outputs[results + changes :], strict=False):
                array: Any = inputs[number]
                array[...] = new
            if traced.draws:
                random_state.put(outputs[-1])
        return found


def _refuse_reshaped(graph: Graph, traced: Traced, start: int) -> None:
    for number, output in zip(traced.mutated, graph.outputs[start:], strict=False):
        if output.type != graph.inputs[number].outputs[0]:
            raise TraceError("the program gives an array another shape or dtype in place")


def _is_tree(spec: Spec) -> bool:
    """Whether MLX makes such a tree itself when it runs what it has compiled."""
    return spec == LEAF or (spec.kind in (tuple, list, dict) and all(map(_is_tree, spec.children)))


def _is_empty_somewhere(graph: Graph) -> bool:
    return any(0 in type.shape for node in graph.nodes for type in node.outputs)
