"""Every near-attention is refused with its reason, and answers as it did, bit for bit."""

from __future__ import annotations

from collections import Counter

import mlx.core as mx
import numpy as np
import pytest

import fuser
from tests.negatives import NEGATIVES, TRAPS
from tests.negatives_base import Negative
from tests.spellings_base import distance, double, epsilon, numpy

each = pytest.mark.parametrize("near", NEGATIVES, ids=lambda n: n.name)
trapped = pytest.mark.parametrize("near", TRAPS, ids=lambda n: n.name)


def test_the_table_is_large_and_its_names_are_unique() -> None:
    assert len(NEGATIVES) >= 80
    assert [name for name, n in Counter(n.name for n in [*NEGATIVES, *TRAPS]).items() if n > 1] == []


@pytest.mark.parametrize("near", [n for n in [*NEGATIVES, *TRAPS] if n.like], ids=lambda n: n.name)
def test_it_is_another_program_than_it_looks(near: Negative) -> None:
    """The table itself is right: mistaken for the attention that it resembles, it would answer otherwise."""
    assert near.like is not None
    arguments = near.args()
    assert distance(numpy(near.fn(*arguments)), numpy(near.like(*arguments))) > 1e-2


@each
def test_it_is_refused_with_its_reason(near: Negative) -> None:
    arguments = near.args()
    fast = fuser.optimize(near.fn)
    output = fast(*arguments)

    regions = fast.report.regions
    assert "fused" not in {region.verdict for region in regions}, "fused what is not the kernel's"
    assert regions or near.maybe
    assert all(region.reason and region.at for region in regions)
    fitting = [
        r for r in regions if r.verdict in near.verdicts and any(w in (r.reason or "").lower() for w in near.words)
    ]
    assert fitting or not regions, [(r.verdict, r.reason) for r in regions]

    for got, want in zip(numpy(output), numpy(near.fn(*arguments)), strict=True):
        assert np.array_equal(got, want, equal_nan=True)


@trapped
def test_its_answer_is_its_own(near: Negative) -> None:
    arguments = near.args()
    fast = fuser.optimize(near.fn)
    output = fast(*arguments)
    q, k = arguments[:2]
    if q.shape[2] > k.shape[2]:  # then the kernel's causal leaves rows without keys, which backends answer unlike
        assert "causal" not in {region.mask for region in fast.report.regions}
    with mx.stream(mx.cpu):
        want = numpy(near.fn(*double(arguments)))
    unfused = distance(numpy(near.fn(*arguments)), want)
    assert distance(numpy(output), want) <= max(4 * unfused, epsilon((arguments, output)))
