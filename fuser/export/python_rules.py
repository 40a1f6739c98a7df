"""Operations made so that they read well: what is spelled out in a trace becomes the layer or function that it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from fuser.export.python_ir import (
    CONST,
    NUMBER,
    SIZE,
    Dim,
    Op,
    Pool,
    Shape,
    broadcast,
    fixed,
    is_one,
    product,
)
from fuser.export.python_layers import normalized, recognized

INFIX = {
    "add": "+",
    "subtract": "-",
    "multiply": "*",
    "divide": "/",
    "power": "**",
    "equal": "==",
    "not_equal": "!=",
    "less": "<",
    "less_equal": "<=",
    "greater": ">",
    "greater_equal": ">=",
    "logical_and": "&",
    "logical_or": "|",
}
FLOATS = (mx.float32, mx.float16, mx.bfloat16, mx.float64)
FULL = "full"


class Rules(Pool):
    """A pool whose operations are simplified as they are made."""

    # -- elementwise -----------------------------------------------------------------------------------------------

    def full(self, number: Op, shape: Shape) -> Op:
        """One number everywhere."""
        return number if not shape else self.op(FULL, (number,), (), shape, number.dtype)

    def expand(self, x: Op, shape: Shape) -> Op:
        """`x` broadcast to `shape`."""
        if x.shape == shape:
            return x
        if x.kind == FULL:
            return self.full(x.args[0], shape)
        if x.kind in (NUMBER, "size"):
            return self.full(x, shape)
        if x.kind == "broadcast":
            return self.expand(x.args[0], shape)
        return self.op("broadcast", (x,), (), shape, x.dtype)

    def elementwise(self, fn: str, args: Sequence[Op], shape: Shape, dtype: mx.Dtype) -> Op:
        """A function of operands that broadcast by themselves."""
        bare = [arg.args[0] if arg.kind in ("broadcast", FULL) else arg for arg in args]
        small = broadcast([arg.shape for arg in bare])
        if small is not None and small != shape:
            return self.expand(self.elementwise(fn, bare, small, dtype), shape)
        if small is None:
            bare = list(args)
        if all(arg.kind == NUMBER for arg in bare):
            folded = _folded(fn, [arg.number for arg in bare], dtype)
            return self.full(self.number(folded, dtype), shape)
        return self.simple(fn, bare, shape, dtype) or self.made(fn, bare, shape, dtype)

    def made(self, fn: str, args: Sequence[Op], shape: Shape, dtype: mx.Dtype) -> Op:
        """The operation, or the layer or function that it completes."""
        found = normalized(self, fn, args, shape) or recognized(self, fn, args, shape, dtype)
        return found if found is not None else self.op(fn, args, (), shape, dtype)

    def simple(self, fn: str, args: Sequence[Op], shape: Shape, dtype: mx.Dtype) -> Op | None:
        """What the operation comes to without computing anything, where that is so."""
        if fn == "where":
            return self._where(args, shape)
        if len(args) != 2:
            return None
        a, b = args
        for x, n, left in ((a, b, True), (b, a, False)):
            value = n.number
            if value is None:
                continue
            same = x.shape == shape and x.dtype == dtype
            neutral = {
                "add": value == 0,
                "multiply": value == 1,
                "subtract": left and value == 0,
                "divide": left and value == 1,
                "logical_and": value is True,
                "logical_or": value is False,
            }.get(fn, False)
            if neutral and same:
                return x
            if neutral and x.dtype == dtype:
                return self.expand(x, shape)
            if (fn == "logical_and" and value is False) or (fn == "logical_or" and value is True):
                return self.full(n, shape)
            if x.kind == "where" and x.args[1].kind == x.args[2].kind == NUMBER:
                # a function of one of two numbers is one of two other numbers
                pair = [_folded(fn, [y.number, value] if left else [value, y.number], dtype) for y in x.args[1:]]
                numbers = [self.number(each, dtype) for each in pair]
                return self.elementwise("where", [x.args[0], *numbers], shape, dtype)
            if left and fn in ("equal", "greater") and value == -math.inf and lowest(x) > -math.inf:
                return self.full(self.number(fn == "greater", mx.bool_), shape)
        if fn == "power" and b.number == 2 and a.dtype in FLOATS:
            return self.call("square", [a], shape, dtype)
        return None

    def _where(self, args: Sequence[Op], shape: Shape) -> Op | None:
        condition, yes, no = args
        if condition.kind == NUMBER:
            return self.expand(yes if condition.number else no, shape)
        if yes is no:
            return self.expand(yes, shape)
        if yes.kind == "where" and yes.args[0] is condition:
            return self.elementwise("where", [condition, yes.args[1], no], shape, yes.dtype)
        if yes.kind == no.kind == NUMBER and yes.dtype == mx.bool_ and yes.number != no.number:
            return condition if yes.number else self.call("logical_not", [condition], shape, mx.bool_)
        return None

    def call(
        self, fn: str, args: Sequence[Op], shape: Shape, dtype: mx.Dtype, attrs: Sequence[tuple[str, Any]] = ()
    ) -> Op:
        """A function of one operand, elementwise when it has no attributes."""
        x = args[0]
        if len(args) == 1 and not attrs and x.shape == shape:
            if x.kind == FULL and x.args[0].kind == NUMBER and fn in _HOST:
                return self.full(self.number(_folded(fn, [x.args[0].number], dtype), dtype), shape)
            if x.kind == "where" and x.args[1].kind == x.args[2].kind == NUMBER and fn in _HOST:
                pair = [self.number(_folded(fn, [y.number], dtype), dtype) for y in x.args[1:]]
                return self.elementwise("where", [x.args[0], *pair], shape, dtype)
            if x.kind == "transpose":
                inner = x.args[0]
                return self.transpose(self.call(fn, [inner], inner.shape, dtype), x.attrs[0])
        return self.op("call", args, (fn, tuple(attrs)), shape, dtype)

    def astype(self, x: Op, dtype: mx.Dtype) -> Op:
        """`x` as another type."""
        if x.dtype == dtype:
            return x
        if x.kind == FULL:
            return self.full(self.astype(x.args[0], dtype), x.shape)
        if x.kind in ("rms_norm_plain", "layer_norm_plain") and x.args[0].kind == "astype":
            inner = x.args[0].args[0]
            # the kernels compute in float32 whatever they are given
            if inner.dtype == dtype and dtype in (mx.float16, mx.bfloat16) and x.dtype == mx.float32:
                return self.op(x.kind, (inner,), x.attrs, x.shape, dtype)
        if x.kind == SIZE:
            return self.size(x.attrs[0], dtype)
        if x.kind == NUMBER:
            return self.number(_cast(x.number, dtype), dtype)
        if x.kind == "affine":
            return self.op("affine", (), x.attrs, x.shape, dtype)
        return self.op("astype", (x,), (), x.shape, dtype)

    # -- shapes ----------------------------------------------------------------------------------------------------

    def reshape(self, x: Op, shape: Shape) -> Op:
        """`x` in another shape; two in a row are one, and layers are called on what comes before."""
        if x.kind == "reshape":
            return self.reshape(x.args[0], shape)
        if x.shape == shape:
            return x
        if x.kind == FULL:
            return self.full(x.args[0], shape)
        if x.kind == "reduce" and x.attrs[2] and shape == _without(x.shape, x.attrs[1]):
            return self.op("reduce", x.args, (x.attrs[0], x.attrs[1], False), shape, x.dtype)
        if x.kind == "linear" and shape and shape[-1] == x.shape[-1] and x.args[0].kind == "reshape":
            inner = self.reshape(x.args[0].args[0], (*shape[:-1], x.args[0].shape[-1]))
            return self.relayer(x, inner, shape)
        if x.kind == "transpose":
            found = self._merged(x, shape)
            if found is not None:
                return found
        if x.kind == "affine" and len([d for d in shape if not is_one(d)]) == len(
            [d for d in x.shape if not is_one(d)]
        ):
            return self._affine_reshaped(x, shape)
        return self.op("reshape", (x,), (), shape, x.dtype)

    def relayer(self, layer: Op, x: Op, shape: Shape) -> Op:
        """The same layer over another input."""
        key = (layer.kind, id(x), repr(layer.attrs), *((name, id(array)) for name, array in layer.params.items()))
        found = self._made.get(key)
        if found is None:
            found = Op(layer.kind, (x,), layer.attrs, shape, layer.dtype, self.path, params=layer.params)
            self._made[key] = found
        return found

    def _affine_reshaped(self, x: Op, shape: Shape) -> Op:
        base, steps = x.attrs
        left = [step for step, dim in zip(steps, x.shape, strict=True) if not is_one(dim)]
        zero = self.dim(0)
        places = iter(left)
        new = tuple(zero if is_one(dim) else next(places) for dim in shape)
        return self.op("affine", (), (base, new), shape, x.dtype)

    def _merged(self, x: Op, shape: Shape) -> Op | None:
        """A reshape that merges axes which were neighbours before the transpose is done before it."""
        inner, perm = x.args[0], x.attrs[0]
        runs: list[list[int]] = []
        axis = 0
        for dim in shape:
            run: list[int] = []
            while axis < x.ndim and (not run or product([x.shape[a] for a in run], self.traces) != dim):
                run.append(axis)
                axis += 1
            if product([x.shape[a] for a in run], self.traces) != dim:
                return None
            runs.append([perm[a] for a in run])
        if axis != x.ndim or not all(runs) or any(run != list(range(run[0], run[0] + len(run))) for run in runs):
            return None
        order = sorted(range(len(runs)), key=lambda place: runs[place][0])
        merged = tuple(shape[place] for place in order)
        return self.transpose(self.reshape(inner, merged), tuple(order.index(place) for place in range(len(runs))))

    def transpose(self, x: Op, perm: Sequence[int]) -> Op:
        """`x` with its axes in another order."""
        if list(perm) == list(range(len(perm))):
            return x
        shape = tuple(x.shape[axis] for axis in perm)
        if x.kind == "transpose":
            return self.transpose(x.args[0], tuple(x.attrs[0][axis] for axis in perm))
        if x.kind == FULL:
            return self.full(x.args[0], shape)
        if [axis for axis in perm if not is_one(x.shape[axis])] == [
            axis for axis in range(x.ndim) if not is_one(x.shape[axis])
        ]:
            return self.reshape(x, shape)
        return self.op("transpose", (x,), (tuple(perm),), shape, x.dtype)

    def slice(self, x: Op, starts: Sequence[Dim], stops: Sequence[Dim], steps: Sequence[Dim], shape: Shape) -> Op:
        """A part of `x`."""
        if shape == x.shape and all(step[0] > 0 for step in steps):
            return x
        if x.kind == FULL:
            return self.full(x.args[0], shape)
        return self.op("slice", (x,), (tuple(starts), tuple(stops), tuple(steps)), shape, x.dtype)

    def take(self, x: Op, index: Op, axis: int) -> Op:
        """The elements of `x` along `axis` at `index`; an embedding where `x` is a table of weights."""
        shape = (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])
        index = self.unclipped(index, x.shape[axis])
        if x.kind == CONST and x.ndim == 2 and axis == 0 and x.dtype in FLOATS and index.kind != NUMBER:
            return self.layer("embedding", index, (), shape, {"weight": x})
        if index.kind == "affine" and self._row_major(index) and product(index.shape, self.traces) == x.shape[axis]:
            return self.reshape(x, shape)
        return self.op("take", (x, index), (axis,), shape, x.dtype)

    def _row_major(self, index: Op) -> bool:
        if any(index.attrs[0]):
            return False
        step = self.dim(1)
        for dim, each in zip(reversed(index.shape), reversed(index.attrs[1]), strict=True):
            if not is_one(dim) and each != step:
                return False
            step = product([step, dim], self.traces)
        return True

    def unclipped(self, index: Op, size: Dim) -> Op:
        """An index without what keeps it in range: ONNX has no other indices, and MLX knows negative ones too."""
        if index.kind == "minimum" and self._is(index.args[1], size, -1):
            inner = index.args[0]
            if inner.kind == "maximum" and inner.args[1].number == 0:
                wrapped = inner.args[0]
                if wrapped.kind == "where":
                    test, plus, plain = wrapped.args
                    wraps = test.kind == "less" and test.args[0] is plain and test.args[1].number == 0
                    if wraps and plus.kind == "add" and plain in plus.args:
                        return plain
                return wrapped
        return index

    def _is(self, number: Op, size: Dim, extra: int) -> bool:
        if number.kind == NUMBER:
            return fixed(size) and number.number == size[0] + extra
        return number.kind == "size" and number.attrs[0] == tuple(each + extra for each in size)

    def concatenate(self, parts: Sequence[Op], axis: int, shape: Shape, dtype: mx.Dtype) -> Op:
        """Parts joined along an axis."""
        if len(parts) == 1:
            return parts[0]
        return recognized(self, "concatenate", parts, shape, dtype, axis) or self.op(
            "concatenate", parts, (axis,), shape, dtype
        )

    def matmul(self, a: Op, b: Op, shape: Shape, dtype: mx.Dtype) -> Op:
        """A product; a linear layer where the right operand is a matrix of weights."""
        a, b = (x.args[0] if x.kind == "broadcast" and self._fits(x, a, b, shape) else x for x in (a, b))
        if b.kind == CONST and b.ndim == 2 and a.ndim > 1 and b.array is not None and dtype in FLOATS:
            weight = self.const(mx.transpose(b.array), ("transposed", id(b)), b.name)
            return self.layer("linear", a, (), shape, {"weight": weight})
        return self.op("matmul", (a, b), (), shape, dtype)

    def _fits(self, x: Op, a: Op, b: Op, shape: Shape) -> bool:
        inner = x.args[0]
        shapes = [inner.shape if each is x else each.shape for each in (a, b)]
        if min(map(len, shapes)) < 2:
            return False
        lead = broadcast([each[:-2] for each in shapes])
        return lead == shape[:-2] and inner.shape[-2:] == x.shape[-2:]


def lowest(op: Op) -> float:
    """A number that no element of `op` is below."""
    if op.kind == NUMBER:
        return float(op.number)
    if op.kind in ("embedding", CONST):
        array = op.array if op.kind == CONST else op.params["weight"]
        return float(mx.min(array).item()) if array is not None and array.size else -math.inf  # type: ignore[arg-type]
    if op.kind in ("reshape", "transpose", "broadcast", FULL, "slice"):
        return lowest(op.args[0])
    if op.kind == "where":
        return min(map(lowest, op.args[1:]))
    if op.kind == "maximum":
        return max(map(lowest, op.args))
    if op.kind == "add" and op.dtype == mx.float32:
        # rounding keeps the order, so no sum is below the rounded sum of the lowest
        with np.errstate(all="ignore"):
            return float(np.float32(lowest(op.args[0])) + np.float32(lowest(op.args[1])))
    return -math.inf


def _without(shape: Shape, axes: Sequence[int]) -> Shape:
    return tuple(dim for axis, dim in enumerate(shape) if axis not in axes)


_HOST = {"logical_not": np.logical_not, "negative": np.negative, "sqrt": np.sqrt, "exp": np.exp, "square": np.square}


def _folded(fn: str, numbers: Sequence[Any], dtype: mx.Dtype) -> Any:
    with np.errstate(all="ignore"):
        if fn == "where":
            return numbers[1] if numbers[0] else numbers[2]
        return _cast(_HOST.get(fn, getattr(np, fn, None))(*numbers), dtype)  # type: ignore[misc]


def _cast(value: Any, dtype: mx.Dtype) -> Any:
    if dtype == mx.bool_:
        return bool(value)
    return float(value) if dtype in FLOATS else int(value)
