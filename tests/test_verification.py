"""`optimize(verify=True)`: regions beside their unfused forms; what differs is left unfused, with a warning."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import fuser
from fuser.kernels import host

Q, K = (2, 4, 5, 8), (2, 4, 7, 8)


def normal(*shape: int) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(sum(shape)))


def attend(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    return mx.softmax(q @ k.swapaxes(-1, -2) * 0.3, axis=-1) @ v


def two(q: mx.array, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
    return attend(q, k, v), mx.softmax(q @ k.swapaxes(-1, -2) * 0.5, axis=-1) @ (v + 1)


def test_errors_are_in_the_report() -> None:
    fast = fuser.optimize(two, verify=True, when="always")
    fast(normal(*Q), normal(*K), normal(*K))
    errors = [region.error for region in fast.report.regions]
    assert len(errors) == 2 and all(error is not None and error < 1e-5 for error in errors)
    assert [region["error"] for region in fast.report.to_dict()["regions"]] == errors
    found = fuser.verify(two, normal(*Q), normal(*K), normal(*K))
    assert [region.error for region in found.report.regions] == [check.error for check in found.regions]


def test_nothing_is_compared_unless_asked() -> None:
    fast = fuser.optimize(two)
    fast(normal(*Q), normal(*K), normal(*K))
    assert [region.error for region in fast.report.regions] == [None, None]


def test_a_region_that_differs_is_left_unfused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that is wrong for one scale, as a driver's or a new version's might be."""
    kernel: Any = mx.fast.scaled_dot_product_attention

    def broken(q: mx.array, k: mx.array, v: mx.array, *, scale: float, **more: Any) -> mx.array:
        output: mx.array = kernel(q, k, v, scale=scale, **more)
        return output + 0.01 if scale == 0.5 else output

    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", broken)
    arguments = normal(*Q), normal(*K), normal(*K)
    fast = fuser.optimize(two, verify=True, when="always")
    with pytest.warns(RuntimeWarning, match="is not fused: its answer differs from the unfused one"):
        got = fast(*arguments)
    assert [region.verdict for region in fast.report.regions] == ["fused", "refused"]
    assert "when verified" in str(fast.report.regions[1].reason)
    for left, right in zip(got, two(*arguments), strict=True):
        np.testing.assert_allclose(np.array(left), np.array(right), atol=1e-5)
    # once for each signature
    fast(*arguments)
    assert fast.traces == 1
    assert not fuser.verify(two, *arguments)


def test_a_row_that_becomes_nan_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel: Any = mx.fast.scaled_dot_product_attention
    monkeypatch.setattr(
        mx.fast, "scaled_dot_product_attention", lambda *args, **more: kernel(*args, **more) * mx.array(float("nan"))
    )
    fast = fuser.optimize(attend, verify=True, when="always")
    with pytest.warns(RuntimeWarning, match="not fused"):
        fast(normal(*Q), normal(*K), normal(*K))
    region = fast.report.regions[0]
    assert region.verdict == "refused" and region.error == float("inf")
    assert region.to_dict()["error"] is None


def test_our_own_kernel_is_what_is_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    x = normal(1, 4, 256, 64)
    (region,) = fuser.explain(attend, x, x, x).regions
    if region.kernel is None or not region.kernel.startswith("CPU, ours"):
        pytest.skip("MLX's own call computes it here")
    assert fuser.verify(attend, x, x, x)
    right = host.attend
    monkeypatch.setattr(host, "attend", lambda *args, **kwargs: right(*args, **kwargs) * 1.5)
    found = fuser.verify(attend, x, x, x)
    assert not found.outputs[0].ok and not found.regions[0].ok
    fast = fuser.optimize(attend, verify=True, when="always")
    with pytest.warns(RuntimeWarning, match="is not fused"):
        answer = fast(x, x, x)
    assert mx.allclose(answer, attend(x, x, x), atol=1e-5) and fast.report.counts["refused"] == 1


def test_weights_that_are_rounded_on_the_way() -> None:
    """The kernel does not round them: what differs is the narrow type's rounding."""

    def rounded(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return mx.softmax(q @ k.swapaxes(-1, -2), axis=-1).astype(mx.bfloat16) @ v

    fast = fuser.optimize(rounded, verify=True, when="always")
    fast(normal(*Q), normal(*K), normal(*K))
    (region,) = fast.report.regions
    assert region.verdict == "fused" and region.error is not None and 1e-4 < region.error < 4e-2
    assert fuser.verify(rounded, normal(*Q), normal(*K), normal(*K))
