"""Our kernel's sources for Metal and CUDA, every line of them run on the host, a fiber for each lane."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from fuser.kernels import flash_gpu, flash_mma, flash_wgmma, host
from fuser.kernels.admission import backend, hopper
from tests.kernels_reference import reference
from tests.kernels_simulated import has_halves, kernel

RNG = np.random.default_rng(11)
COMPILER = host.compiler()
pytestmark = pytest.mark.skipif(COMPILER is None or sys.platform != "linux", reason="no C++ compiler with fibers")


def normal(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(autouse=True)
def few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    # a threadgroup of two rows or four is as good as one of many
    monkeypatch.setattr(flash_gpu, "THREADS", 8)
    monkeypatch.setattr(flash_mma, "WARPS", 2)
    monkeypatch.setattr(flash_wgmma, "WARPS", 4)
    monkeypatch.setattr(flash_wgmma, "tile", lambda depth, width: 32)
    flash_gpu.plan.cache_clear()


def check(
    where: str, folder: Path, shapes: list[tuple[int, ...]], dtype: mx.Dtype, layout: str = "dense", **options: Any
) -> None:
    arrays = [mx.array(normal(*shape)).astype(dtype) for shape in shapes]
    given: dict[str, Any] = {
        name: mx.array(value) if isinstance(value, np.ndarray) else value for name, value in options.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        if where not in ("real", "hopper"):
            patch.setattr(flash_gpu, "kernel", kernel(where, folder, layout))
        given["cores"] = {"cores": "mma", "real": "mma", "groups": "wgmma", "hopper": "wgmma"}.get(where)
        found = np.array(flash_gpu.attend(arrays[0], arrays[1], arrays[2], scale=0.2, **given).astype(mx.float32))
    empty = options.pop("empty", 0.0)
    wanted = reference(*(np.array(array.astype(mx.float32)) for array in arrays), scale=0.2, **options)
    hidden = np.isnan(found)
    assert np.isnan(empty) == hidden.any() and (wanted[hidden] == 0).all()
    rounding = {mx.float32: 0.0, mx.float16: 2.0**-11, mx.bfloat16: 2.0**-8}[dtype] * np.abs(wanted)
    error = np.where(hidden, 0, np.abs(found - wanted)) - rounding
    # on tensor cores the weights are rounded to the type as well
    allowed = 2e-6 if dtype == mx.float32 else 4e-3 if dtype == mx.bfloat16 else 1e-3
    assert error.max() <= allowed * np.abs(wanted).max()


@pytest.mark.parametrize("where", ["metal", "cuda"])
def test_whole_rows(where: str, folder: Path) -> None:
    shapes: list[tuple[int, ...]] = [(2, 4, 5, 64), (2, 2, 21, 64), (2, 2, 21, 64)]
    check(where, folder, shapes, mx.float32)
    check(where, folder, shapes, mx.float32, ahead=0)
    check(where, folder, shapes, mx.float32, ahead=2, behind=3)
    # more queries than keys: the first rows see none
    check(where, folder, [(1, 2, 9, 64), (1, 1, 4, 64), (1, 1, 4, 64)], mx.float32, ahead=0, empty=np.nan)


@pytest.mark.parametrize("where", ["metal", "cuda"])
def test_everything_at_once(where: str, folder: Path) -> None:
    shapes: list[tuple[int, ...]] = [(2, 4, 7, 70), (2, 2, 19, 70), (2, 2, 19, 43)]
    more: dict[str, Any] = {"sinks": normal(4), "slopes": -0.1 * np.arange(1, 5, dtype=np.float32), "softcap": 5.0}
    check(where, folder, shapes, mx.float32, mask=normal(2, 1, 7, 19), ahead=1, behind=9, **more)
    check(where, folder, shapes, mx.float32, mask=normal(4, 1, 19), folded=True, **more)


@pytest.mark.parametrize("where", ["metal", "cuda"])
def test_half_types_and_hidden_keys(where: str, folder: Path) -> None:
    if COMPILER is None or not has_halves(COMPILER):
        pytest.skip("the compiler has no float16")
    shapes: list[tuple[int, ...]] = [(1, 2, 3, 256), (1, 1, 18, 256), (1, 1, 18, 256)]
    keep = RNG.random((1, 2, 3, 18)) > 0.4
    keep[0, 1, 2] = False
    check(where, folder, shapes, mx.float16, mask=keep)
    check(where, folder, shapes, mx.float16, mask=keep, empty=np.nan)


def check_tensor_cores(where: str, folder: Path, dtype: mx.Dtype) -> None:
    # more rows than a block has, and more keys than a tile
    shapes: list[tuple[int, ...]] = [(1, 4, 23, 48), (1, 2, 141, 48), (1, 2, 141, 40)]
    check(where, folder, shapes, dtype)
    check(where, folder, shapes, dtype, ahead=0)
    check(where, folder, shapes, dtype, ahead=2, behind=20)
    keep = RNG.random((1, 4, 23, 141)) > 0.4
    keep[0, 1, 2] = False
    check(where, folder, shapes, dtype, mask=keep, empty=np.nan)
    more: dict[str, Any] = {"sinks": normal(4), "slopes": -0.1 * np.arange(1, 5, dtype=np.float32), "softcap": 5.0}
    odd: list[tuple[int, ...]] = [(2, 4, 7, 37), (2, 2, 83, 37), (2, 2, 83, 43)]
    check(where, folder, odd, dtype, mask=normal(2, 1, 7, 83), ahead=1, behind=9, **more)
    check(where, folder, odd, dtype, mask=normal(4, 1, 83), folded=True, **more)
    for layout in ("rows first", "turned"):
        check(where, folder, shapes, dtype, layout, mask=keep, ahead=0, empty=np.nan)
        check(where, folder, odd, dtype, layout, mask=normal(2, 1, 7, 83), **more)
    wide: list[tuple[int, ...]] = [(1, 1, 5, 200), (1, 1, 70, 200), (1, 1, 70, 256)]
    check(where, folder, wide, dtype, ahead=0)


def check_parts(where: str, folder: Path, dtype: mx.Dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash_mma, "LEAST", 1)
    flash_gpu.plan.cache_clear()
    shapes: list[tuple[int, ...]] = [(2, 4, 1, 32), (2, 2, 200, 32), (2, 2, 200, 40)]
    check(where, folder, shapes, dtype)
    more: dict[str, Any] = {"sinks": normal(4), "slopes": -0.1 * np.arange(1, 5, dtype=np.float32), "softcap": 5.0}
    check(where, folder, shapes, dtype, mask=normal(2, 1, 1, 200), behind=150, **more)
    keep = RNG.random((2, 4, 1, 200)) > 0.4
    keep[0, 1], keep[1, 2, :, 70:] = False, False
    check(where, folder, shapes, dtype, mask=keep, empty=np.nan)
    assert flash_mma.splits(4, 200, 64) == 3


def test_tensor_cores(folder: Path) -> None:
    if COMPILER is None or not has_halves(COMPILER):
        pytest.skip("the compiler has no float16")
    check_tensor_cores("cores", folder, mx.float16)


def test_warpgroups(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if COMPILER is None or not has_halves(COMPILER):
        pytest.skip("the compiler has no float16")
    check_tensor_cores("groups", folder, mx.float16)
    # two of them share the keys
    monkeypatch.setattr(flash_wgmma, "WARPS", 8)
    flash_gpu.plan.cache_clear()
    check("groups", folder, [(1, 2, 75, 100), (1, 1, 90, 100), (1, 1, 90, 36)], mx.float16, ahead=0)


def test_keys_shared_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if COMPILER is None or not has_halves(COMPILER):
        pytest.skip("the compiler has no float16")
    check_parts("cores", folder, mx.float16, monkeypatch)


@pytest.mark.skipif(backend() != "cuda", reason="there is no GPU with tensor cores")
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_tensor_cores_of_a_gpu(folder: Path, dtype: mx.Dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash_mma, "WARPS", 4)
    check_tensor_cores("real", folder, dtype)
    check_parts("real", folder, dtype, monkeypatch)


@pytest.mark.skipif(not hopper(), reason="there is no GPU with warpgroups")
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_warpgroups_of_a_gpu(folder: Path, dtype: mx.Dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    check_tensor_cores("hopper", folder, dtype)


@pytest.mark.parametrize("where", ["metal", "cuda", "cores"])
def test_rows_hidden_by_the_lowest_number(where: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of them is the mean of the values, as in MLX's call, in parts of the keys as well."""
    if COMPILER is None or not has_halves(COMPILER):
        pytest.skip("the compiler has no float16")
    monkeypatch.setattr(flash_mma, "LEAST", 1)
    monkeypatch.setattr(flash_gpu, "kernel", kernel(where, folder))
    lowest = float(np.finfo(np.float32).min)
    q, k, v = (mx.array(normal(2, heads, rows, 32)).astype(mx.float16) for heads, rows in ((4, 1), (2, 200), (2, 200)))
    keep = RNG.random((2, 1, 1, 200)) > 0.4
    keep[0], keep[1, ..., 64:] = False, False
    for mask in (keep, np.where(keep, 0, lowest).astype(np.float32)):
        options: dict[str, Any] = {"fill": lowest, "empty": np.nan, "cores": "mma" if where == "cores" else None}
        found = np.array(flash_gpu.attend(q, k, v, scale=0.2, mask=mx.array(mask), **options).astype(mx.float32))
        plain = (np.array(each.astype(mx.float32)) for each in (q, k, v))
        wanted = reference(*plain, scale=0.2, mask=np.where(keep, 0, -1e30).astype(np.float32))
        assert np.abs(found - wanted).max() <= 1e-3 * np.abs(wanted).max()
