"""Arithmetic, comparisons, logic and bits, element by element."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import mlx.core as mx
import numpy as np

from fuser.frontends.onnx_ops.registry import Call, on_host, op
from fuser.frontends.onnx_types import FLOATS, HALVES, INTEGERS, UNSIGNED, Host

Unary = Callable[[mx.array], mx.array]
Binary = Callable[..., mx.array]


def const(value: float, like: mx.array) -> mx.array:
    """A scalar of the type of `like`, exact in float64 too."""
    if like.dtype == mx.float64:
        return mx.array(np.float64(value), dtype=mx.float64)
    return mx.array(value, dtype=like.dtype)


def reduced(name: str, x: mx.array, axes: int | Sequence[int], keep: bool = True) -> mx.array:
    """`x` reduced by an MLX function of that name.

    Over an empty axis the answer is written down: MLX refuses some reductions of nothing, and others can run for
    minutes there.
    """
    chosen = [axis % x.ndim for axis in ([axes] if isinstance(axes, int) else axes)]
    if all(x.shape[axis] for axis in chosen):
        result: mx.array = getattr(mx, name)(x, axis=chosen, keepdims=keep)
        return result
    dims = [1 if axis in chosen else size for axis, size in enumerate(x.shape) if keep or axis not in chosen]
    value = {"sum": 0, "prod": 1, "mean": math.nan, "logsumexp": -math.inf, "all": 1, "any": 0}.get(name)
    if value is None:
        value = _limit(x, smallest=name == "max")
    return mx.broadcast_to(const(value, x), dims)


def _limit(x: mx.array, smallest: bool) -> float:
    if x.dtype in FLOATS:
        return -math.inf if smallest else math.inf
    if x.dtype == mx.bool_:
        return not smallest
    info = mx.iinfo(x.dtype)
    return int(info.min if smallest else info.max)


def in_float32(function: Unary, x: mx.array) -> mx.array:
    """Compute in float32 where the input is of half precision."""
    return function(x.astype(mx.float32)).astype(x.dtype) if x.dtype in HALVES else function(x)


def _unary(name: str, function: Unary) -> None:
    @op(name)
    def _(call: Call, x: mx.array) -> mx.array:
        return function(x)


for _name, _function in {
    "Abs": mx.abs,
    "Acos": mx.arccos,
    "Acosh": mx.arccosh,
    "Asin": mx.arcsin,
    "Asinh": mx.arcsinh,
    "Atan": mx.arctan,
    "Atanh": mx.arctanh,
    "Ceil": mx.ceil,
    "Cos": mx.cos,
    "Cosh": mx.cosh,
    "Erf": mx.erf,
    "Exp": mx.exp,
    "Floor": mx.floor,
    "IsNaN": mx.isnan,
    "Log": mx.log,
    "Neg": mx.negative,
    "Not": mx.logical_not,
    "Reciprocal": mx.reciprocal,
    "Round": mx.round,
    "Sigmoid": mx.sigmoid,
    "Sin": mx.sin,
    "Sinh": mx.sinh,
    "Sqrt": mx.sqrt,
    "Tan": mx.tan,
    "Tanh": mx.tanh,
}.items():
    _unary(_name, _function)


@op("Sign")
def sign(call: Call, x: mx.array) -> mx.array:
    """Sign; NaN stays NaN, as in NumPy."""
    return mx.where(mx.isnan(x), x, mx.sign(x)) if x.dtype in FLOATS else mx.sign(x)


@op("IsInf")
def is_inf(call: Call, x: mx.array) -> mx.array:
    """Infinite, of the signs that are asked for."""
    positive, negative = call.flag("detect_positive", True), call.flag("detect_negative", True)
    if positive and negative:
        return mx.isinf(x)
    if positive:
        return mx.isposinf(x)
    return mx.isneginf(x) if negative else mx.zeros(x.shape, dtype=mx.bool_)


@op("BitwiseNot")
def bitwise_not(call: Call, x: mx.array) -> mx.array:
    """All bits turned; by subtraction, since a trace cannot report MLX's own invert."""
    ones = mx.array(-1 if x.dtype not in UNSIGNED else (1 << (8 * x.dtype.size)) - 1, dtype=x.dtype)
    return mx.bitwise_xor(x, ones)


def _binary(name: str, function: Binary) -> None:
    @op(name)
    def _(call: Call, a: mx.array, b: mx.array) -> mx.array:
        if a.dtype != b.dtype:
            raise call.invalid(f"its inputs have different types, {a.dtype} and {b.dtype}")
        return function(a, b)


_COMBINE: dict[str, Binary] = {
    "Add": mx.add,
    "Sub": mx.subtract,
    "Mul": mx.multiply,
    "And": mx.logical_and,
    "Or": mx.logical_or,
    "Xor": mx.not_equal,
    "Equal": mx.equal,
    "Greater": mx.greater,
    "GreaterOrEqual": mx.greater_equal,
    "Less": mx.less,
    "LessOrEqual": mx.less_equal,
    "BitwiseAnd": mx.bitwise_and,
    "BitwiseOr": mx.bitwise_or,
    "BitwiseXor": mx.bitwise_xor,
}
for _name, _combine in _COMBINE.items():
    _binary(_name, _combine)


def _divide(a: mx.array, b: mx.array) -> mx.array:
    if a.dtype not in INTEGERS:
        return mx.divide(a, b)
    quotient = mx.floor_divide(a, b)
    if a.dtype in UNSIGNED:
        return quotient
    # ONNX cuts towards zero, MLX rounds down
    inexact = mx.logical_and(mx.not_equal(quotient * b, a), mx.not_equal(a < 0, b < 0))
    return quotient + inexact.astype(a.dtype)


_binary("Div", _divide)


@op("Mod")
def mod(call: Call, a: mx.array, b: mx.array) -> mx.array:
    """Remainder with the divisor's sign, or the dividend's where `fmod` is set."""
    if a.dtype in FLOATS:
        return _float_mod(a, b, call.flag("fmod"))
    remainder = mx.remainder(a, b)
    if not call.flag("fmod") or a.dtype in UNSIGNED:
        return remainder
    wrong = mx.logical_and(mx.not_equal(remainder, const(0, a)), mx.not_equal(remainder < 0, a < 0))
    return mx.where(wrong, remainder - b, remainder)


def _float_mod(a: mx.array, b: mx.array, like_c: bool) -> mx.array:
    # of magnitudes, both kinds of remainder are one; a finite number is smaller than an infinite divisor
    magnitude = mx.remainder(mx.abs(a), mx.abs(b))
    magnitude = mx.where(mx.logical_and(mx.isinf(b), mx.isfinite(a)), mx.abs(a), magnitude)
    remainder = mx.where(a < 0, -magnitude, magnitude)
    if like_c:
        return remainder
    other_side = mx.logical_and(mx.not_equal(remainder, const(0, a)), mx.not_equal(remainder < 0, b < 0))
    return mx.where(other_side, remainder + b, remainder)


@op("Pow")
def power(call: Call, x: mx.array, y: mx.array) -> mx.array:
    """Power, in the type of the base."""
    if x.dtype == y.dtype:
        return mx.power(x, y)
    if x.dtype in INTEGERS and y.dtype in FLOATS:
        return mx.trunc(mx.power(x.astype(y.dtype), y)).astype(x.dtype)
    return mx.power(x, y.astype(x.dtype))


@op("BitShift")
def bit_shift(call: Call, x: mx.array, y: mx.array) -> mx.array:
    """Shift of integers; by less than nothing, or by the width or more, leaves only what the sign fills in."""
    left = call.text("direction") == "LEFT"
    width = const(8 * x.dtype.size, y)
    beyond = y >= width if y.dtype in UNSIGNED else mx.logical_or(y < 0, y >= width)
    amount = mx.where(beyond, const(0, y), y)
    rest = const(0, x) if left or x.dtype in UNSIGNED else mx.where(x < 0, const(-1, x), const(0, x))
    return mx.where(beyond, rest, (mx.left_shift if left else mx.right_shift)(x, amount))


def _variadic(name: str, function: Binary) -> None:
    @op(name)
    def _(call: Call, *inputs: mx.array) -> mx.array:
        if not inputs:
            raise call.invalid("it has no input")
        return reduce(function, inputs)


_variadic("Sum", mx.add)
_variadic("Max", mx.maximum)
_variadic("Min", mx.minimum)


@op("Mean")
def mean(call: Call, *inputs: mx.array) -> mx.array:
    """Mean of several arrays."""
    return reduce(mx.add, inputs) / const(len(inputs), inputs[0])


@op("Where")
def where(call: Call, condition: mx.array, x: mx.array, y: mx.array) -> mx.array:
    """Choice by a condition."""
    return mx.where(condition, x, y)


@op("Clip", since=11)
def clip(call: Call, x: mx.array, low: mx.array | None = None, high: mx.array | None = None) -> mx.array:
    """Values between two limits."""
    if low is not None:
        x = mx.maximum(x, low.reshape(()))
    return x if high is None else mx.minimum(x, high.reshape(()))


@op("Clip")
def clip_attributes(call: Call, x: mx.array) -> mx.array:
    """Values between two limits, given as attributes before opset 11."""
    low, high = call.number("min", -math.inf), call.number("max", math.inf)
    x = x if low == -math.inf else mx.maximum(x, const(low, x))
    return x if high == math.inf else mx.minimum(x, const(high, x))


def _host_divide(call: Call, a: Host, b: Host) -> Host:
    if a.dtype.kind not in "iu":
        return np.asarray(np.divide(a, b))
    safe = np.where(b == 0, np.ones_like(b), b)
    quotient = np.asarray(np.floor_divide(a, safe))
    inexact = (quotient * safe != a) & ((a < 0) != (safe < 0))
    return np.asarray(np.where(b == 0, np.zeros_like(quotient), quotient + inexact.astype(a.dtype)))


on_host("Div")(_host_divide)


def _on_host(name: str, function: Any) -> None:
    @on_host(name)
    def _(call: Call, *inputs: Host) -> Host:
        return np.asarray(function(*inputs))


for _name, _numpy in {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "And": np.logical_and,
    "Or": np.logical_or,
    "Xor": np.logical_xor,
    "Equal": np.equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Not": np.logical_not,
    "Abs": np.abs,
    "Neg": np.negative,
    "Floor": np.floor,
    "Ceil": np.ceil,
    "Where": np.where,
    "Sqrt": np.sqrt,
    "Exp": np.exp,
    "Log": np.log,
    "Sin": np.sin,
    "Cos": np.cos,
    "IsNaN": np.isnan,
}.items():
    _on_host(_name, _numpy)


@on_host("Max")
def _host_max(call: Call, *inputs: Host) -> Host:
    return np.asarray(reduce(np.maximum, inputs))


@on_host("Min")
def _host_min(call: Call, *inputs: Host) -> Host:
    return np.asarray(reduce(np.minimum, inputs))
