"""What the sweeps over model libraries share: a program is replayed bit for bit, and its attentions are found again.

A `Subject` is run as it is, and by `fuser.optimize(..., fuse=False)`, whose answers and state must have the same bits.
Then by `fuser.optimize(...)`: every call of the kernel that it makes is to be reported as "already fused". Then the
call of the kernel is replaced by an attention spelled out, as older code has it, and fuser must find each again.
"""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

import fuser

Step = Callable[[Callable[..., Any], Any], Any]
KERNEL = mx.fast.scaled_dot_product_attention
LARGEST = 30_000_000


def spelled_out(
    q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: Any = None, sinks: mx.array | None = None, **_: Any
) -> mx.array:
    """What the kernel computes, as it is written by hand."""
    repeats = q.shape[1] // k.shape[1]
    if repeats > 1:
        k, v = mx.repeat(k, repeats, axis=1), mx.repeat(v, repeats, axis=1)
    scores = (q @ mx.swapaxes(k, -1, -2)) * scale
    if isinstance(mask, str):
        rows, columns = scores.shape[-2:]
        mask = mx.arange(columns - rows, columns)[:, None] >= mx.arange(columns)[None]
    if mask is not None:
        scores = mx.where(mask, scores, -math.inf) if mask.dtype == mx.bool_ else scores + mask
    if sinks is not None:
        column = mx.broadcast_to(sinks[None, :, None, None], (*scores.shape[:-1], 1))
        weights = mx.softmax(mx.concatenate([scores, column], axis=-1), axis=-1, precise=True)[..., :-1]
    else:
        weights = mx.softmax(scores, axis=-1, precise=True)
    return weights @ v


@contextmanager
def kernel(function: Any) -> Iterator[list[None]]:
    """Let models call `function` for the kernel; the list grows by one for each call that computes anything."""
    calls: list[None] = []

    def counted(*args: Any, **kwargs: Any) -> mx.array:
        result: mx.array = function(*args, **kwargs)
        if result.size:
            calls.append(None)
        return result

    # models may have imported it by its name
    ours = ("fuser", "benchmarks")
    theirs = [vars(module) for key, module in sys.modules.items() if module and key.split(".")[0] not in ours]
    places = [(names, name) for names in (vars(mx.fast), *theirs) for name in list(names) if names[name] is KERNEL]
    for names, name in places:
        names[name] = counted
    try:
        yield calls
    finally:
        for names, name in places:
            names[name] = KERNEL


@dataclass(frozen=True)
class Subject:
    """A program, and the calls of it that are tried one after another on one state."""

    program: Callable[..., Any]
    steps: Mapping[str, Step]
    """Each calls the program that it is given, with the state, and gives the answer."""
    state: Callable[[], Any] = dict
    """A fresh state: the caches, say."""
    own: int = 0
    """Attentions, in all steps, that the program itself spells out."""


@dataclass
class Outcome:
    """What became of one model."""

    name: str
    problem: str = ""
    """Why it cannot be built, or run."""
    exact: dict[str, bool] = field(default_factory=dict)
    """For each step, whether the replay had the same bits."""
    notes: set[str] = field(default_factory=set)
    """Why the original was run."""
    already: int = 0
    """Calls of the kernel that were seen as such, in all steps; those over empty arrays, too."""
    expected: int = 0
    """Calls of the kernel that the program makes, in all steps."""
    own: int = 0
    """Attentions, in all steps, that the program itself is known to spell out."""
    fused: int = 0
    """Attentions fused where all are spelled out."""
    close: bool = True
    """Whether the fused answers are those of the spelled-out model."""
    reasons: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        """Whether nothing is left to wish."""
        found = self.already >= self.expected and self.fused >= self.expected + self.own
        return not self.problem and all(self.exact.values()) and not self.notes and self.close and found

    def __str__(self) -> str:
        if self.problem:
            return f"{self.name:32} cannot be run: {self.problem}"
        wrong = [step for step, same in self.exact.items() if not same]
        line = f"{self.name:32} {'exact' if not wrong else 'DIFFERS in ' + ', '.join(wrong):8}"
        line += f" called {min(self.already, self.expected)} of {self.expected},"
        line += f" spelled out {self.fused} of {self.expected + self.own} fused"
        line += f"{'' if self.close else ', DIFFERS'} ({self.seconds:.1f} s)"
        lines = [line, *(f"    original run: {note[:150]}" for note in sorted(self.notes))]
        return "\n".join([*lines, *(f"    {count} x {reason[:150]}" for reason, count in self.reasons.most_common())])


def sweep(name: str, build: Callable[[], Subject]) -> Outcome:
    """Try one model."""
    outcome = Outcome(name)
    start = time.perf_counter()
    try:
        subject = build()
        outcome.own = subject.own
        state = subject.state()
        for step in subject.steps.values():
            mx.eval([array for _, array in tree_flatten([step(subject.program, state)]) if isinstance(array, mx.array)])
    except (Exception, SystemExit) as error:
        outcome.problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:150]
        return outcome
    _exact(subject, outcome)
    _fused(subject, outcome)
    outcome.seconds = time.perf_counter() - start
    return outcome


def _exact(subject: Subject, outcome: Outcome) -> None:
    replay, fast = fuser.optimize(subject.program, fuse=False), fuser.optimize(subject.program)
    states = [subject.state() for _ in range(3)]
    for name, step in subject.steps.items():
        step = _seeded(step)
        wanted = step(subject.program, states[0])
        found = step(replay, states[1])
        outcome.exact[name] = same_bits(wanted, found) and same_bits(arrays_of(states[0]), arrays_of(states[1]))
        outcome.notes.update(note for note in replay.report.notes if "original" in note)
        outcome.close &= close(wanted, step(fast, states[2]))
        outcome.already += fast.report.counts["already fused"]


def _fused(subject: Subject, outcome: Outcome) -> None:
    fast = fuser.optimize(subject.program)
    states = [subject.state() for _ in range(2)]
    with kernel(spelled_out) as calls:
        for step in map(_seeded, subject.steps.values()):
            calls.clear()
            wanted = step(subject.program, states[0])
            outcome.expected += len(calls)
            outcome.close &= close(wanted, step(fast, states[1]))
            outcome.fused += fast.report.counts["fused"]
            missed = [region for region in fast.report.regions if region.verdict == "refused"]
            outcome.reasons.update(f"{region.name}: {region.reason}" for region in missed)


def _seeded(step: Step) -> Step:
    def run(program: Callable[..., Any], state: Any) -> Any:
        mx.random.seed(0)
        return step(program, state)

    return run


def arrays_of(tree: Any) -> Any:
    """The arrays in a cache."""
    if isinstance(tree, list | tuple):
        return [arrays_of(each) for each in tree]
    held = tree if isinstance(tree, dict) else getattr(tree, "__dict__", {})
    return [each for _, each in tree_flatten(list(held.values())) if isinstance(each, mx.array)]


def close(wanted: Any, found: Any) -> bool:
    """Whether two trees hold about the same numbers."""
    lefts, rights = _leaves(wanted), _leaves(found)
    return len(lefts) == len(rights) and all(
        bool(mx.allclose(a, b, rtol=1e-3, atol=1e-3, equal_nan=True).item()) for a, b in zip(lefts, rights, strict=True)
    )


def _leaves(tree: Any) -> list[mx.array]:
    return [each for _, each in tree_flatten([plain(tree)]) if isinstance(each, mx.array)]


def plain(tree: Any) -> Any:
    """Results that are objects with arrays in them, as dictionaries."""
    if isinstance(tree, list | tuple):
        return [plain(each) for each in tree]
    return dict(vars(tree)) if hasattr(tree, "__dataclass_fields__") else tree


def same_bits(left: Any, right: Any) -> bool:
    """Whether two trees hold the same arrays, bit for bit."""
    lefts, rights = _leaves(left), _leaves(right)
    return len(lefts) == len(rights) and all(
        a.shape == b.shape and a.dtype == b.dtype and bytes(memoryview(_words(a))) == bytes(memoryview(_words(b)))
        for a, b in zip(lefts, rights, strict=True)
    )


def _words(array: mx.array) -> mx.array:
    return mx.contiguous(array).view(mx.uint16) if array.dtype == mx.bfloat16 else mx.contiguous(array)


def ready(model: nn.Module, name: str) -> nn.Module:
    """The model with numbers in all of its weights, ready to run."""
    size = sum(array.size for _, array in tree_flatten(model.parameters()))
    if size > LARGEST:
        raise ValueError(f"{name} is not tiny: {size} parameters")
    weights = []
    for path, array in tree_flatten(model.parameters()):
        # zeros, as some weights begin, would hide what is computed with them
        if mx.issubdtype(array.dtype, mx.floating) and array.size and not mx.any(array).item():
            array = mx.random.normal(array.shape, scale=0.1).astype(array.dtype)
        weights.append((path, array))
    model.update(tree_unflatten(weights))
    model.eval()
    mx.eval(model.parameters())
    return model


def summary(outcomes: Iterable[Outcome]) -> str:
    """What came out of all, in a few lines."""
    outcomes = list(outcomes)
    run = [each for each in outcomes if not each.problem]
    exact = sum(all(each.exact.values()) and not each.notes for each in run)
    expected, own = sum(each.expected for each in run), sum(each.own for each in run)
    already = sum(min(each.already, each.expected) for each in run)
    fused = sum(min(each.fused, each.expected + each.own) for each in run)
    return (
        f"\n{len(run)} of {len(outcomes)} models run; {exact} are traced and replayed bit for bit; "
        f"of {expected} calls of the kernel {already} are seen as such, and "
        f"of {expected + own} attentions {fused} are fused where they are spelled out; "
        f"{sum(each.close for each in run)} models answer as before\n"
        f"not all good: {', '.join(each.name for each in outcomes if not each.good) or 'none'}"
    )
