"""Products of matrices."""

from __future__ import annotations

import mlx.core as mx

from fuser.frontends.onnx_ops.math import const, reduced
from fuser.frontends.onnx_ops.registry import Call, op
from fuser.frontends.onnx_types import INTEGERS


def matmul(a: mx.array, b: mx.array) -> mx.array:
    """NumPy's matmul for any type; MLX multiplies matrices of floats only."""
    if a.dtype not in INTEGERS:
        return mx.matmul(a, b)
    left = a[None, :] if a.ndim == 1 else a
    right = b[:, None] if b.ndim == 1 else b
    product = reduced("sum", left[..., :, :, None] * right[..., None, :, :], -2, keep=False).astype(a.dtype)
    product = mx.squeeze(product, -2) if a.ndim == 1 else product
    return mx.squeeze(product, -1) if b.ndim == 1 else product


@op("MatMul")
def matmul_(call: Call, a: mx.array, b: mx.array) -> mx.array:
    """Product of matrices."""
    return matmul(a, b)


@op("Gemm")
def gemm(call: Call, a: mx.array, b: mx.array, c: mx.array | None = None) -> mx.array:
    """alpha * A' @ B' + beta * C."""
    if a.ndim != 2 or b.ndim != 2:
        raise call.invalid(f"its inputs must be matrices, not {list(a.shape)} and {list(b.shape)}")
    a = mx.transpose(a) if call.flag("transA") else a
    b = mx.transpose(b) if call.flag("transB") else b
    alpha, beta = call.number("alpha", 1.0), call.number("beta", 1.0)
    result = matmul(a, b)
    if alpha != 1:
        result = result * const(alpha, result)
    if c is None or beta == 0:
        return result
    return result + (c if beta == 1 else c * const(beta, c))
