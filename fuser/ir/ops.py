"""The table of MLX's primitives: how each one of a trace is rebuilt with public calls, bit for bit.

It is the executor, the constant folder and the type inference of the graph at once. A trace has already
broadcast and cast all operands, so most entries are the public function of the same name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from fuser.ir.ops_fast import FAST
from fuser.ir.ops_index import INDEX
from fuser.ir.ops_linear import LINEAR
from fuser.ir.ops_missing import NOT_EXPORTED, NOT_REBUILT
from fuser.ir.ops_random import RANDOM
from fuser.ir.ops_table import Arguments, Piece, Rebuild, UnsupportedPrimitive, elementwise
from fuser.ir.types import TensorType

__all__ = [
    "CUSTOM",
    "ENTRY",
    "NOT_EXPORTED",
    "NOT_REBUILT",
    "OPAQUE",
    "OPS",
    "Arguments",
    "Piece",
    "Rebuild",
    "UnsupportedPrimitive",
    "rebuild",
]

# a call that is no primitive: its one argument is a `Piece`
OPAQUE = "Opaque"
# the name of the piece that a function of the user's is, whose gradient is another than that of what it computes
CUSTOM = "mx.custom_function"
# an array as the function of a checkpoint is given it; its arguments are the number of that call, and its place
ENTRY = "CheckpointInput"

# MLX's enumerations, in the order of its header.
REDUCE = (mx.all, mx.any, mx.sum, mx.prod, mx.min, mx.max)
SCAN = (mx.cummax, mx.cummin, mx.cumsum, mx.cumprod, mx.logcumsumexp)
LOG = (mx.log2, mx.log10, mx.log)
BITWISE = (mx.bitwise_and, mx.bitwise_or, mx.bitwise_xor, mx.left_shift, mx.right_shift)


def _equal(a: mx.array, b: mx.array, nan_equal: bool) -> mx.array:
    same = mx.equal(a, b)
    return mx.logical_or(same, mx.logical_and(mx.isnan(a), mx.isnan(b))) if nan_equal else same


def _depends(x: Sequence[mx.array], count: int) -> Sequence[mx.array]:
    depends: Any = mx.depends  # the stubs promise one array, whatever is asked
    return tuple(depends(list(x[:count]), list(x[count:])))


def _number_of_elements(x: mx.array, axes: Sequence[int], inverted: bool, dtype: mx.Dtype) -> mx.array:
    count = 1.0
    for axis in axes:
        count *= x.shape[axis]
    return mx.array(1.0 / count if inverted else count, dtype)


OPS: dict[str, Rebuild] = {
    **elementwise(
        Add=mx.add,
        ArcCos=mx.arccos,
        ArcCosh=mx.arccosh,
        ArcSin=mx.arcsin,
        ArcSinh=mx.arcsinh,
        ArcTan=mx.arctan,
        ArcTan2=mx.arctan2,
        ArcTanh=mx.arctanh,
        BitwiseInvert=mx.bitwise_invert,
        Ceil=mx.ceil,
        Conjugate=mx.conjugate,
        Cos=mx.cos,
        Cosh=mx.cosh,
        Divide=mx.divide,
        Erf=mx.erf,
        ErfInv=mx.erfinv,
        Exp=mx.exp,
        Expm1=mx.expm1,
        Floor=mx.floor,
        FloorDivide=mx.floor_divide,
        Greater=mx.greater,
        GreaterEqual=mx.greater_equal,
        Imag=mx.imag,
        Less=mx.less,
        LessEqual=mx.less_equal,
        Log1p=mx.log1p,
        LogAddExp=mx.logaddexp,
        LogicalAnd=mx.logical_and,
        LogicalNot=mx.logical_not,
        LogicalOr=mx.logical_or,
        Matmul=mx.matmul,
        Maximum=mx.maximum,
        Minimum=mx.minimum,
        Multiply=mx.multiply,
        Negative=mx.negative,
        NotEqual=mx.not_equal,
        Power=mx.power,
        Real=mx.real,
        Remainder=mx.remainder,
        Round=mx.round,
        Select=mx.where,
        Sigmoid=mx.sigmoid,
        Sign=mx.sign,
        Sin=mx.sin,
        Sinh=mx.sinh,
        Square=mx.square,
        StopGradient=mx.stop_gradient,
        Subtract=mx.subtract,
        Tan=mx.tan,
        Tanh=mx.tanh,
    ),
    # The primitive keeps the type of complex numbers; the public function casts after it.
    "Abs": lambda a, x, _: (mx.abs(x[0]).astype(x[0].dtype),),
    "DivMod": lambda a, x, _: tuple(mx.divmod(x[0], x[1])),
    "Equal": lambda a, x, _: (_equal(x[0], x[1], a[0]),),
    "BitwiseBinary": lambda a, x, _: (BITWISE[a[0]](x[0], x[1]),),
    "Log": lambda a, x, _: (LOG[a[0]](x[0]),),
    "Sqrt": lambda a, x, _: (mx.rsqrt(x[0]) if a[0] else mx.sqrt(x[0]),),
    "AsType": lambda a, x, _: (x[0].astype(a[0]),),
    "View": lambda a, x, _: (x[0].view(a[0]),),
    # Reductions, scans, sorts
    "Reduce": lambda a, x, _: (REDUCE[a[0]](x[0], axis=a[1], keepdims=True),),
    "Scan": lambda a, x, _: (SCAN[a[0]](x[0], axis=a[1], reverse=a[2], inclusive=a[3]),),
    "ArgReduce": lambda a, x, _: ((mx.argmax if a[0] else mx.argmin)(x[0], axis=a[1], keepdims=True),),
    "Softmax": lambda a, x, _: (mx.softmax(x[0], axis=-1, precise=a[0]),),
    "LogSumExp": lambda a, x, _: (mx.logsumexp(x[0], axis=-1, keepdims=True),),
    "Sort": lambda a, x, _: (mx.sort(x[0], axis=a[0]),),
    "ArgSort": lambda a, x, _: (mx.argsort(x[0], axis=a[0]),),
    "Partition": lambda a, x, _: (mx.partition(x[0], a[0], axis=a[1]),),
    "ArgPartition": lambda a, x, _: (mx.argpartition(x[0], a[0], axis=a[1]),),
    "SearchSorted": lambda a, x, _: (mx.searchsorted(x[0], x[1], side="right" if a[0] else "left"),),
    # Shapes
    "Transpose": lambda a, x, _: (mx.transpose(x[0], a[0]),),
    "Squeeze": lambda a, x, _: (mx.squeeze(x[0], a[0]),),
    "ExpandDims": lambda a, x, _: (mx.expand_dims(x[0], a[0]),),
    "Flatten": lambda a, x, _: (mx.flatten(x[0], a[0], a[1]),),
    "Unflatten": lambda a, x, _: (mx.unflatten(x[0], a[0], a[1]),),
    # The traced shape keeps its -1, which is ambiguous for arrays without elements.
    "Reshape": lambda a, x, o: (mx.reshape(x[0], o[0].shape if o else a[0]),),
    "Broadcast": lambda a, x, _: (mx.broadcast_to(x[0], a[0] if len(x) == 1 else _joint_shape(x, *a[1:])),),
    "BroadcastAxes": lambda a, x, o: (mx.broadcast_to(x[0], o[0].shape),),
    "Concatenate": lambda a, x, _: (mx.concatenate(list(x), axis=a[0]),),
    "Split": lambda a, x, _: _split(x[0], a[0], a[1]),
    "Pad": lambda a, x, _: (_pad(x[0], x[1], *a),),
    "AsStrided": lambda a, x, _: (mx.as_strided(x[0], a[0], a[1], a[2]),),
    "Contiguous": lambda a, x, _: (mx.contiguous(x[0], *a),),
    "Copy": lambda a, x, _: (x[0],),
    "Depends": lambda a, x, o: _depends(x, len(o) or 1),
    # Sources
    "Full": lambda a, x, _: (mx.full(x[0].shape, x[0], x[0].dtype),),
    "Arange": lambda a, x, o: (mx.arange(a[0], a[1], a[2], o[0].dtype if o else mx.float32),),
    "NumberOfElements": lambda a, x, _: (_number_of_elements(x[0], *a),),
    **INDEX,
    **LINEAR,
    **FAST,
    **RANDOM,
    OPAQUE: lambda a, x, _: a[0].call(x),
    ENTRY: lambda a, x, _: (x[0],),
}


def _split(x: mx.array, indices: Sequence[int], axis: int) -> Sequence[mx.array]:
    parts: Any = mx.split(x, list(indices), axis=axis)  # the stubs promise one array
    return tuple(parts)


def _joint_shape(x: Sequence[mx.array], own: Sequence[int] = ()) -> tuple[int, ...]:
    """To which shape the first array is broadcast against the others; but for the axes that are its `own`."""

    kept = [axis - x[0].ndim if axis >= 0 else axis for axis in own]

    def rest(array: mx.array) -> tuple[int, ...]:
        return tuple(size for axis, size in enumerate(array.shape) if axis - array.ndim not in kept)

    shape = list(np.broadcast_shapes(*map(rest, x)))
    whole = len(shape) + len(kept)
    for axis in sorted(kept):
        shape.insert(whole + axis, x[0].shape[axis])
    return tuple(shape)


def _pad(x: mx.array, value: mx.array, axes: Sequence[int], low: Sequence[int], high: Sequence[int]) -> mx.array:
    widths = [(0, 0)] * x.ndim
    for axis, before, after in zip(axes, low, high, strict=True):
        widths[axis] = (before, after)
    return mx.pad(x, widths, constant_values=value)


def rebuild(
    op: str, arguments: Arguments, inputs: Sequence[mx.array], outputs: Sequence[TensorType] = ()
) -> tuple[mx.array, ...]:
    """The outputs of primitive `op` over `inputs`; `outputs` are the traced types, where there are any."""
    build = OPS.get(op)
    if build is None:
        raise UnsupportedPrimitive(op, NOT_REBUILT.get(op, "this version of fuser does not know it"))
    return tuple(build(arguments, inputs, outputs))
