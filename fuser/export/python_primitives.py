"""MLX's primitives as operations of the written program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from fuser.export.python_ir import CONST, ConvertError, Dim, Op, Shape
from fuser.export.python_rules import FLOATS, Rules

REDUCE = ("all", "any", "sum", "prod", "min", "max")
SCAN = ("cummax", "cummin", "cumsum", "cumprod", "logcumsumexp")
BITWISE = ("bitwise_and", "bitwise_or", "bitwise_xor", "left_shift", "right_shift")
LOG = ("log2", "log10", "log")
# the primitives that are one elementwise function, by their names in `mlx.core`
BINARY = {
    "Add": "add",
    "ArcTan2": "arctan2",
    "Divide": "divide",
    "FloorDivide": "floor_divide",
    "Greater": "greater",
    "GreaterEqual": "greater_equal",
    "Less": "less",
    "LessEqual": "less_equal",
    "LogAddExp": "logaddexp",
    "LogicalAnd": "logical_and",
    "LogicalOr": "logical_or",
    "Maximum": "maximum",
    "Minimum": "minimum",
    "Multiply": "multiply",
    "NotEqual": "not_equal",
    "Power": "power",
    "Remainder": "remainder",
    "Select": "where",
    "Subtract": "subtract",
}
UNARY = {
    "ArcCos": "arccos",
    "ArcCosh": "arccosh",
    "ArcSin": "arcsin",
    "ArcSinh": "arcsinh",
    "ArcTan": "arctan",
    "ArcTanh": "arctanh",
    "Ceil": "ceil",
    "Cos": "cos",
    "Cosh": "cosh",
    "Erf": "erf",
    "ErfInv": "erfinv",
    "Exp": "exp",
    "Expm1": "expm1",
    "Floor": "floor",
    "Log1p": "log1p",
    "LogicalNot": "logical_not",
    "Negative": "negative",
    "Round": "round",
    "Sigmoid": "sigmoid",
    "Sign": "sign",
    "Sin": "sin",
    "Sinh": "sinh",
    "Square": "square",
    "Tan": "tan",
    "Tanh": "tanh",
    "Abs": "abs",
}


@dataclass(frozen=True)
class Site:
    """One primitive in all traces."""

    rules: Rules
    op: str
    args: list[Op]
    arguments: list[tuple[Any, ...]]
    shape: Shape
    dtype: mx.Dtype
    index: int

    @property
    def same(self) -> tuple[Any, ...]:
        """The arguments, which must be equal in all traces."""
        if any(each != self.arguments[0] for each in self.arguments):
            raise ConvertError(f"the arguments of {self.op} depend on sizes")
        return self.arguments[0]

    def dims(self, place: int) -> tuple[Dim, ...]:
        """The integers of one argument."""
        return tuple(zip(*(each[place] for each in self.arguments), strict=True))

    def axis(self, axis: int) -> int:
        """An axis counted from the front."""
        return axis % self.args[0].ndim

    def call(self, fn: str, **attrs: Any) -> Op:
        """A function of `mlx.core`."""
        return self.rules.call(fn, self.args, self.shape, self.dtype, tuple(attrs.items()))


def _binary(fn: str) -> Callable[[Site], Op]:
    return lambda s: s.rules.elementwise(fn, s.args, s.shape, s.dtype)


def _unary(fn: str) -> Callable[[Site], Op]:
    return lambda s: s.rules.call(fn, s.args, s.shape, s.dtype)


def _reshape(s: Site) -> Op:
    return s.rules.reshape(s.args[0], s.shape)


def _slice(s: Site) -> Op:
    return s.rules.slice(s.args[0], s.dims(0), s.dims(1), s.dims(2), s.shape)


def _split(s: Site) -> Op:
    x, axis = s.args[0], s.axis(s.same[1])
    cuts = [0, *s.same[0], x.shape[axis][0]]
    start, stop = s.rules.dim(cuts[s.index]), tuple(cuts[s.index] + dim for dim in s.shape[axis])
    zero, one = s.rules.dim(0), s.rules.dim(1)
    starts = [start if each == axis else zero for each in range(x.ndim)]
    stops = [stop if each == axis else x.shape[each] for each in range(x.ndim)]
    return s.rules.slice(x, starts, stops, [one] * x.ndim, s.shape)


def _gather(s: Site) -> Op:
    axes = s.arguments[0][0]
    x, *indices = s.args
    sizes = s.dims(1)
    whole = all(size == dim for axis, (size, dim) in enumerate(zip(sizes, x.shape, strict=True)) if axis not in axes)
    if not whole or len(indices) != len(axes) or any(size[0] != 1 for axis, size in enumerate(sizes) if axis in axes):
        raise ConvertError("a Gather of windows has no spelling in Python source here")
    if len(axes) == 1:
        axis, index = axes[0], indices[0]
        taken = s.rules.take(x, index, axis)
        order = [*range(axis, axis + index.ndim), *range(axis), *range(axis + index.ndim, taken.ndim)]
        return s.rules.reshape(s.rules.transpose(taken, order), s.shape)
    if list(axes) != list(range(len(axes))):
        raise ConvertError("a Gather over several axes has no spelling in Python source here")
    bare = [s.rules.unclipped(index, x.shape[axis]) for axis, index in enumerate(indices)]
    shape = (*indices[0].shape, *x.shape[len(axes) :])
    return s.rules.reshape(s.rules.op("index", (x, *bare), (), shape, s.dtype), s.shape)


def _gather_axis(s: Site) -> Op:
    x, index = s.args
    axis = s.same[0]
    bare = s.rules.unclipped(index, x.shape[s.axis(axis)])
    return s.rules.call("take_along_axis", [x, bare], s.shape, s.dtype, (("axis", axis),))


def _convolution(s: Site) -> Op:
    stride, low, high, dilation, spread, groups, flip = s.same
    x, w = s.args
    plain = low == high and all(each == 1 for each in spread) and not flip and x.ndim in (3, 4)
    if plain and w.kind == CONST and s.dtype in FLOATS:
        return s.rules.layer("conv", x, (tuple(stride), tuple(low), tuple(dilation), groups), s.shape, {"weight": w})
    attrs = {"stride": tuple(stride), "padding": (tuple(low), tuple(high)), "kernel_dilation": tuple(dilation)}
    return s.call("conv_general", **attrs, input_dilation=tuple(spread), groups=groups, flip=flip)


def _addmm(s: Site) -> Op:
    a, b, c = s.args
    if s.same != (1.0, 1.0):
        raise ConvertError("a scaled AddMM has no spelling in Python source here")
    return s.rules.elementwise("add", [s.rules.matmul(a, b, s.shape, s.dtype), c], s.shape, s.dtype)


def _attention(s: Site) -> Op:
    scale, causal, sinks = s.same[:3]
    q, k, v, *rest = s.args
    bare = [each.args[0] if each.kind == "broadcast" and each.args[0].ndim == 4 else each for each in rest]
    return s.rules.op("attention", (q, k, v, *bare), (scale, causal, sinks), s.shape, s.dtype)


def _reduce(s: Site) -> Op:
    kind, axes = s.same
    x = s.args[0]
    if x.kind == "full" and REDUCE[kind] in ("all", "any", "min", "max"):
        return s.rules.full(x.args[0], s.shape)
    places = tuple(sorted(s.axis(axis) for axis in axes))
    inner = x.args[0] if x.kind == "broadcast" else x
    if inner is not x and inner.ndim == x.ndim and all(inner.shape[axis] == x.shape[axis] for axis in places):
        # what is repeated along another axis is reduced once
        small = tuple((1,) * len(dim) if axis in places else dim for axis, dim in enumerate(inner.shape))
        return s.rules.expand(s.rules.op("reduce", (inner,), (REDUCE[kind], places, True), small, s.dtype), s.shape)
    return s.rules.op("reduce", (x,), (REDUCE[kind], places, True), s.shape, s.dtype)


def _scatter_axis(s: Site) -> Op:
    kind, axis = s.same
    if kind != 1:
        raise ConvertError("a sum of updates along an axis has no spelling in Python source here")
    return s.call("put_along_axis", axis=axis)


def _pad(s: Site) -> Op:
    axes, low, high = s.same
    widths = [(0, 0)] * s.args[0].ndim
    for axis, before, after in zip(axes, low, high, strict=True):
        widths[axis] = (before, after)
    value = s.args[1].number
    if value is None:
        raise ConvertError("a Pad with a computed value has no spelling in Python source here")
    attrs = (("pad_width", tuple(widths)), *((("constant_values", value),) if value else ()))
    return s.rules.call("pad", s.args[:1], s.shape, s.dtype, attrs)


def _equal(s: Site) -> Op:
    if s.same[0]:
        raise ConvertError("an Equal that takes NaN as equal has no spelling in Python source here")
    return s.rules.elementwise("equal", s.args, s.shape, s.dtype)


def _norm(kind: str) -> Callable[[Site], Op]:
    def make(s: Site) -> Op:
        x, *rest = s.args
        given: Sequence[Op] = [each for each in rest if each.ndim]
        if any(each.kind != CONST for each in given):
            raise ConvertError("a norm with computed weights has no spelling in Python source here")
        if not given:
            return s.rules.op(f"{kind}_plain", (x,), (s.same[0],), s.shape, s.dtype)
        params = dict(zip(("weight", "bias"), given, strict=False))
        return s.rules.layer(kind, x, (s.same[0],), s.shape, params)

    return make


PRIMITIVES: dict[str, Callable[[Site], Op]] = {
    **{name: _binary(fn) for name, fn in BINARY.items()},
    **{name: _unary(fn) for name, fn in UNARY.items()},
    "Equal": _equal,
    "Log": lambda s: s.call(LOG[s.same[0]]),
    "Sqrt": lambda s: s.call("rsqrt" if s.same[0] else "sqrt"),
    "AsType": lambda s: s.rules.astype(s.args[0], s.dtype),
    "Reduce": _reduce,
    "Scan": lambda s: s.call(
        SCAN[s.same[0]],
        axis=s.same[1],
        **({"reverse": True} if s.same[2] else {}),
        **({} if s.same[3] else {"inclusive": False}),
    ),
    "ArgReduce": lambda s: s.call("argmax" if s.same[0] else "argmin", axis=s.same[1], keepdims=True),
    "Softmax": lambda s: s.call("softmax", axis=-1, **({"precise": True} if s.same[0] else {})),
    "LogSumExp": lambda s: s.call("logsumexp", axis=-1, keepdims=True),
    "Sort": lambda s: s.call("sort", axis=s.same[0]),
    "ArgSort": lambda s: s.call("argsort", axis=s.same[0]),
    "Partition": lambda s: s.call("partition", kth=s.same[0], axis=s.same[1]),
    "ArgPartition": lambda s: s.call("argpartition", kth=s.same[0], axis=s.same[1]),
    "BitwiseBinary": lambda s: s.rules.elementwise(BITWISE[s.same[0]], s.args, s.shape, s.dtype),
    "ScatterAxis": _scatter_axis,
    "Transpose": lambda s: s.rules.transpose(s.args[0], s.same[0]),
    "Squeeze": _reshape,
    "ExpandDims": _reshape,
    "Flatten": _reshape,
    "Unflatten": _reshape,
    "Reshape": _reshape,
    "Broadcast": lambda s: s.rules.expand(s.args[0], s.shape),
    "BroadcastAxes": lambda s: s.rules.expand(s.args[0], s.shape),
    "Full": lambda s: s.rules.expand(s.args[0], s.shape),
    "Concatenate": lambda s: s.rules.concatenate(s.args, s.axis(s.same[0]), s.shape, s.dtype),
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "GatherAxis": _gather_axis,
    "Matmul": lambda s: s.rules.matmul(s.args[0], s.args[1], s.shape, s.dtype),
    "AddMM": _addmm,
    "Convolution": _convolution,
    "Pad": _pad,
    "ScaledDotProductAttention": _attention,
    "RMSNorm": _norm("rms_norm"),
    "LayerNorm": _norm("layer_norm"),
    "StopGradient": lambda s: s.args[0],
    "Copy": lambda s: s.args[0],
    "Contiguous": lambda s: s.args[0],
}
