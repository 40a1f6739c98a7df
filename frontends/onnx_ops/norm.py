"""Normalizations."""

from __future__ import annotations

import mlx.core as mx

from fuser.frontends.onnx_ops.math import const, reduced
from fuser.frontends.onnx_ops.registry import Call, op
from fuser.frontends.onnx_types import HALVES, MLX_TYPES, Host


def normalized(x: mx.array, axes: list[int], epsilon: float) -> tuple[mx.array, mx.array, mx.array]:
    """`x` with mean 0 and variance 1 over `axes`, the mean and the inverse of the deviation."""
    mean = reduced("mean", x, axes)
    centered = x - mean
    variance = reduced("mean", mx.square(centered), axes)
    inverse = mx.rsqrt(variance + const(epsilon, x))
    return centered * inverse, mean, inverse


def _stash(call: Call, x: mx.array) -> mx.array:
    stash = MLX_TYPES.get(call.integer("stash_type", 1), mx.float32)
    return x.astype(stash) if x.dtype in HALVES else x


@op("LayerNormalization")
@op("LayerNormalization", domain="com.microsoft")
def layer_normalization(
    call: Call, x: mx.array, scale: mx.array, bias: mx.array | None = None
) -> tuple[mx.array, mx.array, mx.array]:
    """Normalization over the axes from `axis` on."""
    axis = call.axis(call.integer("axis", -1), x.ndim)
    result, mean, inverse = normalized(_stash(call, x), list(range(axis, x.ndim)), call.number("epsilon", 1e-5))
    result = result.astype(x.dtype) * scale
    return result if bias is None else result + bias, mean, inverse


def rms(x: mx.array, axes: list[int], epsilon: float) -> mx.array:
    """`x` with a mean square of 1."""
    return x * mx.rsqrt(reduced("mean", mx.square(x), axes) + const(epsilon, x))


@op("RMSNormalization")
def rms_normalization(call: Call, x: mx.array, scale: mx.array) -> mx.array:
    """Normalization by the root mean square over the axes from `axis` on."""
    axis = call.axis(call.integer("axis", -1), x.ndim)
    result = rms(_stash(call, x), list(range(axis, x.ndim)), call.number("epsilon", 1e-5))
    return result.astype(x.dtype) * scale


def _channel(values: mx.array, x: mx.array) -> mx.array:
    return values.reshape(-1, *(1,) * (x.ndim - 2))


@op("InstanceNormalization")
def instance_normalization(call: Call, x: mx.array, scale: mx.array, bias: mx.array) -> mx.array:
    """Normalization of each channel of each sample."""
    result = normalized(x, list(range(2, x.ndim)), call.number("epsilon", 1e-5))[0]
    return result * _channel(scale, x) + _channel(bias, x)


@op("GroupNormalization")
def group_normalization(call: Call, x: mx.array, scale: mx.array, bias: mx.array) -> mx.array:
    """Normalization of groups of channels; scale and bias are for each group before opset 21, then for each channel."""
    groups = call.integer("num_groups")
    if groups < 1 or x.shape[1] % groups:
        raise call.invalid(f"{x.shape[1]} channels cannot be put into {groups} groups")
    wide = _stash(call, x)
    split = wide.reshape(x.shape[0], groups, -1)
    result = normalized(split, [2], call.number("epsilon", 1e-5))[0].reshape(x.shape).astype(x.dtype)
    if call.version < 21:
        scale, bias = mx.repeat(scale, x.shape[1] // groups), mx.repeat(bias, x.shape[1] // groups)
    return result * _channel(scale, x) + _channel(bias, x)


@op("BatchNormalization")
def batch_normalization(
    call: Call, x: mx.array, scale: mx.array, bias: mx.array, mean: mx.array, variance: mx.array
) -> mx.array | tuple[mx.array, ...]:
    """Normalization of channels by stored statistics (or by the batch's, in training mode)."""
    epsilon = call.number("epsilon", 1e-5)
    training = call.flag("training_mode")
    if not training:
        wide = x.astype(mean.dtype) if x.dtype in HALVES else x
        result = (wide - _channel(mean, x)) * mx.rsqrt(_channel(variance, x) + const(epsilon, variance))
        return (result * _channel(scale, x) + _channel(bias, x)).astype(x.dtype)
    axes = [axis for axis in range(x.ndim) if axis != 1]
    momentum = call.number("momentum", 0.9)
    result, batch_mean, _ = normalized(x, axes, epsilon)
    batch_variance = reduced("mean", mx.square(x - batch_mean), axes, keep=False)
    keep, new = const(momentum, mean), const(1 - momentum, mean)
    return (
        result * _channel(scale, x) + _channel(bias, x),
        mean * keep + batch_mean.reshape(-1) * new,
        variance * keep + batch_variance * new,
    )


@op("LpNormalization")
def lp_normalization(call: Call, x: mx.array) -> mx.array:
    """Division by the p-norm along an axis; a norm of zero gives zero."""
    axis, p = call.axis(call.integer("axis", -1), x.ndim), call.integer("p", 2)
    norm = reduced("sum", mx.abs(x), axis) if p == 1 else mx.sqrt(reduced("sum", mx.square(x), axis))
    zero = mx.equal(norm, const(0, norm))
    return mx.where(zero, const(0, x), x / mx.where(zero, const(1, norm), norm))


@op("LRN")
def local_response(call: Call, x: mx.array) -> mx.array:
    """Division by the power of neighbouring channels."""
    size = call.integer("size")
    if not 0 < size <= 1 << 16:
        raise call.invalid(f"size {size} is out of range")
    alpha, beta, bias = call.number("alpha", 1e-4), call.number("beta", 0.75), call.number("bias", 1.0)
    low = (size - 1) // 2
    widths = [(0, 0), (low, size - 1 - low), *[(0, 0)] * (x.ndim - 2)]
    square = mx.pad(mx.square(x), widths)
    total = square[:, : x.shape[1]]
    for shift in range(1, size):
        total = total + square[:, shift : shift + x.shape[1]]
    return x / mx.power(const(bias, x) + const(alpha / size, x) * total, const(beta, x))


@op("MeanVarianceNormalization")
def mean_variance(call: Call, x: mx.array) -> mx.array:
    """(x - mean) / deviation."""
    axes = call.axes(call.integers("axes", [0, 2, 3]), x.ndim)
    mean = reduced("mean", x, axes)
    variance = reduced("mean", mx.square(x), axes) - mx.square(mean)
    return (x - mean) / (mx.sqrt(variance) + const(1e-9, x))


@op("Dropout", host=(1, 2))
def dropout(
    call: Call, x: mx.array, ratio: Host | None = None, training: Host | None = None
) -> tuple[mx.array, mx.array]:
    """The same, since nothing is dropped outside of training."""
    if training is not None and bool(training) and (0.5 if ratio is None else float(ratio)) != 0:
        raise call.refuse("training mode draws random numbers")
    return x, mx.ones(x.shape, dtype=mx.bool_ if call.version >= 10 else x.dtype)
