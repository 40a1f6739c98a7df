"""ONNX element types beside MLX's, and the kinds of value that an imported model computes with.

A value is a NumPy array when it is known on the host (shape arithmetic, constants, masks made of shapes), an MLX array
when it is a weight or is being computed, and a `Narrow` when its ONNX type is one that MLX does not have (float8, int4
and smaller): those are carried exactly by a wider MLX type, and only casts, quantization and moves accept them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import ml_dtypes
import mlx.core as mx
import numpy as np
from onnx import TensorProto

from fuser.errors import UnsupportedOperatorError

Host: TypeAlias = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Narrow:
    """An array of an ONNX type that MLX lacks: `carrier` holds the same values in a wider type."""

    carrier: mx.array
    type: int


@dataclass(frozen=True, slots=True)
class Items:
    """An ONNX sequence inside a model: a list known while tracing, of values that need not be."""

    values: tuple[Host | mx.array | Narrow, ...]


Value: TypeAlias = "Host | mx.array | Narrow | Items"

MLX_TYPES: dict[int, mx.Dtype] = {
    TensorProto.FLOAT: mx.float32,
    TensorProto.FLOAT16: mx.float16,
    TensorProto.BFLOAT16: mx.bfloat16,
    TensorProto.DOUBLE: mx.float64,
    TensorProto.BOOL: mx.bool_,
    TensorProto.INT8: mx.int8,
    TensorProto.INT16: mx.int16,
    TensorProto.INT32: mx.int32,
    TensorProto.INT64: mx.int64,
    TensorProto.UINT8: mx.uint8,
    TensorProto.UINT16: mx.uint16,
    TensorProto.UINT32: mx.uint32,
    TensorProto.UINT64: mx.uint64,
    TensorProto.COMPLEX64: mx.complex64,
}
_ONNX_TYPES = {dtype: number for number, dtype in MLX_TYPES.items()}

# bfloat16 holds every value of every float of at most 8 bits, int8 and uint8 every smaller integer
CARRIERS: dict[int, mx.Dtype] = {
    getattr(TensorProto, name): dtype
    for name, dtype in {
        "FLOAT8E4M3FN": mx.bfloat16,
        "FLOAT8E4M3FNUZ": mx.bfloat16,
        "FLOAT8E5M2": mx.bfloat16,
        "FLOAT8E5M2FNUZ": mx.bfloat16,
        "FLOAT8E8M0": mx.bfloat16,
        "FLOAT4E2M1": mx.bfloat16,
        "INT4": mx.int8,
        "UINT4": mx.uint8,
        "INT2": mx.int8,
        "UINT2": mx.uint8,
    }.items()
    if hasattr(TensorProto, name)
}

_NUMPY_NAMES = {
    "FLOAT": "float32",
    "DOUBLE": "float64",
    "FLOAT8E4M3FN": "float8_e4m3fn",
    "FLOAT8E4M3FNUZ": "float8_e4m3fnuz",
    "FLOAT8E5M2": "float8_e5m2",
    "FLOAT8E5M2FNUZ": "float8_e5m2fnuz",
    "FLOAT8E8M0": "float8_e8m0fnu",
    "FLOAT4E2M1": "float4_e2m1fn",
}


def _numpy_type(number: int) -> np.dtype[Any]:
    name = TensorProto.DataType.Name(number)
    name = _NUMPY_NAMES.get(name, name.lower())
    found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name, None) or name)
    return found


NUMPY_TYPES: dict[int, np.dtype[Any]] = {number: _numpy_type(number) for number in (*MLX_TYPES, *CARRIERS)}
_NUMBERS = {dtype: number for number, dtype in NUMPY_TYPES.items()}

INTEGERS = (mx.int8, mx.int16, mx.int32, mx.int64, mx.uint8, mx.uint16, mx.uint32, mx.uint64)
UNSIGNED = (mx.uint8, mx.uint16, mx.uint32, mx.uint64)
HALVES = (mx.float16, mx.bfloat16)
FLOATS = (mx.float32, mx.float64, *HALVES)


def type_name(number: int) -> str:
    """The ONNX name of an element type, in lower case."""
    try:
        return str(TensorProto.DataType.Name(number)).lower()
    except ValueError:
        return f"type {number}"


def mlx_type(number: int) -> mx.Dtype:
    """The MLX type of the arrays that hold values of an ONNX type; refuses what MLX cannot hold."""
    dtype = MLX_TYPES.get(number) or CARRIERS.get(number)
    if dtype is None:
        raise UnsupportedOperatorError(f"MLX has no arrays of ONNX type {type_name(number)}")
    return dtype


def onnx_type(value: Value) -> int:
    """The ONNX type of a value."""
    if isinstance(value, Items):
        raise UnsupportedOperatorError("MLX has no sequences")
    if isinstance(value, Narrow):
        return value.type
    if isinstance(value, np.ndarray):
        number = _NUMBERS.get(value.dtype)
        if number is None:
            raise UnsupportedOperatorError(f"MLX has no arrays of NumPy type {value.dtype}")
        return number
    return _ONNX_TYPES[value.dtype]


def to_mlx(host: Host) -> mx.array | Narrow:
    """A host array as an MLX array (or `Narrow`), with the same type and values."""
    number = onnx_type(host)
    if number in CARRIERS:
        return Narrow(mx.array(host.astype(NUMPY_TYPES[_ONNX_TYPES[CARRIERS[number]]])), number)
    if host.dtype == np.float64:
        refuse_float64_on_gpu()
    # axes along which one value is seen again and again are not written out
    repeated = [size > 1 and stride == 0 for size, stride in zip(host.shape, host.strides, strict=True)]
    compact = host[tuple(slice(1) if again else slice(None) for again in repeated)]
    array = mx.array(compact if compact.flags.c_contiguous else compact.copy(), dtype=MLX_TYPES[number])
    return mx.broadcast_to(array, host.shape) if any(repeated) else array


def to_host(value: mx.array | Narrow) -> Host:
    """An MLX array's values on the host (it is evaluated)."""
    if isinstance(value, Narrow):
        return to_host(value.carrier).astype(NUMPY_TYPES[value.type])
    if value.dtype == mx.bfloat16:
        return np.array(value.view(mx.uint16)).view(ml_dtypes.bfloat16)
    return np.array(value)


def refuse_float64_on_gpu() -> None:
    """MLX computes float64 on the CPU only: say so before it does."""
    if mx.default_device() == mx.Device(mx.gpu):
        raise UnsupportedOperatorError(
            "the model computes in float64, which MLX has on the CPU only: call mx.set_default_device(mx.cpu) first, "
            "or convert the model to float32"
        )


def number_of(dtype: mx.Dtype) -> int:
    """The ONNX number of an MLX type."""
    return _ONNX_TYPES[dtype]


def mlx_name(dtype: mx.Dtype) -> str:
    """`float32` for `mx.float32`."""
    return str(dtype).rpartition(".")[2].rstrip("_")
