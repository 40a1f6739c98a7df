"""The report: what it counts, how it prints, and its JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import mlx.core as mx
import pytest

import fuser
from fuser import Region, Report, TensorType

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
    capped = mx.softmax(mx.tanh(q @ wide.swapaxes(-1, -2)) * 30, axis=-1) @ wide
    return fused + called + capped + mx.softmax(q, axis=-1)


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
