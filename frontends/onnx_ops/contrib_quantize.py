"""Arithmetic on quantized arrays as ONNX Runtime's quantizer writes it: computed in float32, and quantized again."""

from __future__ import annotations

import mlx.core as mx

from fuser.frontends.onnx_ops.activation import leaky_relu, softmax, softmax_flattened
from fuser.frontends.onnx_ops.contrib import MS
from fuser.frontends.onnx_ops.linear import gemm
from fuser.frontends.onnx_ops.quantize import dequantize, quantize
from fuser.frontends.onnx_ops.registry import Call, op
from fuser.frontends.onnx_types import Value, onnx_type


def _plain(call: Call, x: Value, scale: Value, zero: Value | None) -> mx.array:
    return dequantize(call, call.array(x), call.array(scale), zero, 0, mx.float32)


def _again(call: Call, y: mx.array, scale: Value, zero: Value | None, like: Value) -> Value:
    return quantize(call, y, call.array(scale), zero, onnx_type(like if zero is None else zero), 0, mx.float32)


@op("QLinearAdd", "QLinearMul", domain=MS, raw=True)
def qlinear_binary(
    call: Call,
    a: Value,
    a_scale: Value,
    a_zero: Value | None,
    b: Value,
    b_scale: Value,
    b_zero: Value | None,
    scale: Value,
    zero: Value | None = None,
) -> Value:
    """The sum or product of two arrays."""
    left, right = _plain(call, a, a_scale, a_zero), _plain(call, b, b_scale, b_zero)
    return _again(call, left + right if call.operator == "QLinearAdd" else left * right, scale, zero, a)


@op("QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax", domain=MS, raw=True)
def qlinear_activation(
    call: Call, x: Value, x_scale: Value, x_zero: Value | None, scale: Value, zero: Value | None = None
) -> Value:
    """An activation; a softmax is that of the opset in the attribute."""
    plain = _plain(call, x, x_scale, x_zero)
    if call.operator == "QLinearSigmoid":
        y = mx.sigmoid(plain)
    elif call.operator == "QLinearLeakyRelu":
        y = leaky_relu(call, plain)
    else:
        y = (softmax if call.integer("opset", 13) >= 13 else softmax_flattened)(call, plain)
    return _again(call, y, scale, zero, x)


@op("QLinearConcat", domain=MS, raw=True)
def qlinear_concat(call: Call, scale: Value, zero: Value, *parts: Value) -> Value:
    """Arrays of scales of their own, one after the other."""
    if not parts or len(parts) % 3:
        raise call.invalid("its inputs are not arrays with scales and zero points")
    arrays = [_plain(call, *parts[place : place + 3]) for place in range(0, len(parts), 3)]
    axis = call.axis(call.integer("axis"), arrays[0].ndim)
    return _again(call, mx.concatenate(arrays, axis=axis), scale, zero, parts[0])


@op("QGemm", domain=MS, raw=True)
def qgemm(
    call: Call,
    a: Value,
    a_scale: Value,
    a_zero: Value,
    b: Value,
    b_scale: Value,
    b_zero: Value,
    c: Value | None = None,
    scale: Value | None = None,
    zero: Value | None = None,
) -> Value:
    """A product and an int32 bias in its scale; float32 where no scale of the output is given."""
    left = _plain(call, a, a_scale, a_zero)
    right = dequantize(call, call.array(b), call.array(b_scale), b_zero, 0 if call.flag("transB") else 1, mx.float32)
    bias = None
    if c is not None:
        unit = call.array(a_scale) * call.array(b_scale) * mx.array(call.number("alpha", 1.0))
        bias = call.array(c).astype(mx.float32) * unit
    y = gemm(call, left, right, bias)
    return y if scale is None else _again(call, y, scale, zero, a)
