"""Every architecture of mlx-lm, built tiny: traced and replayed, bit for bit, and its attentions found again.

    python -m benchmarks.mlx_lm_sweep [NAME ...]

Of each model, a prefill, a decode step with a cache and a chunk of three tokens after it are run as they are, and by
`fuser.optimize(model, fuse=False)`, whose answers and caches must have the same bits. Then the call of the kernel is
replaced by an attention spelled out, as older code has it, and fuser must find each again. A line for each model.
"""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

import fuser
from benchmarks.mlx_lm_tiny import architectures, build

STEPS = {"prefill": [1, 5, 9, 3, 7, 2, 8], "decode": [4], "chunk": [6, 1, 3]}
KERNEL = mx.fast.scaled_dot_product_attention


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
    """Let models call `function` for the kernel; the list grows by one for each call."""
    calls: list[None] = []

    def counted(*args: Any, **kwargs: Any) -> mx.array:
        calls.append(None)
        result: mx.array = function(*args, **kwargs)
        return result

    mx.fast.scaled_dot_product_attention = counted
    try:
        yield calls
    finally:
        mx.fast.scaled_dot_product_attention = KERNEL


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
    expected: int = 0
    """Attentions of the spelled-out model, in all steps."""
    fused: int = 0
    close: bool = True
    """Whether the fused answers are those of the spelled-out model."""
    reasons: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def __str__(self) -> str:
        if self.problem:
            return f"{self.name:24} cannot be run: {self.problem}"
        wrong = [step for step, same in self.exact.items() if not same]
        line = f"{self.name:24} {'exact' if not wrong else 'DIFFERS in ' + ', '.join(wrong):8}"
        line += f" fused {self.fused} of {self.expected}{'' if self.close else ', DIFFERS'} ({self.seconds:.1f} s)"
        lines = [line, *(f"    original run: {note[:150]}" for note in sorted(self.notes))]
        return "\n".join([*lines, *(f"    {count} x {reason[:150]}" for reason, count in self.reasons.most_common())])


def sweep(name: str) -> Outcome:
    """Try one architecture."""
    outcome = Outcome(name)
    start = time.perf_counter()
    try:
        model = build(name)
        mx.eval(model(mx.array([STEPS["prefill"]]), cache=make_prompt_cache(model)))
    except (Exception, SystemExit) as error:
        outcome.problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:150]
        return outcome
    _exact(model, outcome)
    _fused(model, outcome)
    outcome.seconds = time.perf_counter() - start
    return outcome


def _exact(model: nn.Module, outcome: Outcome) -> None:
    replay = fuser.optimize(model, fuse=False)
    wanted_cache, cache = make_prompt_cache(model), make_prompt_cache(model)
    for step, tokens in STEPS.items():
        wanted = model(mx.array([tokens]), cache=wanted_cache)
        found = replay(mx.array([tokens]), cache=cache)
        outcome.exact[step] = same_bits(wanted, found) and same_bits(arrays_of(wanted_cache), arrays_of(cache))
        outcome.notes.update(note for note in replay.report.notes if "original" in note)


def _fused(model: nn.Module, outcome: Outcome) -> None:
    fast = fuser.optimize(model)
    wanted_cache, cache = make_prompt_cache(model), make_prompt_cache(model)
    with kernel(spelled_out) as calls:
        for tokens in STEPS.values():
            calls.clear()
            wanted = model(mx.array([tokens]), cache=wanted_cache)
            outcome.expected += len(calls)
            found = fast(mx.array([tokens]), cache=cache)
            outcome.fused += fast.report.counts["fused"]
            outcome.close &= bool(mx.allclose(wanted, found, rtol=1e-3, atol=1e-3, equal_nan=True).item())
            missed = [region for region in fast.report.regions if region.verdict == "refused"]
            outcome.reasons.update(f"{region.name}: {region.reason}" for region in missed)


def arrays_of(tree: Any) -> Any:
    """The arrays in a cache."""
    if isinstance(tree, list | tuple):
        return [arrays_of(each) for each in tree]
    return [each for _, each in tree_flatten(list(vars(tree).values())) if isinstance(each, mx.array)]


def same_bits(left: Any, right: Any) -> bool:
    """Whether two trees hold the same arrays, bit for bit."""
    lefts, rights = tree_flatten([left]), tree_flatten([right])
    if [path for path, _ in lefts] != [path for path, _ in rights]:
        return False
    return all(
        a.shape == b.shape and a.dtype == b.dtype and bytes(memoryview(_words(a))) == bytes(memoryview(_words(b)))
        for (_, a), (_, b) in zip(lefts, rights, strict=True)
    )


def _words(array: mx.array) -> mx.array:
    return mx.contiguous(array).view(mx.uint16) if array.dtype == mx.bfloat16 else mx.contiguous(array)


def main() -> None:
    outcomes = []
    for name in sys.argv[1:] or architectures():
        outcomes.append(sweep(name))
        print(outcomes[-1], flush=True)
    run = [each for each in outcomes if not each.problem]
    exact = sum(all(each.exact.values()) and not each.notes for each in run)
    found = sum(each.fused for each in run)
    print(f"\n{len(run)} of {len(outcomes)} models run; {exact} are traced and replayed bit for bit;", end=" ")
    print(f"{found} of {sum(each.expected for each in run)} attentions fused,", end=" ")
    print(f"{sum(each.close for each in run)} models answer as before")


if __name__ == "__main__":
    main()
