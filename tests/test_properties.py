"""Random attentions and near-attentions: fused where whole, refused where broken, and never wrong.

FUSER_EXAMPLES raises the number of programs, and lets the random seed go free; `benchmarks/random_programs.py` runs
many.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import mlx.core as mx
import pytest
from hypothesis import HealthCheck, event, given, settings

from tests.properties_base import broken, whole
from tests.spellings_random import Plan, plans

EXAMPLES = int(os.environ.get("FUSER_EXAMPLES", "0"))
profile = settings(
    max_examples=EXAMPLES or 250,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(autouse=True, scope="module")
def interpreted() -> Iterator[None]:
    """Each program runs once: compiling it takes longer than all else."""
    mx.disable_compile()
    yield
    mx.enable_compile()


@given(plans())
@profile
def test_every_whole_attention_is_fused_and_right(plan: Plan) -> None:
    found, mask = whole(plan)
    assert found == []
    event(f"mask {mask}")


@given(plans(broken=True))
@profile
def test_every_broken_attention_is_left_as_it_is(plan: Plan) -> None:
    assert broken(plan) == []
    event(plan.broken)
