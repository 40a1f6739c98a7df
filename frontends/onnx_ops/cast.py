"""Changes of type, to those that MLX lacks too."""

from __future__ import annotations

import math
from typing import NamedTuple

import mlx.core as mx
import numpy as np
from onnx import TensorProto

from fuser.frontends.onnx_ops.registry import Call, on_host, op
from fuser.frontends.onnx_types import (
    CARRIERS,
    FLOATS,
    MLX_TYPES,
    NUMPY_TYPES,
    Host,
    Narrow,
    onnx_type,
    to_host,
    to_mlx,
    type_name,
)


class SmallFloat(NamedTuple):
    """A float of at most 8 bits: bits of the mantissa, lowest exponent, largest value, what lies beyond it."""

    mantissa: int
    low: int
    largest: float
    beyond: float


SMALL_FLOATS = {
    getattr(TensorProto, name): kind
    for name, kind in {
        "FLOAT8E4M3FN": SmallFloat(3, -6, 448.0, math.nan),
        "FLOAT8E4M3FNUZ": SmallFloat(3, -7, 240.0, math.nan),
        "FLOAT8E5M2": SmallFloat(2, -14, 57344.0, math.inf),
        "FLOAT8E5M2FNUZ": SmallFloat(2, -15, 57344.0, math.nan),
        "FLOAT4E2M1": SmallFloat(1, 0, 6.0, 6.0),
    }.items()
    if hasattr(TensorProto, name)
}
SMALL_INTEGERS = {
    getattr(TensorProto, name): limits
    for name, limits in {"INT4": (-8, 7), "UINT4": (0, 15), "INT2": (-2, 1), "UINT2": (0, 3)}.items()
    if hasattr(TensorProto, name)
}
_E2M1 = getattr(TensorProto, "FLOAT4E2M1", -1)
_E8M0 = getattr(TensorProto, "FLOAT8E8M0", -1)


def _power_of_two(exponent: mx.array) -> mx.array:
    """2 ** exponent for int32 exponents of normal floats."""
    return mx.left_shift(exponent + mx.array(127), mx.array(23)).view(mx.float32)


def round_small(x: mx.array, kind: SmallFloat, saturate: bool) -> mx.array:
    """float32 values rounded to the nearest of a small float type."""
    magnitude = mx.abs(x)
    exponent = mx.right_shift(magnitude.view(mx.int32), mx.array(23)) - mx.array(127)
    quantum = _power_of_two(mx.maximum(exponent, mx.array(kind.low)) - mx.array(kind.mantissa))
    rounded = mx.round(magnitude / quantum) * quantum
    beyond = kind.largest if saturate else kind.beyond
    rounded = mx.where(rounded > mx.array(kind.largest), mx.array(beyond), rounded)
    return mx.where(x < mx.array(0.0), -rounded, rounded)


def round_e8m0(x: mx.array, mode: str, saturate: bool) -> mx.array:
    """float32 values as powers of two."""
    bits = mx.abs(x).view(mx.int32)
    code = mx.right_shift(bits, mx.array(23))
    rest = mx.bitwise_and(bits, mx.array((1 << 23) - 1))
    # the smallest power, 2 ** -127, is no normal float32: it has the upper half of the mantissa of exponent 0
    half = mx.array(1 << 22)
    tiny = mx.equal(code, mx.array(0))
    if mode == "up":
        up = mx.where(tiny, rest > half, rest > mx.array(0))
    elif mode == "nearest":
        up = mx.where(tiny, rest >= half + mx.array(1 << 21), rest >= half)
    else:
        up = mx.zeros(x.shape, dtype=mx.bool_)
    code = code + up.astype(mx.int32)
    too_small = (
        mx.logical_and(tiny, rest < half) if mode != "nearest" else mx.logical_and(tiny, rest < mx.array(1 << 21))
    )
    result = mx.where(mx.equal(code, mx.array(0)), half, mx.left_shift(code, mx.array(23))).view(mx.float32)
    limit, nan = mx.array(2.0**127), mx.array(math.nan)
    result = mx.where(code >= mx.array(255), limit if saturate else nan, result)
    if not saturate:
        result = mx.where(too_small, nan, result)
    return mx.where(mx.isnan(x), nan, result)


def cast(call: Call, x: mx.array | Narrow, to: int, saturate: bool = True) -> mx.array | Narrow:
    """`x` as ONNX type `to`."""
    if isinstance(x, Narrow):
        x = x.carrier
    if to in MLX_TYPES:
        return x.astype(MLX_TYPES[to])
    if to in SMALL_FLOATS:
        wide = x.astype(mx.float32)
        if to == _E2M1:  # it has no NaN
            wide = mx.where(mx.isnan(wide), mx.array(0.0), wide)
        return Narrow(round_small(wide, SMALL_FLOATS[to], saturate).astype(CARRIERS[to]), to)
    if to == _E8M0:
        mode = call.text("round_mode", "up")
        return Narrow(round_e8m0(x.astype(mx.float32), mode, saturate).astype(CARRIERS[to]), to)
    if to in SMALL_INTEGERS:
        low, high = SMALL_INTEGERS[to]
        span = mx.array(high - low + 1, dtype=mx.int32)
        # the higher bits are dropped, as for every integer type
        whole = x.astype(mx.int32) if x.dtype in FLOATS else x.astype(mx.int64).astype(mx.int32)
        return Narrow((mx.remainder(whole - mx.array(low), span) + mx.array(low)).astype(CARRIERS[to]), to)
    raise call.refuse(f"MLX has no arrays of ONNX type {type_name(to)}")


@op("Cast", narrow=True)
def cast_to(call: Call, x: mx.array | Narrow) -> mx.array | Narrow:
    """Cast to a type given by number."""
    return cast(call, x, call.integer("to"), call.flag("saturate", True))


@op("CastLike", narrow=True)
def cast_like(call: Call, x: mx.array | Narrow, like: mx.array | Narrow) -> mx.array | Narrow:
    """Cast to the type of another array."""
    return cast(call, x, onnx_type(like), call.flag("saturate", True))


@on_host("Cast")
def _host_cast(call: Call, x: Host) -> Host:
    to = call.integer("to")
    if to in MLX_TYPES and onnx_type(x) in MLX_TYPES:
        return np.asarray(x.astype(NUMPY_TYPES[to]))
    return to_host(cast(call, to_mlx(x), to, call.flag("saturate", True)))
