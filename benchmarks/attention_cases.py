"""The attentions that the benchmarks measure: as people write them, and as they would call the kernel by hand."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np


@dataclass(frozen=True)
class Case:
    """One attention: sizes, type, mask."""

    name: str
    batch: int
    heads: int
    shared: int
    queries: int
    keys: int
    depth: int
    dtype: mx.Dtype = mx.float16
    causal: bool = False
    softcap: float = 0.0
    window: int = 0
    """So many keys, itself the last, are all that a query of a causal case sees."""
    padded: bool = False
    """Some sequences of the batch are shorter: a mask of the keys is given with the arrays."""

    @property
    def scale(self) -> float:
        """One over the square root of the head size."""
        return 1 / math.sqrt(self.depth)

    @property
    def flops(self) -> float:
        """What both products cost, without what a causal mask spares."""
        return 4.0 * self.batch * self.heads * self.queries * self.keys * self.depth

    def arrays(self) -> list[mx.array]:
        """Queries, keys, values and, for a padded case, which keys are there."""
        rng = np.random.default_rng(0)
        shapes = (
            (self.batch, self.heads, self.queries, self.depth),
            (self.batch, self.shared, self.keys, self.depth),
            (self.batch, self.shared, self.keys, self.depth),
        )
        made = [mx.array(rng.standard_normal(shape, np.float32)).astype(self.dtype) for shape in shapes]
        if self.padded:
            made.append(mx.arange(self.keys)[None] < (self.keys - self.keys // 32 * mx.arange(self.batch))[:, None])
        mx.eval(made)
        return made

    def mask(self, keep: mx.array | None) -> mx.array | None:
        """Which scores count."""
        if self.padded and keep is not None:
            keep = keep[:, None, None, :]
        if not self.causal:
            return keep
        place = mx.arange(self.queries)[:, None] + (self.keys - self.queries)
        seen = mx.arange(self.keys)[None] <= place
        if self.window:
            seen = mx.logical_and(seen, mx.arange(self.keys)[None] > place - self.window)
        return seen if keep is None else mx.logical_and(seen, keep)

    def naive(self, q: mx.array, k: mx.array, v: mx.array, keep: mx.array | None = None) -> mx.array:
        """Attention as it is written out."""
        groups = self.heads // self.shared
        if groups > 1:
            k, v = mx.repeat(k, groups, axis=1), mx.repeat(v, groups, axis=1)
        scores = (q @ k.swapaxes(-1, -2)) * self.scale
        if self.softcap:
            scores = mx.tanh(scores / self.softcap) * self.softcap
        mask = self.mask(keep)
        if mask is not None:
            scores = mx.where(mask, scores, mx.array(-math.inf, scores.dtype))
        return mx.softmax(scores.astype(mx.float32), axis=-1).astype(q.dtype) @ v

    def by_hand(self, q: mx.array, k: mx.array, v: mx.array, keep: mx.array | None = None) -> mx.array:
        """The call of the kernel that an expert writes."""
        simple = self.causal and not self.padded and not self.window
        mask = "causal" if simple else self.mask(keep)
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=self.scale, mask=mask)


HALF, BRAIN = mx.float16, mx.bfloat16
CASES = (
    Case("BERT 32x12x512x64", 32, 12, 12, 512, 512, 64),
    Case("SigLIP 8x16x729x72", 8, 16, 16, 729, 729, 72),
    Case("Llama prefill 4096, 32/8, D 128", 1, 32, 8, 4096, 4096, 128, BRAIN, True),
    Case("Llama prefill 8192, 32/8, D 128", 1, 32, 8, 8192, 8192, 128, BRAIN, True),
    Case("decode, batch 16, cache 8192, 32/8", 16, 32, 8, 1, 8192, 128, BRAIN),
    Case("SD UNet 2x8x4096x40", 2, 8, 8, 4096, 4096, 40),
    Case("Flux 1x24x4608x128", 1, 24, 24, 4608, 4608, 128, BRAIN),
    Case("fp32 4x12x512x64", 4, 12, 12, 512, 512, 64, mx.float32),
    Case("D 100, 8x8x1024", 8, 8, 8, 1024, 1024, 100),
    Case("D 36, causal, 8x8x1024", 8, 8, 8, 1024, 1024, 36, BRAIN, True),
    Case("D 256, 2x8x2048", 2, 8, 8, 2048, 2048, 256),
    Case("D 256, causal, 8/4, 4096", 1, 8, 4, 4096, 4096, 256, BRAIN, True),
    Case("window of 1024, 32/8, 4096", 1, 32, 8, 4096, 4096, 128, BRAIN, True, window=1024),
    Case("causal and padding, 4x32/8x2048", 4, 32, 8, 2048, 2048, 128, BRAIN, True, padded=True),
    Case("decode with padding, 16x32/8x4096", 16, 32, 8, 1, 4096, 128, BRAIN, padded=True),
    Case("Gemma 2 4096, 8/4, D 256, softcap 50", 1, 8, 4, 4096, 4096, 256, BRAIN, True, 50.0),
    Case("softcap, 8/4, D 128, 4096", 1, 8, 4, 4096, 4096, 128, BRAIN, True, 50.0),
)


def peak(run: Callable[..., mx.array], arrays: list[mx.array]) -> int:
    """The memory that a call takes at the peak, over what is held before."""
    mx.eval(run(*arrays))
    mx.synchronize()
    mx.clear_cache()
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(run(*arrays))
    return mx.get_peak_memory() - held


def timed(
    runs: Sequence[Callable[..., mx.array] | None],
    arrays: list[mx.array],
    seconds: float = 2.0,
    most: int = 60,
    calls: int = 1,
) -> list[float]:
    """The median time of a call of each in milliseconds; they take turns, and turns at being first.

    Each turn is so many `calls`, one after the other without waiting, so that what a call costs the processor is hidden
    behind the work of the one before, as it is in a program that goes on.
    """
    times: list[list[float]] = [[] for _ in runs]
    for run in runs:
        for _ in range(3 if run else 0):
            mx.eval(run(*arrays) if run else [])
    start = time.perf_counter()
    while len(times[0]) < 5 or (len(times[0]) < most and time.perf_counter() - start < seconds):
        first = len(times[0]) % len(runs)
        for place in [*range(first, len(runs)), *range(first)]:
            run, found = runs[place], times[place]
            before = time.perf_counter()
            for _ in range(calls - 1):
                mx.async_eval(run(*arrays) if run else [])
            mx.eval(run(*arrays) if run else [])
            found.append((time.perf_counter() - before) / calls)
    return [statistics.median(found) * 1e3 if run else math.nan for run, found in zip(runs, times, strict=True)]


def difference(found: Any, wanted: Any) -> float:
    """The largest difference, relative to the largest value."""
    left, right = (np.array(each.astype(mx.float32)) for each in (found, wanted))
    return float(np.abs(left - right).max() / np.abs(right).max())
