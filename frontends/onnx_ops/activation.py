"""Activations and softmax."""

from __future__ import annotations

import math

import mlx.core as mx

from fuser.frontends.onnx_ops.math import const, reduced
from fuser.frontends.onnx_ops.registry import Call, op


@op("Relu")
def relu(call: Call, x: mx.array) -> mx.array:
    """max(x, 0)."""
    return mx.maximum(x, const(0, x))


def _flattened(call: Call, x: mx.array) -> tuple[mx.array, tuple[int, ...]]:
    """Before opset 13 all axes from `axis` on were one."""
    axis = call.integer("axis", 1)
    axis = call.axis(axis, x.ndim) if axis != x.ndim else axis
    return mx.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))), tuple(x.shape)


def _softmax_axis(call: Call, x: mx.array) -> int:
    axis = call.axis(call.integer("axis", -1), x.ndim)
    return -1 if axis == x.ndim - 1 else axis


@op("Softmax", since=13)
def softmax(call: Call, x: mx.array) -> mx.array:
    """Softmax along an axis."""
    return mx.softmax(x, axis=_softmax_axis(call, x))


@op("Softmax")
def softmax_flattened(call: Call, x: mx.array) -> mx.array:
    """Softmax before opset 13; along the last axis it is the same."""
    if call.integer("axis", 1) in (-1, x.ndim - 1):
        return mx.softmax(x, axis=-1)
    flat, shape = _flattened(call, x)
    return mx.reshape(mx.softmax(flat, axis=-1), shape)


def log_softmax(x: mx.array, axis: int) -> mx.array:
    """Logarithm of the softmax."""
    return x - reduced("logsumexp", x, axis)


@op("LogSoftmax", since=13)
def log_softmax_(call: Call, x: mx.array) -> mx.array:
    """Logarithm of the softmax along an axis."""
    return log_softmax(x, _softmax_axis(call, x))


@op("LogSoftmax")
def log_softmax_flattened(call: Call, x: mx.array) -> mx.array:
    """LogSoftmax before opset 13."""
    flat, shape = _flattened(call, x)
    return mx.reshape(log_softmax(flat, -1), shape)


@op("LeakyRelu")
def leaky_relu(call: Call, x: mx.array) -> mx.array:
    """A small slope below zero."""
    return mx.where(x < 0, x * const(call.number("alpha", 0.01), x), x)


@op("PRelu")
def prelu(call: Call, x: mx.array, slope: mx.array) -> mx.array:
    """A given slope below zero."""
    return mx.where(x < 0, x * slope, x)


@op("Elu")
def elu(call: Call, x: mx.array) -> mx.array:
    """Exponential below zero."""
    return mx.where(x < 0, const(call.number("alpha", 1.0), x) * mx.expm1(x), x)


@op("Celu")
def celu(call: Call, x: mx.array) -> mx.array:
    """Exponential below zero with a continuous slope."""
    alpha = const(call.number("alpha", 1.0), x)
    return mx.maximum(x, const(0, x)) + mx.minimum(alpha * mx.expm1(x / alpha), const(0, x))


@op("Selu")
def selu(call: Call, x: mx.array) -> mx.array:
    """Self-normalizing exponential."""
    alpha = const(call.number("alpha", 1.6732632423543772), x)
    gamma = const(call.number("gamma", 1.0507009873554805), x)
    return gamma * mx.where(x > 0, x, alpha * mx.expm1(x))


@op("Softplus")
def softplus(call: Call, x: mx.array) -> mx.array:
    """log(1 + exp(x))."""
    return mx.logaddexp(x, const(0, x))


@op("Softsign")
def softsign(call: Call, x: mx.array) -> mx.array:
    """x / (1 + |x|)."""
    return x / (const(1, x) + mx.abs(x))


@op("HardSigmoid")
def hard_sigmoid(call: Call, x: mx.array) -> mx.array:
    """A line between 0 and 1."""
    return _hard_sigmoid(x, call.number("alpha", 0.2), call.number("beta", 0.5))


def _hard_sigmoid(x: mx.array, alpha: float, beta: float) -> mx.array:
    return mx.clip(x * const(alpha, x) + const(beta, x), const(0, x), const(1, x))


@op("HardSwish")
def hard_swish(call: Call, x: mx.array) -> mx.array:
    """x times a hard sigmoid."""
    return x * _hard_sigmoid(x, 1 / 6, 0.5)


@op("Mish")
def mish(call: Call, x: mx.array) -> mx.array:
    """x * tanh(softplus(x))."""
    return x * mx.tanh(mx.logaddexp(x, const(0, x)))


@op("ThresholdedRelu")
def thresholded_relu(call: Call, x: mx.array) -> mx.array:
    """x above a threshold, else 0."""
    return mx.where(x > const(call.number("alpha", 1.0), x), x, const(0, x))


@op("Shrink")
def shrink(call: Call, x: mx.array) -> mx.array:
    """Values near zero become zero, others move towards it."""
    limit, bias = const(call.number("lambd", 0.5), x), const(call.number("bias", 0.0), x)
    return mx.where(x < -limit, x + bias, mx.where(x > limit, x - bias, const(0, x)))


def gelu(x: mx.array, tanh: bool) -> mx.array:
    """Gaussian error linear unit, exact or by tanh."""
    half, one = const(0.5, x), const(1, x)
    if not tanh:
        return half * x * (one + mx.erf(x * const(1 / math.sqrt(2), x)))
    inner = const(math.sqrt(2 / math.pi), x) * (x + const(0.044715, x) * x * x * x)
    return half * x * (one + mx.tanh(inner))


@op("Gelu")
def gelu_(call: Call, x: mx.array) -> mx.array:
    """Gaussian error linear unit."""
    return gelu(x, call.text("approximate", "none") == "tanh")


@op("Swish")
def swish(call: Call, x: mx.array) -> mx.array:
    """x * sigmoid(alpha * x)."""
    alpha = call.number("alpha", 1.0)
    return x * mx.sigmoid(x if alpha == 1 else x * const(alpha, x))


@op("Hardmax", since=13)
def hardmax(call: Call, x: mx.array) -> mx.array:
    """One at the first largest value of an axis, else zero."""
    return _hardmax(x, call.axis(call.integer("axis", -1), x.ndim))


@op("Hardmax")
def hardmax_flattened(call: Call, x: mx.array) -> mx.array:
    """Hardmax before opset 13."""
    flat, shape = _flattened(call, x)
    return mx.reshape(_hardmax(flat, 1), shape)


def _hardmax(x: mx.array, axis: int) -> mx.array:
    best = mx.argmax(x, axis=axis, keepdims=True)
    places = mx.arange(x.shape[axis], dtype=best.dtype).reshape(-1, *(1,) * (x.ndim - axis - 1))
    return mx.equal(best, places).astype(x.dtype)


@op("SwiGLU")
def swiglu(call: Call, gate: mx.array, x: mx.array) -> mx.array:
    """Swish of one array times another."""
    alpha = call.number("alpha", 1.0)
    return gate * mx.sigmoid(gate if alpha == 1 else gate * const(alpha, gate)) * x
