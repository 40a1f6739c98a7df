"""Rows in which every key is masked: fused or not, each answers what its own spelling gives."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import fuser
from tests.empty_rows import CASES, SQUARE, TALL, Case, scores
from tests.empty_rows_filled import CASES as FILLED
from tests.empty_rows_sums import CASES as SUMS
from tests.spellings_base import distance, epsilon, numpy, sm

each = pytest.mark.parametrize("case", [*CASES, *SUMS, *FILLED], ids=lambda c: c.name)


def empty_row(case: Case) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """One empty row of the answer, and the values that its mean would take."""
    arguments = case.args()
    where = {SQUARE: (0, 0, 0), TALL: (0, 0, 0)}.get(case.args, (1, 0, 2))
    output = numpy(case.fn(*arguments))[0]
    return output[where], numpy(arguments[2])[0][where[:2]]


@each
def test_the_case_gives_what_it_says(case: Case) -> None:
    """The table itself is right, on this backend, for the program as it is written."""
    row, values = empty_row(case)
    if case.gives == "nan":
        assert np.isnan(row).all()
    elif case.gives == "zero":
        assert (row == 0).all()
    elif case.gives in ("mean", "uniform"):
        np.testing.assert_allclose(row, values.mean(0), atol=1e-2)
    elif case.gives == "scores":
        q, k, v, *_ = case.args()
        want = numpy(sm(scores(q, k)) @ v)[0][1, 0, 2]
        np.testing.assert_allclose(row, want, atol=1e-2)


@each
def test_fused_and_unfused_agree(case: Case) -> None:
    arguments = case.args()
    fast = fuser.optimize(case.fn, when="always")
    got, want = fast(*arguments), case.fn(*arguments)
    # beside -1e4 a float32 score keeps three decimals: two orders of the same sums differ by that much
    loose = 5e-3 if case.gives in ("scores", "uniform") else 0.0
    assert distance(numpy(got), numpy(want)) <= max(loose, 2 * epsilon((arguments, want)))
    if case.fuses:
        assert [region.verdict for region in fast.report.regions] == ["fused"]


@pytest.mark.parametrize(
    "shapes",
    [((2, 4, 5, 8), (2, 4, 0, 8)), ((2, 4, 0, 8), (2, 4, 7, 8)), ((0, 4, 5, 8), (0, 4, 7, 8))],
    ids=["no keys", "no queries", "no batch"],
)
def test_empty_axes(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    def fn(q, k, v):
        return sm(scores(q, k)) @ v

    q, k = (mx.ones(shape) for shape in shapes)
    got, want = fuser.optimize(fn)(q, k, k), fn(q, k, k)
    assert got.shape == want.shape and got.dtype == want.dtype
    assert distance(numpy(got), numpy(want)) == 0.0
