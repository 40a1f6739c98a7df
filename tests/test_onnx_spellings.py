"""The table of spellings as small ONNX graphs: each is one call of the kernel there, too, and answers as it did."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import pytest

import fuser
from fuser.frontends.onnx import load
from fuser.model import Model
from tests.onnx_spellings import Unwritten, written
from tests.spellings import SPELLINGS
from tests.spellings_base import Spelling, check_answer, check_regions, leaves

# what indexes, assigns, counts or stops gradients has no operator here that would stand for it alone
UNWRITTEN = {
    "BitwiseBinary",
    "FloorDivide",
    "Gather",
    "Log",
    "LogAddExp",
    "MaskedScatter",
    "Reduce",
    "Remainder",
    "Scan",
    "Scatter",
    "ScatterAxis",
    "SliceUpdate",
    "Sqrt",
    "StopGradient",
}
each = pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda s: f"{s.topic}: {s.name}")


@pytest.fixture(autouse=True, scope="module")
def interpreted() -> Iterator[None]:
    """Each program runs once: compiling it takes longer than all else."""
    mx.disable_compile()
    yield
    mx.enable_compile()


def as_onnx(spelling: Spelling) -> Model:
    return Model(load(written(fuser.trace(spelling.fn, *spelling.args()))))


def test_most_of_the_table_is_written() -> None:
    unwritten = 0
    for spelling in SPELLINGS:
        try:
            written(fuser.trace(spelling.fn, *spelling.args()))
        except Unwritten:
            unwritten += 1
    assert len(SPELLINGS) - unwritten >= 500


@each
def test_the_graph_is_fused(spelling: Spelling) -> None:
    try:
        model = as_onnx(spelling)
    except Unwritten as error:
        assert str(error).split()[0] in UNWRITTEN
        return
    arguments = spelling.args()
    outputs = model(**{f"x{place}": array for place, array in enumerate(leaves(arguments))})

    check_regions(spelling, model.report.regions)
    check_answer(spelling, arguments, list(outputs.values()))
