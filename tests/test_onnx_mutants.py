"""Damaged models give the unfused program's answer or one typed error; `benchmarks/mutate_onnx.py` runs thousands."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from fuser.errors import FuserError
from fuser.frontends.onnx import load
from fuser.model import Model
from tests.onnx_mutants import KINDS, Source, mutant, sources


@cache
def well() -> list[Source]:
    return sources(())


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_models_give_the_answer_or_one_typed_error(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    for number in range(8):
        _, content, inputs = mutant(well(), kind, 1, number)
        path.write_bytes(content)
        try:
            program = load(path)
            got, expected = Model(program)(**inputs), program(**program.prepare(inputs))
            mx.eval(got, expected)
        except FuserError as error:
            assert "\n" not in str(error)
            continue
        for name, array in expected.items():
            np.testing.assert_allclose(np.array(got[name]), np.array(array), rtol=1e-3, atol=1e-5)
