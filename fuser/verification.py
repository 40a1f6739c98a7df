"""Fused beside unfused: the whole program, and each region alone on the same inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from fuser.execute import runner
from fuser.frontends import trees
from fuser.fusion import fuse_given, match
from fuser.optimized import given_state, name_of, traced_call
from fuser.patterns.attention import Attention
from fuser.report import Report
from fuser.rewrite import Rewriter

# of the largest value; what the kernel's order of summation may change
TOLERANCES = {mx.float32: 1e-4, mx.float16: 1e-2, mx.bfloat16: 4e-2, mx.float64: 1e-6}


@dataclass(frozen=True)
class Check:
    """One comparison: the largest difference, relative to the largest finite value of the unfused answer."""

    name: str
    error: float
    """Infinite where one answer is NaN or infinite and the other is not."""
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether the answers agree."""
        return self.error <= self.tolerance

    def __str__(self) -> str:
        return f"{'ok' if self.ok else 'DIFFERS'}: {self.name}: {self.error:.2e} (tolerance {self.tolerance:.0e})"


@dataclass(frozen=True)
class Verification:
    """What `verify` found; true when all answers agree."""

    outputs: tuple[Check, ...]
    regions: tuple[Check, ...]
    report: Report

    @property
    def ok(self) -> bool:
        """Whether every output and every region agrees."""
        return all(check.ok for check in (*self.outputs, *self.regions))

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        return "\n".join(map(str, (*self.outputs, *self.regions)))


def verify(fn: Callable[..., Any], /, *args: Any, rtol: float | None = None, **kwargs: Any) -> Verification:
    """See `fuser.verify`."""
    traced = traced_call(fn, args, kwargs)
    given = {node: slot.array for node, slot in given_state(traced).items()}
    inputs = [*trees.flatten((args, kwargs))[0], *(slot.array for slot in traced.places)]
    fused = fuse_given(traced.graph.copy(), given, name_of(fn), ours=True)
    unfused_outputs, fused_outputs = runner(traced.graph)(inputs), runner(fused.graph)(inputs)
    names = [f"output {name}" for name in trees.names(traced.results)]
    outputs = _checks(names, unfused_outputs, fused_outputs, rtol)

    both = traced.graph.copy()
    rewriter = Rewriter(both)
    regions = [result for _, result in match(traced.graph, given, ours=True)[0] if isinstance(result, Attention)]
    pairs = [(region, weighted) for region in regions for weighted in region.products_with_values]
    values = [(weighted.output, rewriter.replacement(region, weighted)[1]) for region, weighted in pairs]
    both.outputs = [value for pair in values for value in pair]
    both.prune()
    arrays = runner(both)(inputs)
    labels = [region.softmax.node.scope or traced.graph.label(region.softmax.node) for region, _ in pairs]
    return Verification(outputs, _checks(labels, arrays[::2], arrays[1::2], rtol), fused.report)


def _checks(
    names: Sequence[str], unfused: Sequence[mx.array], fused: Sequence[mx.array], rtol: float | None
) -> tuple[Check, ...]:
    return tuple(
        Check(name, difference(left, right), rtol if rtol is not None else TOLERANCES.get(left.dtype, 0.0))
        for name, left, right in zip(names, unfused, fused, strict=False)
    )


def difference(unfused: mx.array, fused: mx.array) -> float:
    """The largest difference, relative to the largest finite value of `unfused`."""
    if unfused.size == 0:
        return 0.0
    if unfused.dtype == mx.complex64:
        return max(difference(mx.real(unfused), mx.real(fused)), difference(mx.imag(unfused), mx.imag(fused)))
    left, right = (np.array(array.astype(mx.float64, stream=mx.cpu)) for array in (unfused, fused))
    finite = np.isfinite(left)
    if not (finite == np.isfinite(right)).all() or not np.array_equal(left[~finite], right[~finite], equal_nan=True):
        return math.inf
    if not finite.any():
        return 0.0
    largest = float(np.abs(left[finite]).max())
    error = float(np.abs(left[finite] - right[finite]).max())
    return error / largest if largest else error
