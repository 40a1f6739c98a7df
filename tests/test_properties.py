"""Random attentions and near-attentions: fused where whole, refused where broken, and never wrong.

FUSER_EXAMPLES raises the number of programs, and lets the random seed go free.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from hypothesis import HealthCheck, event, given, settings

import fuser
from tests.spellings_base import distance, epsilon, leaves, numpy
from tests.spellings_random import Plan, Program, plans

EXAMPLES = int(os.environ.get("FUSER_EXAMPLES", "0"))
profile = settings(
    max_examples=EXAMPLES or 60,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def tolerance(program: Program, output: Any, unfused: float) -> float:
    """Rounding of the inputs' type, or what the unfused program itself is wrong by."""
    return max(4 * unfused, 4 * epsilon((program.arguments(), output)))


@given(plans())
@profile
def test_every_whole_attention_is_fused_and_right(plan: Plan) -> None:
    program = Program(plan)
    arguments = program.arguments()
    want, plain = program.answer(), program.run(*arguments)
    unfused = distance(numpy(plain), want)
    assert unfused <= 40 * epsilon((arguments, plain)), "the generator is wrong"

    fast = fuser.optimize(program.run)
    output = fast(*arguments)
    assert [(r.verdict, r.reason) for r in fast.report.regions] == [("fused", None)]
    assert [x.dtype for x in leaves(output)] == [x.dtype for x in leaves(plain)]
    assert distance(numpy(output), want) <= tolerance(program, output, unfused)
    event(f"mask {fast.report.regions[0].mask}")


@given(plans(broken=True))
@profile
def test_every_broken_attention_is_left_as_it_is(plan: Plan) -> None:
    program = Program(plan)
    arguments = program.arguments()
    fast = fuser.optimize(program.run)
    output, plain = fast(*arguments), program.run(*arguments)
    assert "fused" not in {region.verdict for region in fast.report.regions}
    for got, want in zip(numpy(output), numpy(plain), strict=True):
        assert np.array_equal(got, want, equal_nan=True)
    event(plan.broken)
