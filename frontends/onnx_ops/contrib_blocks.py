"""Matrices of few bits in blocks, each with a scale of its own, and products with them."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from fuser.frontends.onnx_ops.contrib import MS
from fuser.frontends.onnx_ops.index import safe
from fuser.frontends.onnx_ops.registry import Call, op

# the values that 4 bits stand for: bitsandbytes' FP4 (the highest bit is the sign) and NF4
_FP4 = (0, 5.208333333e-03, 0.66666667, 1, 0.33333333, 0.5, 0.16666667, 0.25)
_BNB4 = {
    0: (*_FP4, *(-value for value in _FP4)),
    1: (
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ),
}


def unpacked(packed: mx.array, bits: int, count: int) -> mx.array:
    """Small unsigned integers out of bytes, the low bits first, along the last axis."""
    if bits == 8:
        return packed[..., :count]
    shifts = mx.array(np.arange(0, 8, bits, dtype=np.uint8))
    parts = mx.right_shift(packed[..., None], shifts)
    values = mx.bitwise_and(parts, mx.array((1 << bits) - 1, dtype=mx.uint8))
    return values.reshape(*packed.shape[:-1], -1)[..., :count]


@op("MatMulNBits", domain=MS)
def matmul_nbits(
    call: Call,
    a: mx.array,
    packed: mx.array,
    scales: mx.array,
    zeros: mx.array | None = None,
    group_index: mx.array | None = None,
    bias: mx.array | None = None,
) -> mx.array:
    """Product with a matrix of few bits: MLX's own quantized product where the blocks fit it."""
    k, n, bits, block = (call.integer(name) for name in ("K", "N", "bits", "block_size"))
    if group_index is not None or call.integer("weight_prepacked", 0):
        raise call.refuse("g_idx, and weights packed for another device")
    if bits not in (2, 4, 8) or block < 16 or block & (block - 1):
        raise call.refuse(f"{bits} bits in blocks of {block}")
    blocks = -(-k // block)
    if packed.size != n * blocks * block * bits // 8 or scales.size != n * blocks or a.shape[-1] != k:
        raise call.invalid(f"{list(packed.shape)} and {list(scales.shape)} are no matrix of {k} by {n}")

    def offsets() -> mx.array:
        if zeros is None:
            return mx.full((n, blocks), 1 << (bits - 1), dtype=scales.dtype)
        if zeros.dtype == mx.uint8:
            return unpacked(zeros.reshape(n, -1), bits, blocks).astype(scales.dtype)
        return zeros.reshape(n, blocks).astype(scales.dtype)

    rates = scales.reshape(n, blocks)
    # of no rows MLX's product ends the process
    if block in (32, 64, 128) and k % block == 0 and a.dtype == scales.dtype and a.size:

        def convert() -> tuple[mx.array, ...]:
            # little-endian words of the same bytes are MLX's packing; its offset is added, not subtracted
            words = packed.reshape(n, -1).view(mx.uint32)
            return mx.array(words), mx.array(rates), -offsets() * rates

        words, rates, shifts = call.once("words", (1, 2, 3), convert)
        result = mx.quantized_matmul(a, words, rates, shifts, transpose=True, group_size=block, bits=bits)
    else:
        values = unpacked(packed.reshape(n, blocks, -1), bits, block).astype(scales.dtype)
        weight = ((values - offsets()[..., None]) * rates[..., None]).reshape(n, -1)[:, :k]
        result = mx.matmul(a, mx.transpose(weight.astype(a.dtype)))
    return result if bias is None else result + bias


@op("GatherBlockQuantized", domain=MS, narrow=True)
def gather_block_quantized(
    call: Call, data: mx.array, index: mx.array, scales: mx.array, zeros: mx.array | None = None
) -> mx.array:
    """Rows of a quantized table."""
    small = not isinstance(data, mx.array)
    table = call.array(data)
    offsets = None if zeros is None else call.array(zeros)
    bits = 8 if small else call.integer("bits", 4)
    axis = call.axis(call.integer("gather_axis", 0), table.ndim)
    along = call.axis(call.integer("quantize_axis", 1), table.ndim)
    if along != table.ndim - 1 or axis == along:
        raise call.refuse("blocks along another axis than the last, or rows along it")
    block = call.integer("block_size", 128)
    for other in (scales, offsets):
        if other is not None and (other.ndim != table.ndim or other.shape[axis] != table.shape[axis]):
            raise call.invalid(f"scales or zero points of shape {list(other.shape)} do not fit {list(table.shape)}")
    places = safe(call, index, table.shape[axis])
    rows, rates = mx.take(table, places, axis=axis), mx.take(scales, places, axis=axis)
    count = rows.shape[-1] * 8 // bits
    values = rows.astype(scales.dtype) if small else unpacked(rows, bits, count).astype(scales.dtype)
    middle: mx.array = mx.array(0 if small else 1 << (bits - 1), dtype=scales.dtype)
    if offsets is not None:
        picked = mx.take(offsets, places, axis=axis)
        picked = picked if small else unpacked(picked, bits, rates.shape[-1])
        middle = mx.repeat(picked.astype(scales.dtype), block, axis=-1)[..., :count]
    return (values - middle) * mx.repeat(rates, block, axis=-1)[..., :count]


@op("MatMulBnb4", domain=MS)
def matmul_bnb4(call: Call, a: mx.array, codes: mx.array, largest: mx.array) -> mx.array:
    """Product with a matrix as bitsandbytes stores it: 4 bits for each value, times the largest of its block."""
    k, n, block = (call.integer(name) for name in ("K", "N", "block_size"))
    table = _BNB4.get(call.integer("quant_type"))
    if not call.flag("transB", True):
        raise call.refuse("transB=0, the product of training's backward pass")
    if table is None or block < 1 or codes.size != -(-n * k // 2) or largest.size != -(-n * k // block):
        raise call.invalid(f"{codes.size} bytes and {largest.size} scales are no matrix of {k} by {n}")
    if a.shape[-1] != k:
        raise call.invalid(f"an array of shape {list(a.shape)} does not meet a matrix of {k} by {n}")

    def convert() -> tuple[mx.array, ...]:
        flat = codes.reshape(-1)
        # the first of two values is in the high bits
        high = mx.right_shift(flat, mx.array(4, dtype=mx.uint8))
        pairs = mx.stack([high, mx.bitwise_and(flat, mx.array(15, dtype=mx.uint8))], axis=-1)
        values = mx.take(mx.array(table, dtype=largest.dtype), pairs.reshape(-1)[: n * k], axis=0)
        return ((values * mx.repeat(largest.reshape(-1), block)[: n * k]).reshape(n, k).astype(a.dtype),)

    return mx.matmul(a, mx.transpose(call.once("weight", (1, 2), convert)[0]))
