"""A kernel of ours that a GPU builds is tried before it is relied on; the GPUs are simulated on the host."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import fuser
from fuser.kernels import admission, checked, cost, flash_gpu, host, own, sdpa
from fuser.kernels.admission import backend
from tests.kernels_simulated import kernel

pytestmark = pytest.mark.skipif(
    backend() != "cpu" or host.compiler() is None or sys.platform != "linux", reason="no C++ compiler with fibers"
)


@pytest.fixture(autouse=True)
def anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(flash_gpu, "THREADS", 8)
    for cached in (flash_gpu.plan, checked.failure):
        cached.cache_clear()
    yield
    for cached in (flash_gpu.plan, checked.failure):
        cached.cache_clear()


def on_metal(patch: pytest.MonkeyPatch, made: Callable[..., Any]) -> None:
    for module in (own, sdpa, checked, flash_gpu, admission):
        patch.setattr(module, "backend", lambda: "metal")
    patch.setattr(flash_gpu, "kernel", made)
    patch.setattr(cost, "memory", lambda: 1 << 40)


def capped(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    scores = mx.tanh((q @ k.swapaxes(-1, -2)) * 0.2 / 5.0) * 5.0
    return mx.softmax(scores, axis=-1) @ v


QKV = [mx.random.normal((1, 2, 9, 16), key=key) for key in mx.random.split(mx.random.key(0), 3)]


@pytest.mark.parametrize(
    "given",
    [
        ((16, 16), "none", False, False, True),
        ((20, 12), "boolean", True, False, False),
        ((16, 16), "additive", False, True, True),
    ],
)
def test_right(given: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_metal(monkeypatch, kernel("metal", tmp_path))
    assert checked.failure(mx.float32, *given) is None


def test_called_where_it_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_metal(monkeypatch, kernel("metal", tmp_path))
    fast = fuser.optimize(capped, when="always")
    found, wanted = fast(*QKV), capped(*QKV)
    assert fast.report.counts["fused"] == 1 and fast.report.regions[0].kernel == "Metal, ours, softcap 5"
    assert np.abs(np.array(found) - np.array(wanted)).max() < 1e-6


def broken(*_: Any) -> Callable[..., Any]:
    def run(**_: Any) -> list[mx.array]:
        raise RuntimeError("no function 'fast' in library\nmore of it")

    return run


def wrong(*_: Any) -> Callable[..., Any]:
    return lambda output_shapes, output_dtypes, **_: [mx.zeros(output_shapes[0], output_dtypes[0])]


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (broken, "our kernel for it failed on this GPU (no function 'fast' in library)"),
        (wrong, "our kernel for it gives a wrong answer on this GPU"),
    ],
)
def test_not_called_where_it_fails(made: Callable[..., Any], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    on_metal(monkeypatch, made)
    fast = fuser.optimize(capped, when="always")
    found, wanted = fast(*QKV), capped(*QKV)
    (region,) = fast.report.regions
    assert region.verdict == "refused" and words in (region.reason or "")
    assert np.array_equal(np.array(found), np.array(wanted))
