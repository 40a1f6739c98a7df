"""Padding and resizing."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from fuser.frontends.onnx_ops.math import const
from fuser.frontends.onnx_ops.registry import Call, ints, op
from fuser.frontends.onnx_ops.shape import check_dims
from fuser.frontends.onnx_types import Host


@op("Pad", since=11, host=(1, 3))
def pad(call: Call, x: mx.array, pads: Host, value: mx.array | None = None, axes: Host | None = None) -> mx.array:
    """Elements added (or cut, where negative) around an array."""
    chosen = list(range(x.ndim)) if axes is None else call.axes(ints(axes), x.ndim)
    return padded(call, x, ints(pads), chosen, value)


@op("Pad")
def pad_attributes(call: Call, x: mx.array) -> mx.array:
    """Pad before opset 11."""
    pads = call.integers("pads")
    return padded(call, x, pads, list(range(x.ndim)), const(call.number("value", 0.0), x))


def padded(call: Call, x: mx.array, pads: list[int], axes: list[int], value: mx.array | None) -> mx.array:
    """`x` padded along `axes` by `pads` (all starts, then all ends)."""
    if len(pads) != 2 * len(axes):
        raise call.invalid(f"pads {pads} do not fit {len(axes)} axes")
    widths = [(0, 0)] * x.ndim
    for place, axis in enumerate(axes):
        widths[axis] = (pads[place], pads[place + len(axes)])
    check_dims(call, [size + low + high for size, (low, high) in zip(x.shape, widths, strict=True)])
    mode = call.text("mode", "constant")
    cut = tuple(slice(max(0, -low), size - max(0, -high)) for size, (low, high) in zip(x.shape, widths, strict=True))
    if any(low < 0 or high < 0 for low, high in widths):
        x = x[cut]
    widths = [(max(0, low), max(0, high)) for low, high in widths]
    if not any(low or high for low, high in widths):
        return x
    if mode == "constant":
        fill = const(0, x) if value is None else value.reshape(())
        return mx.pad(x, widths, constant_values=fill)
    for axis, (low, high) in enumerate(widths):
        if low or high:
            places = _around(call, x.shape[axis], low, high, mode)
            x = mx.take(x, mx.array(places), axis=axis)
    return x


def _around(call: Call, size: int, low: int, high: int, mode: str) -> Host:
    if size == 0:
        raise call.invalid("an empty axis has nothing to pad with")
    if mode not in ("reflect", "edge", "wrap"):
        raise call.invalid(f"mode {mode!r} is not one of constant, reflect, edge, wrap")
    places = np.arange(-low, size + high)
    if mode == "edge":
        return np.clip(places, 0, size - 1)
    if mode == "wrap":
        return places % size
    period = max(1, 2 * (size - 1))
    places = places % period
    return np.where(places >= size, period - places, places)
