"""Our own kernel against float64, on the machine that runs the tests: every line of its body."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import fuser
from fuser.kernels import blocks, host, own
from fuser.kernels.admission import backend
from tests.kernels_reference import reference

Options = dict[str, Any]
Size = tuple[int, int, int, int, int, int, int]
RNG = np.random.default_rng(7)

# batch, query heads, key heads, queries, keys, head size, size of values
SIZES: list[Size] = [
    (2, 4, 2, 5, 7, 8, 8),
    (1, 3, 3, 17, 33, 64, 64),
    (2, 8, 2, 70, 131, 72, 40),
    (1, 4, 1, 1, 301, 128, 128),
    (1, 2, 2, 101, 61, 100, 101),
    (1, 2, 1, 65, 65, 256, 256),
    (1, 1, 1, 3, 1, 5, 3),
    (1, 6, 2, 33, 129, 192, 128),
]


def normal(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


FORMS: dict[str, Callable[[Size], Options]] = {
    "plain": lambda s: {},
    "causal": lambda s: {"ahead": 0},
    "window": lambda s: {"ahead": 0, "behind": 20},
    "window on both sides": lambda s: {"ahead": 3, "behind": 2},
    "softcap, causal": lambda s: {"softcap": 20.0, "ahead": 0},
    "low softcap": lambda s: {"softcap": 1.5},
    "sinks": lambda s: {"sinks": normal(s[1])},
    "slopes": lambda s: {"slopes": -0.05 * np.arange(1, s[1] + 1).astype(np.float32), "ahead": 0},
    "slopes on both sides": lambda s: {"slopes": -0.05 * np.arange(1, s[1] + 1).astype(np.float32), "folded": True},
    "keys hidden": lambda s: {"mask": RNG.random((s[0], 1, 1, s[4])) > 0.3},
    "boolean, sinks": lambda s: {"mask": RNG.random((s[0], s[1], s[3], s[4])) > 0.5, "sinks": normal(s[1])},
    "rows hidden": lambda s: {"mask": (RNG.random((s[3], s[4])) > 0.5) & (np.arange(s[3])[:, None] % 3 > 0)},
    "bias, sinks, causal": lambda s: {"mask": normal(1, s[1], s[3], s[4]), "sinks": normal(s[1]), "ahead": 0},
    "bias for all heads": lambda s: {"mask": normal(s[3], s[4])},
    "everything": lambda s: {
        "mask": normal(s[0], 1, s[3], s[4]),
        "sinks": normal(s[1]),
        "slopes": -0.01 * np.arange(1, s[1] + 1).astype(np.float32),
        "softcap": 5.0,
        "ahead": 1,
        "behind": 40,
    },
}


def check(size: Size, options: Options, dtype: mx.Dtype) -> None:
    batch, heads, shared, rows, columns, depth, width = size
    shapes = (batch, heads, rows, depth), (batch, shared, columns, depth), (batch, shared, columns, width)
    arrays = [mx.array(normal(*shape)).astype(dtype) for shape in shapes]
    given: Options = {
        name: mx.array(value) if isinstance(value, np.ndarray) else value for name, value in options.items()
    }
    scale = 2 * depth**-0.5
    found = own.attend(arrays[0], arrays[1], arrays[2], scale=scale, **given)
    assert found.dtype == dtype and found.shape == (batch, heads, rows, width)
    q, k, v = (np.array(array.astype(mx.float32)) for array in arrays)
    wanted = reference(q, k, v, scale=scale, **options)
    error = np.abs(np.array(found.astype(mx.float32)) - wanted)
    # what rounding to the type alone may take
    rounding = {mx.float32: 0.0, mx.float16: 2.0**-11, mx.bfloat16: 2.0**-8}[dtype] * np.abs(wanted)
    allowed = 2e-6 if dtype == mx.float32 else 1e-3
    assert (error - rounding).max() <= allowed * np.abs(wanted).max()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_float32(size: Size, form: str) -> None:
    check(size, FORMS[form](size), mx.float32)


@pytest.mark.parametrize("form", FORMS)
def test_blocks_of_numpy(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "ROWS", 16)
    monkeypatch.setattr(blocks, "COLUMNS", 32)
    for size in SIZES:
        options = FORMS[form](size)
        batch, heads, shared, rows, columns, depth, width = size
        q, k, v = (
            normal(batch, heads, rows, depth),
            normal(batch, shared, columns, depth),
            normal(batch, shared, columns, width),
        )
        wanted = reference(q, k, v, scale=0.3, **options)
        found = blocks.attend(q, k, v, scale=0.3, **options)
        assert found.dtype == np.float32
        assert np.abs(found - wanted).max() <= 2e-6 * np.abs(wanted).max()


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize("form", ["plain", "everything"])
@pytest.mark.parametrize("size", [SIZES[2], SIZES[5]], ids=str)
def test_half_types(size: Size, form: str, dtype: mx.Dtype) -> None:
    check(size, FORMS[form](size), dtype)


@pytest.mark.parametrize("length", range(1, 36))
def test_every_length(length: int) -> None:
    check((1, 2, 1, length, 2 * length + 1, 16, 16), {"ahead": 0}, mx.float32)


def test_numbers_that_are_none_stay_none() -> None:
    q = mx.ones((1, 1, 2, 8))
    k = mx.ones((1, 1, 3, 8))
    found = own.attend(mx.where(mx.arange(2)[:, None] == 0, mx.nan, q), k, k, scale=1.0)
    assert mx.isnan(found[0, 0, 0]).all() and mx.array_equal(found[0, 0, 1], k[0, 0, 0])


def test_without_a_compiler_numpy_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    if backend() != "cpu":
        pytest.skip("a GPU's kernels are compiled by MLX")
    for name, value in (("CXX", "no-such-compiler"), ("PATH", "")):
        monkeypatch.setenv(name, value)
    host.library.cache_clear()
    try:
        assert host.compiler() is None and host.library() is None
        check(SIZES[2], FORMS["everything"](SIZES[2]), mx.float32)
        program = fuser.explain(lambda q: mx.softmax(q @ q.swapaxes(-1, -2), axis=-1) @ q, mx.zeros((1, 8, 512, 64)))
        assert "numpy" in (program.regions[0].kernel or "")
    finally:
        host.library.cache_clear()


def test_a_compiler_that_fails_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("MLX_FUSER_CACHE", str(tmp_path))
    host.library.cache_clear()
    try:
        assert host.library() is None
    finally:
        host.library.cache_clear()


def test_rows_of_the_lowest_number_are_uniform() -> None:
    q, v = mx.ones((1, 1, 2, 8)), mx.random.normal((1, 1, 5, 8))
    found = own.attend(q, v, v, scale=1.0, mask=mx.full((2, 5), -1e30))
    assert mx.allclose(found, mx.broadcast_to(v.mean(2, keepdims=True), found.shape), atol=1e-6)
