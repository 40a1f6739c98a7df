"""Every spelling of the table becomes one call of the kernel, and answers as it did."""

from __future__ import annotations

from collections import Counter

import pytest

import fuser
from tests.spellings import SPELLINGS
from tests.spellings_base import Spelling, check_answer, check_regions, distance, epsilon, numpy, truth

KERNEL = "ScaledDotProductAttention"
each = pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda s: f"{s.topic}: {s.name} [{s.level}]")


def test_the_table_is_large_and_its_names_are_unique() -> None:
    assert len(SPELLINGS) >= 200
    assert [key for key, n in Counter((s.topic, s.name) for s in SPELLINGS).items() if n > 1] == []
    assert {n for n in range(1, 31) if not any(s.name.startswith(f"inductor {n}") for s in SPELLINGS)} == set()


@each
def test_the_spelling_means_the_kernel(spelling: Spelling) -> None:
    """The table itself is right: the program, unfused, equals the kernel on the operands of its line."""
    arguments = spelling.args()
    output = spelling.fn(*arguments)
    assert distance(numpy(output), truth(spelling.ref, arguments)) <= 10 * epsilon((arguments, output))


@each
def test_the_spelling_is_fused(spelling: Spelling) -> None:
    arguments = spelling.args()
    fast = fuser.optimize(spelling.fn, when="always")
    output = fast(*arguments)

    check_regions(spelling, fast.report.regions)
    assert all(region.bytes_saved >= 0 and region.flops_saved >= 0 for region in fast.report.regions)
    check_answer(spelling, arguments, output)


@each
def test_the_graph_holds_one_call_with_the_heads_as_they_were(spelling: Spelling) -> None:
    graph, _ = fuser.fuse(fuser.trace(spelling.fn, *spelling.args()))
    calls = [node for node in graph.nodes if node.op == KERNEL]
    assert len(calls) == spelling.count
    query_heads, key_heads = spelling.heads
    for call in calls:
        q, k, v = (value.shape for value in graph.operands(call)[:3])
        assert len(q) == len(k) == len(v) == 4
        assert k[:3] == v[:3] and q[0] == k[0] and q[3] == k[3] and q[1] % k[1] == 0
        assert query_heads is None or q[1] == query_heads
        assert key_heads is None or k[1] == key_heads
