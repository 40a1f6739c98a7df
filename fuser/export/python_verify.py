"""A written program beside the model that it came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np

from fuser.errors import FuserError
from fuser.export.python_ir import ConvertError
from fuser.frontends.onnx import OnnxProgram

TOLERANCE = {mx.float16: 1e-2, mx.bfloat16: 4e-2}


def compare(source: tuple[str, Mapping[str, mx.array]], program: OnnxProgram, inputs: Mapping[str, mx.array]) -> bool:
    """Run both on the same inputs; false where the model does not run, raises `ConvertError` where they differ."""
    text, weights = source
    try:
        expected = program(**inputs)
    except FuserError:
        return False
    try:
        found = run(text, weights, inputs)
    except Exception as error:  # whatever a program may raise
        raise ConvertError(f"the written program fails: {type(error).__name__}: {error}") from error
    for name, right in expected.items():
        _check(name, found[name], right)
    return True


def run(text: str, weights: Mapping[str, mx.array], inputs: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """The outputs of a written program."""
    space: dict[str, Any] = {"__name__": "written", "__file__": "written.py"}
    exec(compile(text, "written.py", "exec", dont_inherit=True), space)
    root = space["load"].__annotations__["return"]
    model = root()
    model.load_weights(list(weights.items()))
    outputs: dict[str, mx.array] = model(**inputs)
    return outputs


def _check(name: str, found: mx.array, right: mx.array) -> None:
    if found.shape != right.shape or found.dtype != right.dtype:
        raise ConvertError(
            f"the written program gives {name!r} as {found.dtype} {list(found.shape)}, "
            f"not as {right.dtype} {list(right.shape)}"
        )
    kind = mx.complex64 if right.dtype == mx.complex64 else mx.float32
    a, b = np.array(found.astype(kind)), np.array(right.astype(kind))
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if same.all():
        return
    with np.errstate(all="ignore"):
        error = np.where(same, 0, np.abs(a - b)).max() / max(float(np.abs(b[np.isfinite(b)]).max(initial=0)), 1e-30)
    if not error <= TOLERANCE.get(right.dtype, 1e-5):
        raise ConvertError(f"the written program gives {name!r} {error:.1e} off")
