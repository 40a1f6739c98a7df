"""The report: what it counts, how it prints, and its JSON."""

from __future__ import annotations

import io
import json
import math
from typing import Any

import mlx.core as mx
import pytest
from rich.console import Console

import fuser
from fuser import Region, Report, TensorType
from fuser.report_remedies import OTHERWISE
from fuser.report_text import COLUMNS, cells, summary_of
from tests.negatives import NEGATIVES

VERDICTS = ["fused", "already fused", "refused", "not attention"]
FIELDS = {"verdict", "reason", "at", "name", "q", "k", "v", "scale", "mask", "query_heads", "key_heads"}


def naive(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    k, v = mx.repeat(k, 4, axis=1), mx.repeat(v, 4, axis=1)
    hidden = mx.triu(mx.full((q.shape[2], k.shape[2]), -math.inf), k=1)
    return mx.softmax(q @ k.swapaxes(-1, -2) * 0.25 + hidden, axis=-1) @ v


def everything(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    """One softmax for each verdict."""
    fused = naive(q, k, v)
    called = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.5)
    wide = mx.repeat(k, 4, axis=1)
    sine = mx.softmax(mx.sin(q @ wide.swapaxes(-1, -2)) * 30, axis=-1) @ wide
    return fused + called + sine + mx.softmax(q, axis=-1)


@pytest.fixture(scope="module")
def report() -> Report:
    q, k, v = mx.zeros((1, 8, 6, 16)), mx.zeros((1, 2, 6, 16)), mx.zeros((1, 2, 6, 16))
    return fuser.explain(everything, q, k, v)


def test_every_softmax_is_there_with_its_verdict(report: Report) -> None:
    assert report.counts == dict.fromkeys(VERDICTS, 1)
    assert sorted(region.verdict for region in report.regions) == sorted(VERDICTS)


def test_a_reason_is_missing_only_when_fused(report: Report) -> None:
    for region in report.regions:
        assert (region.reason is None) == (region.verdict == "fused")
        assert region.at and region.name


def test_a_fused_region_says_what_it_is(report: Report) -> None:
    (region,) = (region for region in report.regions if region.verdict == "fused")
    assert region.q == TensorType((1, 8, 6, 16), mx.float32)
    assert region.k == region.v == TensorType((1, 2, 6, 16), mx.float32)
    assert region.scale == 0.25 and region.mask == "causal"
    assert (region.query_heads, region.key_heads) == (8, 2)
    # scores and weights of 8 heads, and keys and values repeated for 6 more
    assert region.bytes_saved == 4 * (2 * 8 * 6 * 6 + 2 * 6 * 6 * 16)
    # two products, for each of 8 heads and 15 cells above the diagonal
    assert region.flops_saved == 2 * 8 * 15 * (16 + 16)


def test_to_dict_is_the_documented_format(report: Report) -> None:
    found = report.to_dict()
    assert {key: found[key] for key in ("format", "version", "counts")} == {
        "format": "mlx-fuser-report",
        "version": 1,
        "counts": dict.fromkeys(VERDICTS, 1),
    }
    assert found["program"] == "everything"
    assert list(found["counts"]) == VERDICTS
    assert len(found["regions"]) == 4
    for region in found["regions"]:
        assert set(region) >= FIELDS
        assert region["verdict"] in VERDICTS
    (fused,) = (region for region in found["regions"] if region["verdict"] == "fused")
    assert fused["q"] == {"shape": [1, 8, 6, 16], "dtype": "float32"}
    assert fused["k"] == fused["v"] == {"shape": [1, 2, 6, 16], "dtype": "float32"}
    assert fused["reason"] is None and fused["scale"] == 0.25


def test_json_holds_the_same(report: Report) -> None:
    assert json.loads(report.to_json()) == report.to_dict()


@pytest.mark.parametrize("scale", [None, 1 / 3])
def test_a_scale_that_is_computed_is_null(scale: float | None) -> None:
    type = TensorType((1, 1, 2, 4), mx.bfloat16)
    region = Region("fused", None, "Softmax", "attn", type, type, type, scale, "none", 1, 1)
    entry: dict[str, Any] = json.loads(json.dumps(region.to_dict()))
    assert entry["scale"] == scale and entry["q"]["dtype"] == "bfloat16"


def test_it_prints_a_line_for_each_softmax(report: Report) -> None:
    head, *lines = str(report).splitlines()
    assert head.startswith("everything: ") and all(f"1 {verdict}" in head for verdict in VERDICTS)
    assert len(lines) == 4
    for region, line in zip(report.regions, lines, strict=True):
        assert line.strip().startswith(f"{region.verdict}: {region.name}")
        assert (region.reason or "mask causal") in line


def test_a_prompt_shows_what_print_shows(report: Report) -> None:
    assert repr(report) == str(report) and repr(report.regions[0]) == str(report.regions[0])


def test_what_is_refused_says_what_to_change(report: Report) -> None:
    for region in report.regions:
        assert (region.remedy is not None) == (region.verdict == "refused")
        assert region.to_dict()["remedy"] == region.remedy
        assert f"-> {region.remedy}" in str(region) or region.verdict != "refused"


def test_every_kind_of_reason_has_a_remedy_of_its_own() -> None:
    met = set()
    for near in NEGATIVES:
        for region in fuser.explain(near.fn, *near.args()).regions:
            if region.verdict == "refused":
                assert region.remedy != OTHERWISE, f"{region.reason}: give it a line in fuser/report_remedies.py"
                met.add(region.remedy)
    assert len(met) > 20


def test_a_table_at_every_width(report: Report) -> None:
    for width in (40, 80, 200):
        console = Console(width=width, file=io.StringIO(), record=True)
        console.print(report)
        shown = console.export_text()
        assert all(len(line) <= width for line in shown.splitlines())
        for word in ("8→2", "6×6", "causal", "float32", "kernel", "memory", "FLOPs", "-6.91", "-7.68 k", "→ "):
            assert word in shown
        words = " ".join(shown.split())
        for region in report.regions:
            assert region.name in words and (region.verdict == "already fused" or (region.reason or "") in words)


def test_softmaxes_that_share_a_reason_share_a_line() -> None:
    others = tuple(Region("not attention", "no values", "at", f"layers.{i}.router") for i in range(48))
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(Report(others))
    last = console.export_text().splitlines()[-1].strip()
    assert last == "layers.0.router, layers.1.router, layers.2.router and 45 more: no values"


def test_what_mlx_computes_step_by_step_saves_nothing_here() -> None:
    def fused(kernel: str) -> Region:
        type = TensorType((1, 2, 4, 8), mx.float32)
        return Region("fused", None, "a", "a", type, type, type, bytes_saved=4000, flops_saved=10, kernel=kernel)

    stepwise = fused("CPU, unfused: MLX has no fused kernel there")
    both = summary_of(Report((stepwise, fused("CPU, ours"))))
    assert both.startswith("2 of 2 attentions fused (on this machine MLX computes 1 of them step by step); 4 kB less")
    assert "less" not in summary_of(Report((stepwise,)))
    memory = cells(stepwise)[COLUMNS.index("memory")], cells(fused("CPU, ours"))[COLUMNS.index("memory")]
    assert memory == ("(-4 kB)", "-4 kB")


def test_an_empty_report_says_so() -> None:
    report = Report(program="f", notes=("the original program runs: it reads a value",))
    assert str(report) == "f: no softmax\n  the original program runs: it reads a value"
    assert report.to_dict()["notes"] == ["the original program runs: it reads a value"]
    assert report.counts == dict.fromkeys(VERDICTS, 0)


def test_before_the_first_call_the_report_is_empty() -> None:
    fast = fuser.optimize(naive)
    assert fast.report.regions == () and fast.report.program == "naive"


def test_the_report_is_of_the_signature_last_run() -> None:
    fast = fuser.optimize(naive)
    for length in (4, 7, 4):
        fast(mx.zeros((1, 4, length, 8)), mx.zeros((1, 1, length, 8)), mx.zeros((1, 1, length, 8)))
        (region,) = fast.report.regions
        assert region.q is not None and region.q.shape[2] == length
    assert set(fast.report.seconds) >= {"match", "rewrite"} and fast.report.nodes > 0
