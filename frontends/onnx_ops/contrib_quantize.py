"""Arithmetic on quantized arrays as ONNX Runtime's quantizer writes it: computed in float32, and quantized again."""

from __future__ import annotations

import mlx.core as mx

from fuser.frontends.onnx_ops.activation import leaky_relu, softmax, softmax_flattened
from fuser.frontends.onnx_ops.contrib import MS, embed_layer_normalization
from fuser.frontends.onnx_ops.linear import gemm
from fuser.frontends.onnx_ops.quantize import (
    dequantize,
    dynamic_quantize_linear,
    exact_product,
    qlinear_conv,
    quantize,
)
from fuser.frontends.onnx_ops.registry import Call, op
from fuser.frontends.onnx_ops.window import average_pool, channels_first, channels_last, global_average_pool, max_pool
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


@op("DynamicQuantizeMatMul", domain=MS)
def dynamic_quantize_matmul(
    call: Call,
    a: mx.array,
    b: mx.array,
    b_scale: mx.array,
    b_zero: mx.array | None = None,
    bias: mx.array | None = None,
) -> mx.array:
    """Product with a quantized matrix, of values that are quantized first."""
    quantized, scale, zero = dynamic_quantize_linear(call, a)
    return _scaled_product(quantized, b, scale * b_scale, zero, b_zero, bias)


@op("MatMulIntegerToFloat", domain=MS)
def matmul_integer_to_float(
    call: Call,
    a: mx.array,
    b: mx.array,
    a_scale: mx.array,
    b_scale: mx.array,
    a_zero: mx.array | None = None,
    b_zero: mx.array | None = None,
    bias: mx.array | None = None,
) -> mx.array:
    """Product of quantized matrices as floats."""
    return _scaled_product(a, b, a_scale * b_scale, a_zero, b_zero, bias)


def _scaled_product(
    a: mx.array,
    b: mx.array,
    scale: mx.array,
    a_zero: mx.array | None,
    b_zero: mx.array | None,
    bias: mx.array | None,
) -> mx.array:
    left, right = a.astype(mx.float32), b.astype(mx.float32)
    left = left if a_zero is None else left - a_zero.astype(mx.float32)
    right = right if b_zero is None else right - b_zero.astype(mx.float32)
    result = exact_product(left, right).astype(mx.float32) * scale
    return result if bias is None else result + bias


def _channels_first(call: Call, x: mx.array) -> mx.array:
    return channels_first(x) if call.flag("channels_last") else x


def _as_given(call: Call, y: Value) -> Value:
    return channels_last(call.array(y)) if call.flag("channels_last") else y


@op("QLinearConv", domain=MS)
def qlinear_convolution(call: Call, x: mx.array, *others: mx.array | None) -> Value:
    """Convolution of quantized values, channels last where asked for."""
    return _as_given(call, qlinear_conv(call, _channels_first(call, x), *others))


@op("QLinearAveragePool", "QLinearGlobalAveragePool", domain=MS, raw=True)
def qlinear_pool(
    call: Call, x: Value, x_scale: Value, x_zero: Value | None, scale: Value, zero: Value | None = None
) -> Value:
    """The mean of each window, or of each channel."""
    plain = _channels_first(call, _plain(call, x, x_scale, x_zero))
    pool = average_pool if call.operator == "QLinearAveragePool" else global_average_pool
    return _again(call, call.array(_as_given(call, pool(call, plain))), scale, zero, x)


@op("QLinearWhere", domain=MS, raw=True)
def qlinear_where(
    call: Call,
    condition: Value,
    x: Value,
    x_scale: Value,
    x_zero: Value,
    y: Value,
    y_scale: Value,
    y_zero: Value,
    scale: Value,
    zero: Value,
) -> Value:
    """One array or another."""
    chosen = mx.where(call.array(condition), _plain(call, x, x_scale, x_zero), _plain(call, y, y_scale, y_zero))
    return _again(call, chosen, scale, zero, x)


@op("NhwcMaxPool", domain=MS)
def nhwc_max_pool(call: Call, x: mx.array) -> mx.array:
    """The largest value of each window, with channels last."""
    return channels_last(call.array(max_pool(call, channels_first(x))))


@op("QEmbedLayerNormalization", domain=MS, raw=True)
def quantized_embed_layer_normalization(call: Call, *inputs: Value | None) -> tuple[mx.array, ...]:
    """The embeddings of BERT, quantized, normalized; and how many tokens of each sequence count."""
    given = [*inputs, *[None] * (18 - len(inputs))]
    tables = given[2:7]
    plain = [
        None if table is None or scale is None else _plain(call, table, scale, zero)
        for table, scale, zero in zip(tables, given[8:13], given[13:18], strict=True)
    ]
    tokens, segments, mask = (None if x is None else call.array(x) for x in (given[0], given[1], given[7]))
    words, positions, kinds, scale, shift = plain
    if tokens is None or words is None or positions is None or scale is None or shift is None:
        raise call.invalid("it has no tokens, or no tables")
    result: tuple[mx.array, ...] = embed_layer_normalization(
        call, tokens, segments, words, positions, kinds, scale, shift, mask
    )
    return result[:2]


@op("MatMulInteger16", domain=MS)
def matmul_integer16(call: Call, a: mx.array, b: mx.array) -> mx.array:
    """Product of matrices of 16 bits as int32: of their bytes, which floats add exactly."""
    sides = []
    for x in (a, b):
        wide = x.astype(mx.float32)
        high = mx.floor(wide / mx.array(256.0))
        sides.append((high, wide - high * mx.array(256.0)))
    total = mx.array(0)
    for left, unit in zip(sides[0], (256, 1), strict=True):
        for right, other in zip(sides[1], (256, 1), strict=True):
            total = total + exact_product(left, right) * mx.array(unit * other)
    return total
