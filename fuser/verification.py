"""Fused beside unfused: the whole program, and each region alone on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx

from fuser.execute import runner
from fuser.frontends import trees
from fuser.fusion import fuse_given
from fuser.optimized import given_state, name_of, traced_call
from fuser.optimized_replay import Replay
from fuser.report import Report
from fuser.verification_checks import Check, checks, region_checks, with_errors


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
    found = region_checks(traced.graph, given, inputs, rtol=rtol)
    fused = fuse_given(traced.graph.copy(), given, name_of(fn), ours=True)
    unfused_outputs = runner(traced.graph)(inputs)
    # as an optimized program runs; that takes the key of the random numbers by itself
    fused_outputs = Replay(traced, fused.graph, compiled=True).outputs(inputs[: len(inputs) - traced.draws])
    names = [f"output {name}".strip() for name in trees.names(traced.results)]
    outputs = checks(names, unfused_outputs, fused_outputs, rtol)
    if rtol is None and found:
        # an output is as exact as the least exact region before it
        least = max(check.tolerance for check in found.values())
        outputs = tuple(replace(check, tolerance=max(check.tolerance, least)) for check in outputs)
    return Verification(outputs, tuple(found.values()), with_errors(fused.report, found))


def compared(
    unfused: Mapping[str, mx.array], fused: Mapping[str, mx.array], report: Report, rtol: float | None
) -> Verification:
    """Two answers by name."""
    names = [f"output {name}" for name in unfused]
    return Verification(checks(names, [*unfused.values()], [fused[name] for name in unfused], rtol), (), report)
