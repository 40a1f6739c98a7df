"""Quantized values and arithmetic."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from onnx import TensorProto

from fuser.frontends.onnx_ops.cast import SMALL_INTEGERS, cast
from fuser.frontends.onnx_ops.linear import matmul
from fuser.frontends.onnx_ops.registry import Call, op
from fuser.frontends.onnx_ops.window import convolve
from fuser.frontends.onnx_types import (
    CARRIERS,
    HALVES,
    MLX_TYPES,
    Items,
    Narrow,
    Value,
    onnx_type,
    to_host,
    type_name,
)


def _limits(number: int) -> tuple[int, int] | None:
    if number in SMALL_INTEGERS:
        return SMALL_INTEGERS[number]
    dtype = MLX_TYPES.get(number)
    if dtype is not None and dtype in (mx.int8, mx.uint8, mx.int16, mx.uint16, mx.int32):
        info = mx.iinfo(dtype)
        return int(info.min), int(info.max)
    return None


def _spread(call: Call, values: mx.array, shape: tuple[int, ...], axis: int) -> mx.array:
    """Scales or zero points laid out so that they broadcast with an array: for all, for each slice, or for blocks."""
    if values.size == 1:
        return values.reshape(())
    if values.ndim == 1:
        axis = call.axis(axis, len(shape))
        if values.shape[0] != shape[axis]:
            raise call.invalid(f"{values.shape[0]} scales do not fit an axis of {shape[axis]}")
        return values.reshape(-1, *(1,) * (len(shape) - axis - 1))
    if values.ndim != len(shape):
        raise call.invalid(f"scales of shape {list(values.shape)} do not fit {list(shape)}")
    axis = call.axis(axis, len(shape))
    block = call.integer("block_size", 0) or -(-shape[axis] // values.shape[axis])
    if values.shape[axis] != -(-shape[axis] // block):
        raise call.invalid(f"scales of shape {list(values.shape)} do not fit {list(shape)} in blocks of {block}")
    return mx.repeat(values, block, axis=axis)[tuple(slice(size) for size in shape)]


def quantize(
    call: Call, x: mx.array, scale: mx.array, zero: Value | None, to: int, axis: int, precision: mx.Dtype
) -> mx.array | Narrow:
    """x / scale + zero, rounded and cut to the range of type `to`."""
    shape = tuple(x.shape)
    ratio = x.astype(precision) / _spread(call, scale.astype(precision), shape, axis)
    limits = _limits(to)
    if limits is None:
        if zero is not None:
            ratio = ratio + _spread(call, call.array(zero).astype(precision), shape, axis)
        return cast(call, ratio, to, call.flag("saturate", True))
    whole = mx.round(ratio).astype(mx.float32)
    if zero is not None and not _is_zero(zero):
        whole = whole + _spread(call, call.array(zero).astype(mx.float32), shape, axis)
    clipped = mx.clip(whole, mx.array(float(limits[0])), mx.array(float(limits[1])))
    if to in CARRIERS:
        return Narrow(clipped.astype(CARRIERS[to]), to)
    return clipped.astype(MLX_TYPES[to])


def _is_zero(value: Value) -> bool:
    return isinstance(value, np.ndarray) and not value.astype(np.float32).any()


@op("QuantizeLinear", raw=True)
@op("QuantizeLinear", domain="com.microsoft", raw=True)
def quantize_linear(call: Call, x: Value, scale: Value, zero: Value | None = None) -> Value:
    """Quantization for all, along an axis, or in blocks."""
    to = call.integer("output_dtype", 0) or (TensorProto.UINT8 if zero is None else onnx_type(zero))
    steps = call.array(scale)
    chosen = call.integer("precision", 0)
    if chosen and chosen not in MLX_TYPES:
        raise call.refuse(f"precision {type_name(chosen)}")
    precision = MLX_TYPES[chosen] if chosen else steps.dtype
    if call.version < 19 or precision not in (mx.float32, mx.float64, *HALVES):
        precision = mx.float32
    result = quantize(call, call.array(x), steps, zero, to, call.integer("axis", 1), precision)
    return _settle(result, x, scale, zero)


def _settle(result: mx.array | Narrow, *inputs: Value | None) -> Value:
    """On the host what was computed from host values only."""
    known = all(item is None or isinstance(item, np.ndarray) for item in inputs)
    return to_host(result) if known else result


def dequantize(call: Call, x: mx.array, scale: mx.array, zero: Value | None, axis: int, dtype: mx.Dtype) -> mx.array:
    """(x - zero) * scale in type `dtype`."""
    shape = tuple(x.shape)
    wide = mx.float32 if dtype in HALVES else dtype
    centered = x.astype(wide)
    if zero is not None and not _is_zero(zero):
        centered = centered - _spread(call, call.array(zero).astype(wide), shape, axis)
    return centered.astype(dtype) * _spread(call, scale.astype(dtype), shape, axis)


@op("DequantizeLinear", raw=True)
@op("DequantizeLinear", domain="com.microsoft", raw=True)
def dequantize_linear(call: Call, x: Value, scale: Value, zero: Value | None = None) -> Value:
    """The values that quantized ones stand for."""
    steps = call.array(scale)
    number = call.integer("output_dtype", 0)
    if number and number not in MLX_TYPES:
        raise call.refuse(f"output type {type_name(number)}")
    dtype = MLX_TYPES[number] if number else steps.dtype
    if isinstance(scale, Narrow) and not number:
        raise call.refuse(f"scales of type {type_name(scale.type)} without an output type")
    result = dequantize(call, call.array(x), steps, zero, call.integer("axis", 1), dtype)
    return _settle(result, x, scale, zero)


@op("DynamicQuantizeLinear")
def dynamic_quantize_linear(call: Call, x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """Quantization to uint8 by the array's own range."""
    zero, top = mx.array(0.0), mx.array(255.0)
    low = mx.minimum(mx.min(x), zero) if x.size else zero
    high = mx.maximum(mx.max(x), zero) if x.size else zero
    scale = (high - low) / top
    safe = mx.where(mx.equal(scale, zero), mx.array(1.0), scale)
    point = mx.round(mx.clip(-low / safe, zero, top))
    result = mx.clip(mx.round(x / safe) + point, zero, top)
    return result.astype(mx.uint8), scale, point.astype(mx.uint8)


def _centered(call: Call, x: mx.array, zero: mx.array | None, rows: bool) -> mx.array:
    """x - zero in float32, which holds it exactly; zero points for rows or for columns."""
    wide = x.astype(mx.float32)
    if zero is None:
        return wide
    if zero.ndim == 1 and zero.size > 1:
        zero = zero[:, None] if rows else zero
    return wide - zero.astype(mx.float32)


def exact_product(a: mx.array, b: mx.array) -> mx.array:
    """Product of matrices of integers of 9 bits (in float32) as int32, with no rounding."""
    depth = a.shape[-1]
    if depth <= 256:  # 2 ** 8 * 2 ** 16 fits a float32's mantissa
        return matmul(a, b).astype(mx.int32)
    sixteen = mx.array(16.0)
    high = mx.floor(a / sixteen)
    low = a - high * sixteen
    total = mx.array(0)
    for start in range(0, depth, 4096):
        part = slice(start, start + 4096)
        right = b[part] if b.ndim == 1 else b[..., part, :]
        upper, lower = (matmul(x[..., part], right).astype(mx.int32) for x in (high, low))
        total = total + upper * mx.array(16) + lower
    return total


@op("MatMulInteger")
def matmul_integer(
    call: Call, a: mx.array, b: mx.array, a_zero: mx.array | None = None, b_zero: mx.array | None = None
) -> mx.array:
    """Product of quantized matrices as int32."""
    return exact_product(_centered(call, a, a_zero, True), _centered(call, b, b_zero, False))


def _requantized(call: Call, exact: mx.array, factor: mx.array, zero: mx.array, number: int) -> mx.array | Narrow:
    limits = _limits(number)
    if limits is None:
        raise call.refuse(f"quantized results of type {type_name(number)}")
    whole = mx.round(exact.astype(mx.float32) * factor) + zero.astype(mx.float32)
    clipped = mx.clip(whole, mx.array(float(limits[0])), mx.array(float(limits[1])))
    return Narrow(clipped.astype(CARRIERS[number]), number) if number in CARRIERS else clipped.astype(MLX_TYPES[number])


@op("QLinearMatMul", raw=True)
def qlinear_matmul(
    call: Call,
    a: Value,
    a_scale: Value,
    a_zero: Value,
    b: Value,
    b_scale: Value,
    b_zero: Value,
    y_scale: Value,
    y_zero: Value,
) -> mx.array | Narrow:
    """Product of quantized matrices, quantized again."""
    if any(isinstance(item, Narrow | Items) for item in (a, b)):
        raise call.refuse("quantized products of types that MLX does not have")
    left, right, zero = call.array(a), call.array(b), call.array(y_zero)
    exact = exact_product(
        _centered(call, left, call.array(a_zero), True), _centered(call, right, call.array(b_zero), False)
    )
    rows, columns = call.array(a_scale).astype(mx.float32), call.array(b_scale).astype(mx.float32)
    rows = rows[:, None] if rows.ndim == 1 and rows.size > 1 else rows
    factor = rows * columns / call.array(y_scale).astype(mx.float32)
    return _requantized(call, exact, factor, zero, onnx_type(y_zero))


def _exact_convolution(call: Call, x: mx.array, weight: mx.array) -> mx.array:
    depth = weight.size // max(1, weight.shape[0])
    if depth <= 256:
        return convolve(call, x, weight, None).astype(mx.int32)
    if depth > 4096:
        raise call.refuse(f"a quantized convolution over {depth} values, which float32 cannot add exactly")
    sixteen = mx.array(16.0)
    high = mx.floor(x / sixteen)
    upper = convolve(call, high, weight, None).astype(mx.int32)
    return upper * mx.array(16) + convolve(call, x - high * sixteen, weight, None).astype(mx.int32)


def _filters(zero: mx.array | None, weight: mx.array) -> mx.array:
    wide = weight.astype(mx.float32)
    if zero is None:
        return wide
    return wide - (zero.reshape(-1, *(1,) * (weight.ndim - 1)) if zero.size > 1 else zero.reshape(())).astype(
        mx.float32
    )


@op("ConvInteger")
def conv_integer(
    call: Call, x: mx.array, weight: mx.array, x_zero: mx.array | None = None, w_zero: mx.array | None = None
) -> mx.array:
    """Convolution of quantized values as int32."""
    wide = x.astype(mx.float32) if x_zero is None else x.astype(mx.float32) - x_zero.reshape(()).astype(mx.float32)
    return _exact_convolution(call, wide, _filters(w_zero, weight))


@op("QLinearConv")
def qlinear_conv(
    call: Call,
    x: mx.array,
    x_scale: mx.array,
    x_zero: mx.array,
    weight: mx.array,
    w_scale: mx.array,
    w_zero: mx.array,
    y_scale: mx.array,
    y_zero: mx.array,
    bias: mx.array | None = None,
) -> mx.array | Narrow:
    """Convolution of quantized values, quantized again."""
    wide = x.astype(mx.float32) - x_zero.reshape(()).astype(mx.float32)
    exact = _exact_convolution(call, wide, _filters(w_zero, weight))
    shape = (-1, *(1,) * (x.ndim - 2))
    exact = exact if bias is None else exact + bias.reshape(shape)
    factor = x_scale.reshape(()) * (w_scale.reshape(shape) if w_scale.size > 1 else w_scale.reshape(()))
    return _requantized(call, exact, factor / y_scale.reshape(()), y_zero.reshape(()), onnx_type(y_zero))
