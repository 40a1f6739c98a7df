"""Reductions along axes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from fuser.frontends.onnx_ops.math import const, reduced
from fuser.frontends.onnx_ops.registry import Call, ints, on_host, op
from fuser.frontends.onnx_types import HALVES, INTEGERS, Host

Reduce = Callable[[mx.array, list[int], bool], mx.array]


def _axes(call: Call, axes: Host | None, ndim: int) -> list[int] | None:
    """The axes to reduce; `None` when the node means: leave the array alone."""
    given = call.get("axes") if axes is None else ints(axes)
    if not given and (axes is not None or given is None):
        return None if call.flag("noop_with_empty_axes") else list(range(ndim))
    return call.axes(given, ndim)


def _sum(x: mx.array, axes: list[int], keep: bool) -> mx.array:
    return reduced("sum", x, axes, keep).astype(x.dtype)


def _mean(x: mx.array, axes: list[int], keep: bool) -> mx.array:
    if x.dtype in INTEGERS:
        return mx.floor_divide(_sum(x, axes, keep), const(math.prod(x.shape[axis] for axis in axes), x))
    return reduced("mean", x, axes, keep)


def _extreme(smallest: bool) -> Reduce:
    def reduce(x: mx.array, axes: list[int], keep: bool) -> mx.array:
        if x.dtype == mx.bool_:
            return reduced("all" if smallest else "any", x, axes, keep)
        return reduced("min" if smallest else "max", x, axes, keep)

    return reduce


def _prod(x: mx.array, axes: list[int], keep: bool) -> mx.array:
    return reduced("prod", x, axes, keep).astype(x.dtype)


def _l1(x: mx.array, axes: list[int], keep: bool) -> mx.array:
    return _sum(mx.abs(x), axes, keep)


def _l2(x: mx.array, axes: list[int], keep: bool) -> mx.array:
    wide = x.astype(mx.float32) if x.dtype in HALVES or x.dtype in INTEGERS else x
    return mx.sqrt(reduced("sum", mx.square(wide), axes, keep)).astype(x.dtype)


def _log_sum(x: mx.array, axes: list[int], keep: bool) -> mx.array:
    return mx.log(_sum(x, axes, keep)).astype(x.dtype)


def _log_sum_exp(x: mx.array, axes: list[int], keep: bool) -> mx.array:
    return reduced("logsumexp", x, axes, keep).astype(x.dtype)


def _sum_square(x: mx.array, axes: list[int], keep: bool) -> mx.array:
    return _sum(mx.square(x), axes, keep)


def _before_reducing(name: str, x: mx.array) -> mx.array:
    """What an element alone gives, when nothing is reduced."""
    if name in ("ReduceL1", "ReduceL2"):
        return mx.abs(x)
    if name == "ReduceLogSum":
        return mx.log(x)
    return mx.square(x) if name == "ReduceSumSquare" else x


def _register(name: str, function: Reduce) -> None:
    @op(name, host=(1,))
    def _(call: Call, x: mx.array, axes: Host | None = None) -> mx.array:
        chosen = _axes(call, axes, x.ndim)
        if chosen is None:
            return _before_reducing(name, x)
        if not chosen:
            return function(x[None], [0], False)
        return function(x, chosen, call.flag("keepdims", True))


for _name, _function in {
    "ReduceSum": _sum,
    "ReduceMean": _mean,
    "ReduceMax": _extreme(False),
    "ReduceMin": _extreme(True),
    "ReduceProd": _prod,
    "ReduceL1": _l1,
    "ReduceL2": _l2,
    "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceSumSquare": _sum_square,
}.items():
    _register(_name, _function)


def _on_host(name: str, function: Callable[..., Any]) -> None:
    @on_host(name)
    def _(call: Call, x: Host, axes: Host | None = None) -> Host:
        chosen = _axes(call, axes, x.ndim)
        if chosen is None:
            return x
        return np.asarray(function(x, axis=tuple(chosen), keepdims=call.flag("keepdims", True), dtype=x.dtype))


_on_host("ReduceSum", np.sum)
_on_host("ReduceProd", np.prod)


def _arg(largest: bool) -> Callable[[Call, mx.array], mx.array]:
    def function(call: Call, x: mx.array) -> mx.array:
        axis = call.axis(call.integer("axis", 0), x.ndim)
        choose = mx.argmax if largest else mx.argmin
        if call.flag("select_last_index"):
            turned = tuple(slice(None, None, -1) if at == axis else slice(None) for at in range(x.ndim))
            last = choose(x[turned], axis=axis, keepdims=call.flag("keepdims", True)).astype(mx.int64)
            return mx.array(x.shape[axis] - 1, dtype=mx.int64) - last
        return choose(x, axis=axis, keepdims=call.flag("keepdims", True)).astype(mx.int64)

    return function


op("ArgMax")(_arg(True))
op("ArgMin")(_arg(False))
