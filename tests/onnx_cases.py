"""ONNX's own node tests, run through the ONNX frontend: what passes, what is refused and why."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from onnx import TensorProto, numpy_helper
from onnx.backend.test.case.node import collect_testcases
from onnx.backend.test.case.test_case import TestCase

from fuser.errors import FuserError, TraceError, UnsupportedOperatorError
from fuser.frontends.onnx import OnnxProgram, load
from fuser.frontends.onnx_types import NUMPY_TYPES, to_host

# the expected values are NumPy's; a product in half precision may be off by a few of its last places
_HALF_RTOL = {"float16": 4 * 2.0**-10, "bfloat16": 2 * 2.0**-7}


class Outcome(NamedTuple):
    """What became of a case: `passed`, `refused` (with the reason) or `failed` (with what went wrong)."""

    verdict: str
    why: str = ""


@cache
def cases() -> dict[str, TestCase]:
    """Every node test of the installed onnx by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the expected values are computed by NumPy, overflows included
        return {case.name: case for case in collect_testcases(None)}


def run(case: TestCase, on_host: bool = False) -> Outcome:
    """Run a case; `on_host` gives the inputs as values known on the host, so that they are folded."""
    assert case.model is not None and case.data_sets is not None
    try:
        program = load(case.model)
    except UnsupportedOperatorError as error:
        return Outcome("refused", str(error))
    except FuserError as error:
        return Outcome("failed", f"{type(error).__name__}: {error}")
    for inputs, outputs in case.data_sets:
        outcome = _compare(case, program, inputs, outputs, on_host)
        if outcome.verdict != "passed":
            return outcome
    return Outcome("passed")


def _compare(case: TestCase, program: OnnxProgram, inputs: Any, outputs: Any, on_host: bool) -> Outcome:
    given = {info.name: _array(value) for info, value in zip(program.inputs, inputs, strict=True)}
    try:
        arguments = given if on_host else program.prepare(given)
        results = program(**arguments)
        mx.eval(results)
    except (UnsupportedOperatorError, TraceError) as error:
        return Outcome("refused", str(error))
    except FuserError as error:
        return Outcome("failed", f"{type(error).__name__}: {error}")
    for info, expected in zip(program.outputs, outputs, strict=True):
        wrong = _difference(case, to_host(results[info.name]), _array(expected))
        if wrong:
            return Outcome("failed", f"output {info.name}: {wrong}")
    return Outcome("passed")


def _array(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else value


def _difference(case: TestCase, got: Any, expected: Any) -> str:
    expected = np.asarray(expected)
    rtol = max(case.rtol, _HALF_RTOL.get(str(expected.dtype), 0))
    if got.shape != expected.shape:
        return f"shape {got.shape}, not {expected.shape}"
    if got.dtype != expected.dtype and expected.dtype in [NUMPY_TYPES[number] for number in NUMPY_TYPES][:14]:
        return f"type {got.dtype}, not {expected.dtype}"
    if expected.dtype.kind not in "biufc":
        got, expected = got.astype(np.float32), expected.astype(np.float32)
    elif got.dtype.kind not in "biufc":
        got = got.astype(np.float32)
    atol = case.atol
    if expected.dtype.kind == "f" and np.isfinite(expected).any():
        # the expected values carry rounding errors of their own where they should be zero
        atol = max(atol, 2.0**-22 * float(np.abs(expected[np.isfinite(expected)]).max()))
    try:
        np.testing.assert_allclose(got, expected, rtol=rtol, atol=atol)
    except AssertionError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        return " ".join(lines)[:300]
    return ""
