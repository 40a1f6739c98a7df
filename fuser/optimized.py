"""A callable with its attentions fused: traced once for each signature, then run compiled."""

from __future__ import annotations

import copy
import functools
import logging
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, ParamSpec, TypeVar

import mlx.core as mx

from fuser.errors import FuserError
from fuser.frontends.captures import BOUND, captures
from fuser.frontends.lines import user_line
from fuser.frontends.state import Held, address, number_of, readable, types_of
from fuser.fusion import fuse_given
from fuser.kernels.cost import When
from fuser.optimized_calls import Call, Traced, given_state, name_of, trace_with, traced_call
from fuser.optimized_quick import Quick, quick_way
from fuser.optimized_replay import Replay
from fuser.optimized_turns import Busy, turns
from fuser.report import Report
from fuser.verification_checks import region_checks, with_errors

__all__ = ["Optimized", "Traced", "given_state", "name_of", "traced_call"]

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger("fuser")
# as many signatures are kept as a decoder meets prompt lengths; the one not used for longest is dropped
KEPT = 64
# So many signatures are traced at once before any comes again, and then each when it comes a second time: a decode
# whose lengths grow never repeats itself, and a trace costs as much as many of its steps.
EAGER = 8
# as many in all: what does not repeat itself is not worth tracing
TRIALS = 64
_ARRAYS = {mx.array}
# the place of an array of the state (None: it is a constant), and a handle to the memory that it was in
Watched = tuple[int | None, mx.array, mx.array]


@dataclass
class Entry:
    """What is kept for one signature."""

    report: Report
    replay: Replay | None = None
    """None: the original program runs."""
    watched: tuple[Watched, ...] = ()
    """State whose value was relied on (a mask in a module), by its place: it must be the same array still, in the
    memory that a handle of our own keeps from being used again."""
    numbers: Mapping[int, str] = field(default_factory=dict)
    """State of one element that was read while tracing: `watched`, and a number that NumPy may have changed."""
    hits: int = 0
    """How many calls found it as it was."""
    again: int = 0
    """How many times the numbers were others and few calls had come between."""
    kept: bool = True
    """Whether it stands for the next call, too."""
    new: bool = False
    """Whether the signature was only noted."""
    patience: int = 1
    """How many calls in a row it takes until the next one goes the short way: MLX remembers where that failed."""

    def holds(self, state: Sequence[mx.array]) -> bool:
        """Whether what was relied on is still so."""
        return all(
            (place is None or state[place] is array) and address(array) == address(handle)
            for place, array, handle in self.watched
        ) and all(number_of(state[place]) == number for place, number in self.numbers.items())


class Idle:
    """Arguments whose state was new again and again: looking at it takes time, so it is left alone for some calls."""

    def __init__(self, entry: Entry, calls: int) -> None:
        self.entry, self.calls, self.left = entry, calls, calls


class Optimized(Generic[P, R]):
    """What `fuser.optimize` returns; called like the original."""

    def __init__(
        self,
        fn: Callable[P, R],
        inputs: Any = None,
        outputs: Any = None,
        *,
        fuse: bool = True,
        when: When = "profitable",
        verify: bool = False,
    ) -> None:
        self._fn = fn
        self._fuse = fuse
        self._when = when
        self._verify = verify
        self._given = [_plain(tree) for tree in (inputs, outputs) if tree is not None]
        self._held: Held | None = None
        self._entries: OrderedDict[Hashable, Entry] = OrderedDict()
        self._last: Entry | None = None
        self._quick: Quick | None = None
        # how many calls in a row went the long way to the last entry
        self._row = 0
        self._traces = self._hits = 0
        # how many traces failed, and why the last one did
        self._failures, self._failure = 0, ""
        # signatures that were not traced when they came first, by their hashes
        self._seen: dict[int, None] = {}
        self._idle: dict[Hashable, Idle] = {}
        functools.update_wrapper(self, fn, updated=())

    @property
    def original(self) -> Callable[P, R]:
        """The program as it was given."""
        return self._fn

    @property
    def when(self) -> When:
        """Whether all is fused that can be, or what gains by it."""
        return self._when

    @property
    def report(self) -> Report:
        """The report of the signature that was last run; an empty one before the first call."""
        return self._last.report if self._last is not None else Report(program=name_of(self._fn))

    @property
    def traces(self) -> int:
        """How many times the program was traced."""
        return self._traces

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """A decorated method is optimized for each object on its own."""
        if instance is None:
            return self
        # under a name that no method has, and for this object alone: a copy of it brings what the other has
        kept = getattr(instance, "__dict__", {})
        name = BOUND + getattr(self, "__qualname__", "")
        known = kept.get(name)
        if isinstance(known, Optimized):
            method = known.original
            if getattr(method, "__func__", None) is self._fn and getattr(method, "__self__", None) is instance:
                return known
        bound = self._like(self._fn.__get__(instance, owner), self._given)
        if hasattr(instance, "__dict__"):
            object.__setattr__(instance, name, bound)
        return bound

    def _like(self, fn: Callable[..., Any], given: Sequence[Any]) -> Optimized[..., Any]:
        if isinstance(fn, Optimized):
            return fn
        return type(self)(fn, *given, fuse=self._fuse, when=self._when, verify=self._verify)

    def __deepcopy__(self, memo: dict[int, Any]) -> Optimized[..., Any]:
        """An optimized copy of the program; what was traced stays behind."""
        return self._like(copy.deepcopy(self._fn, memo), copy.deepcopy(self._given, memo))

    def __reduce__(self) -> Any:
        """By name, as functions are pickled, where the name leads here; else the program, to be traced anew."""
        name = getattr(self, "__qualname__", "")
        found: Any = sys.modules.get(self.__module__)
        for part in name.split("."):
            found = getattr(found, part, None)
        if found is self:
            return name
        options = {"fuse": self._fuse, "when": self._when, "verify": self._verify}
        return _again, (type(self), self._fn, self._given, options)

    def __getattr__(self, name: str) -> Any:
        # an optimized module is asked for what the module has: parameters(), layers, ...
        if name.startswith("__") or "_fn" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._fn, name)

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """What the original gives, and does."""
        quick = self._quick
        # an odd epoch: somebody traces
        if quick is not None and not turns.epoch & 1:
            kinds, rest, still, run, state = quick
            given: Any = args
            try:
                if kwargs or rest is not None:
                    given = rest.arrays(args, kwargs) if rest is not None else None
                elif [*map(type, args)] != kinds:
                    given = None
                if given is not None and still():
                    result: Any = run(*given, *state) if state else run(*given)
                    self._hits += 1
                    return result  # type: ignore[no-any-return]
            except Exception:
                # arrays of other types, most likely; nothing has been changed, and the long way tells
                if self._last is not None:
                    self._last.patience *= 2
            self._quick = None
        if turns.mine:
            # inside of a trace: whoever traces sees the original
            return self._fn(*args, **kwargs)
        call: Call | None = None
        try:
            if not kwargs and set(map(type, args)) <= _ARRAYS:
                arrays: Sequence[mx.array] = args  # type: ignore[assignment]
                key: Hashable = types_of(arrays)
            else:
                call = Call(args, kwargs)
                arrays = call.walk.arrays
                key = (call.key, types_of(arrays))
            idle = self._idle.get(key) if self._idle else None
            if idle is not None and idle.left:
                idle.left -= 1
                return self._original(idle.entry, args, kwargs)
            held = self._state(call)
        except FuserError as error:
            return self._original(self._fallback(error), args, kwargs)
        full = (key, held.signature)
        entry = self._entries.get(full)
        if entry is None or (entry.watched and not entry.holds(held.arrays)):
            entry = self._traced(call or Call(args, kwargs), held, hash(full), entry)
            if entry.new:
                self._idle[key] = Idle(entry, min(max(2 * idle.calls, 1), KEPT) if idle is not None else 0)
                if len(self._idle) > KEPT:
                    del self._idle[next(iter(self._idle))]
            if entry.kept:
                self._keep(full, entry)
        else:
            self._hits += 1
            entry.hits += 1
            if idle is not None:
                self._idle.pop(key, None)
        replay = entry.replay
        if replay is None:
            return self._original(entry, args, kwargs)
        inputs = [*arrays, *held.arrays]
        try:
            if replay.direct is not None:
                result = replay.direct(*inputs)
            elif replay.aside:
                with turns.running():
                    result = replay.finish(replay.outputs(inputs), inputs, call, held)
            else:
                result = replay.finish(replay.outputs(inputs), inputs, call, held)
        except Exception as error:
            # whatever it is, nothing has been changed yet
            return self._original(self._fallback(error), args, kwargs)
        if entry is not self._last:
            self._quick, self._row, self._last = None, 0, entry
        elif replay.direct is not None and held is self._held and not entry.numbers:
            # how often numbers change is counted by entries
            self._row += 1
            if self._row >= entry.patience:
                self._quick = quick_way(replay.direct, held, entry.holds if entry.watched else None, args, kwargs)
        return result  # type: ignore[no-any-return]

    def _state(self, call: Call | None) -> Held:
        """What the captured containers hold now."""
        while True:
            epoch = turns.settled()
            held = self._held
            if held is None or not held.still():
                held = self._held = Held([*self._given, *captures(self._fn)])
            if call is not None and not held.ids.isdisjoint(call.walk.index):
                # an argument that is a captured container, too
                held = Held([*self._given, *captures(self._fn)], call.walk)
            if turns.epoch == epoch:
                return held

    def _keep(self, full: Hashable, entry: Entry) -> None:
        self._entries[full] = entry
        while len(self._entries) > KEPT:
            self._entries.popitem(last=False)

    def _traced(self, call: Call, held: Held, signature: int, before: Entry | None) -> Entry:
        """Trace a new signature; the entry is not kept where the next call may fare better.

        `before` is what was kept for it, and relied on what is so no more.
        """
        again = max(before.again + 1 - before.hits // EAGER, 0) if before is not None and before.numbers else 0
        if again > EAGER:
            note = "state of one element that the program reads as a number changes again and again: let it not be read"
            return Entry(self._noted(f"the original program runs: {note}, or keep it as a number"))
        if max(self._traces, self._failures) >= EAGER + self._hits and signature not in self._seen:
            self._seen[signature] = None
            if len(self._seen) > 100 * KEPT:
                del self._seen[next(iter(self._seen))]
            if self._failures > self._traces:
                return Entry(self._noted(self._failure), kept=False, new=True)
            note = f"{self._traces} signatures were traced and few came again: this one is traced if it does"
            note += "; pad to a few lengths, and give numbers that change as mx.array"
            return Entry(self._noted(f"the original program runs: {note}"), kept=False, new=True)
        if self._traces >= TRIALS + self._hits:
            note = f"{self._traces} signatures were traced and few came again: pad to a few lengths"
            return Entry(self._noted(f"the original program runs: {note}"), kept=False)
        try:
            traced = trace_with(self._fn, call, held)
            self._traces += 1
            entry = self._compiled(traced, [*call.walk.arrays, *held.arrays])
            fixed = [(None, array, array[...]) for array in held.constants if readable(array)]
            return replace(entry, watched=(*entry.watched, *fixed), again=again)
        except Busy:
            return Entry(self._noted("the original program runs: another thread is running it"), kept=False)
        except FuserError as error:
            entry = self._fallback(error)
            self._failures, self._failure = self._failures + 1, entry.report.notes[0]
            return entry
        except Exception as error:
            # the original is run, and raises it again: or it does not, and is to blame on the trace
            return replace(self._fallback(error), kept=False)

    def _compiled(self, traced: Traced, inputs: Sequence[mx.array]) -> Entry:
        if not self._fuse:
            report = Report(program=name_of(self._fn), nodes=len(traced.graph), notes=("fusing was switched off",))
            return Entry(report, Replay(traced, traced.graph, compiled=False), _watched(traced, inputs), traced.numbers)
        given = given_state(traced)
        values = {node: slot.array for node, slot in given.items()}
        places = {node: place for place, node in enumerate(traced.graph.inputs[traced.arguments :])}
        found = region_checks(traced.graph, values, inputs, self._when) if self._verify else {}
        refused = {node: check.reason for node, check in found.items() if not check.ok}
        for node, reason in refused.items():
            warnings.warn(f"{found[node].name} is not fused: {reason}", RuntimeWarning, stacklevel=4)
        fused = fuse_given(traced.graph, values, name_of(self._fn), ours=True, when=self._when, refused=refused)
        replay = Replay(traced, fused.graph, compiled=True)
        watched = *_watched(traced, inputs), *((places[node], values[node], values[node][...]) for node in fused.relied)
        report = with_errors(fused.report, found)
        report = replace(report, seconds={"trace": traced.seconds, **report.seconds})
        return Entry(report, replay, watched, traced.numbers)

    def _fallback(self, error: Exception) -> Entry:
        what = str(error) if isinstance(error, FuserError) else _unforeseen(error)
        log.info("%s runs as it is: %s", name_of(self._fn), what)
        return Entry(self._noted(f"the original program runs: {what}"))

    def _noted(self, note: str) -> Report:
        return Report(program=name_of(self._fn), notes=(note,))

    def _original(self, entry: Entry, args: Any, kwargs: Any) -> R:
        with turns.running():
            result = self._fn(*args, **kwargs)
        self._quick, self._last = None, entry
        return result


def _again(kind: type[Optimized[..., Any]], fn: Callable[..., Any], given: Sequence[Any], options: Any) -> Any:
    # a method is found by its name, and is optimized there
    return fn if isinstance(fn, Optimized) else kind(fn, *given, **options)


def _watched(traced: Traced, inputs: Sequence[mx.array]) -> tuple[Watched, ...]:
    read = [(place, inputs[traced.arguments + place]) for place in traced.numbers]
    return tuple((place, array, array[...]) for place, array in read)


def _unforeseen(error: Exception) -> str:
    where = user_line(error.__traceback__)
    what = f"{type(error).__name__} came up while tracing{f' at {where}' if where else ''}: {error}"
    if isinstance(error, TypeError) and "incompatible function arguments" in what:
        # MLX's words go on with all signatures of the function
        what = what.split(". The following", 1)[0] + "; an array has no value while it is traced: give a number there"
    return what


def _plain(tree: Any) -> Any:
    """State as its owner gives it, but for MLX's random state, which is seen to anyway."""
    state: Any = mx.random.state
    if tree is state:
        return []
    return [each for each in tree if each is not state] if isinstance(tree, list | tuple) else tree
