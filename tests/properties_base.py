"""What must hold of a random program: fused where whole, left alone where broken, right in both."""

from __future__ import annotations

from typing import Any

import numpy as np

import fuser
from tests.spellings_base import distance, epsilon, leaves, numpy
from tests.spellings_random import Plan, Program


def tolerance(program: Program, output: Any, unfused: float) -> float:
    """Rounding of the inputs' type, or what the unfused program itself is wrong by."""
    return max(4 * unfused, 4 * epsilon((program.arguments(), output)))


def whole(plan: Plan) -> tuple[list[str], str | None]:
    """What is wrong with a whole attention once it is optimized, and the kind of its mask."""
    program = Program(plan)
    arguments = program.arguments()
    want, plain = program.answer(), program.run(*arguments)
    unfused = distance(numpy(plain), want)
    assert unfused <= 40 * epsilon((arguments, plain)), "the generator is wrong"

    fast = fuser.optimize(program.run, when="always")
    output = fast(*arguments)
    found = [f"{r.verdict}: {r.reason}" for r in fast.report.regions if r.verdict != "fused"]
    if len(fast.report.regions) != 1:
        found.append(f"{len(fast.report.regions)} regions; {fast.report.notes}")
    if [x.dtype for x in leaves(output)] != [x.dtype for x in leaves(plain)]:
        found.append("another dtype")
    error, bound = distance(numpy(output), want), tolerance(program, output, unfused)
    if not error <= bound:
        found.append(f"off by {error:.2e}, where {bound:.2e} is rounding")
    return found, fast.report.regions[0].mask if fast.report.regions else None


def broken(plan: Plan) -> list[str]:
    """What is wrong with a near-attention once it is optimized."""
    program = Program(plan)
    arguments = program.arguments()
    fast = fuser.optimize(program.run)
    output, plain = fast(*arguments), program.run(*arguments)
    found = [f"fused: {r.name}" for r in fast.report.regions if r.verdict == "fused"]
    pairs = zip(numpy(output), numpy(plain), strict=True)
    if not all(np.array_equal(got, want, equal_nan=True) for got, want in pairs):
        found.append("another answer")
    return found
