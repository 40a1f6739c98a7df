"""The published JSON schema holds for what reports are, and not for what they are not."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import mlx.core as mx
import pytest
from click.testing import CliRunner

import fuser
from fuser.cli import main
from fuser.report import Region, Report
from tests.conftest import ROOT
from tests.test_report import everything

SCHEMA = json.loads((ROOT / "fuser" / "report.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    q, k = mx.zeros((1, 8, 6, 16)), mx.zeros((1, 2, 6, 16))
    found: dict[str, Any] = json.loads(fuser.explain(everything, q, k, k).to_json())
    return found


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_a_report_with_every_verdict_is_valid(report: dict[str, Any]) -> None:
    VALIDATOR.validate(report)
    assert all(report["counts"].values())


def test_an_empty_report_is_valid() -> None:
    VALIDATOR.validate(Report(program="f", notes=("it reads a value",)).to_dict())


def test_the_schema_describes_every_key(report: dict[str, Any]) -> None:
    assert set(report) == set(SCHEMA["properties"])
    described = SCHEMA["$defs"]["region"]["properties"]
    assert set(Region("refused", "", "", "").to_dict()) == set(described)


@pytest.mark.parametrize("model", ["llama__sdpa__dyn18", "gemma2__eager__ts17", "t5__eager__ts17"])
def test_what_the_command_writes_is_valid(models: Path, model: str) -> None:
    result = CliRunner().invoke(main, ["report", str(models / model / "model.onnx"), "--json", "-"])
    assert result.exit_code == 0, result.output
    VALIDATOR.validate(json.loads(result.stdout))


BREAKS: dict[str, Any] = {
    "another format": lambda r: r.update(format="else"),
    "another version": lambda r: r.update(version=2),
    "no counts": lambda r: r.pop("counts"),
    "a verdict of its own": lambda r: r["regions"][0].update(verdict="maybe"),
    "fused, with a reason": lambda r: r["regions"][0].update(verdict="fused", reason="because"),
    "refused, without a reason": lambda r: r["regions"][0].update(verdict="refused", reason=None),
    "a shape that is no number": lambda r: r["regions"][0].update(q={"shape": ["a"] * 4, "dtype": "float32"}),
    "no name": lambda r: r["regions"][0].pop("name"),
}


@pytest.mark.parametrize("change", BREAKS.values(), ids=BREAKS)
def test_what_is_no_report_is_not_valid(report: dict[str, Any], change: Any) -> None:
    broken = copy.deepcopy(report)
    change(broken)
    assert not VALIDATOR.is_valid(broken)
