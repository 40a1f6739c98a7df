"""Resize and its kin: one interpolation matrix for each axis, made on the host."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np

from fuser.frontends.onnx_ops.math import const, in_float32
from fuser.frontends.onnx_ops.registry import Call, ints, op
from fuser.frontends.onnx_ops.shape import check_dims
from fuser.frontends.onnx_types import Host

Filter = Callable[[Host], Host]


def _linear(distance: Host) -> Host:
    return np.asarray(np.maximum(0, 1 - np.abs(distance)))


def _cubic(a: float) -> Filter:
    def weigh(distance: Host) -> Host:
        d = np.abs(distance)
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        return np.where(d <= 1, near, np.where(d < 2, far, 0.0))

    return weigh


def _coordinates(call: Call, mode: str, size: int, out: int, scale: float, roi: tuple[float, float]) -> Host:
    """Where each output element lies on the input's axis."""
    x = np.arange(out, dtype=np.float64)
    if mode == "half_pixel":
        return (x + 0.5) / scale - 0.5
    if mode == "half_pixel_symmetric":
        # the centre of the output must meet the centre of the input even if the scale was rounded
        adjustment = out / (scale * size)
        return size / 2 * (1 - adjustment) + (x + 0.5) / scale - 0.5
    if mode == "pytorch_half_pixel":
        return (x + 0.5) / scale - 0.5 if out > 1 else np.full(out, -0.5)
    if mode == "align_corners":
        if abs(out - scale * size) > 1e-3:
            raise call.refuse(
                f"align_corners with a scale of {scale:g} for {size} elements, which give no whole number: "
                "ONNX and ONNX Runtime disagree about it"
            )
        return x * (size - 1) / (out - 1) if out > 1 else np.zeros(out)
    if mode == "asymmetric":
        return x / scale
    if mode == "tf_half_pixel_for_nn":
        return (x + 0.5) / scale
    if mode == "tf_crop_and_resize":
        start, end = roi
        if out > 1:
            return start * (size - 1) + x * (end - start) * (size - 1) / (out - 1)
        return np.full(out, 0.5 * (start + end) * (size - 1))
    raise call.invalid(f"coordinate_transformation_mode {mode!r} is unknown")


def _nearest(call: Call, at: Host, size: int) -> Host:
    how = call.text("nearest_mode", "round_prefer_floor")
    if how == "round_prefer_floor":
        places = np.ceil(at - 0.5)
    elif how == "round_prefer_ceil":
        places = np.floor(at + 0.5)
    elif how == "floor":
        places = np.floor(at)
    elif how == "ceil":
        places = np.ceil(at)
    else:
        raise call.invalid(f"nearest_mode {how!r} is unknown")
    return np.clip(places, 0, size - 1).astype(np.int64)


def _matrix(call: Call, at: Host, size: int, scale: float, weigh: Filter, support: int) -> Host:
    """The weights `[out, in]` with which every output takes the inputs around it."""
    shrink = min(scale, 1.0) if call.flag("antialias") else 1.0
    reach = math.ceil(support / shrink) + 1
    places = np.floor(at).astype(np.int64)[:, None] + np.arange(-reach, reach + 1)
    weights = weigh((places - at[:, None]) * shrink)
    if shrink < 1 or call.flag("exclude_outside"):
        if call.flag("exclude_outside"):
            weights = np.where((places < 0) | (places >= size), 0, weights)
        total = weights.sum(axis=1, keepdims=True)
        weights = weights / np.where(total == 0, 1, total)
    matrix = np.zeros((len(at), size))
    rows = np.broadcast_to(np.arange(len(at))[:, None], places.shape)
    np.add.at(matrix, (rows, np.clip(places, 0, size - 1)), weights)
    return matrix


def _along(x: mx.array, matrix: Host, axis: int) -> mx.array:
    weights = mx.array(np.ascontiguousarray(matrix.T), dtype=x.dtype)
    return mx.moveaxis(mx.matmul(mx.moveaxis(x, axis, -1), weights), -1, axis)


def _sizes(
    call: Call, dims: Sequence[int], axes: list[int], scales: Host | None, sizes: Host | None
) -> tuple[list[int], list[float]]:
    """The output's size and the scale along each of `axes`."""
    policy = call.text("keep_aspect_ratio_policy", "stretch")
    if sizes is not None and sizes.size:
        wanted = ints(sizes)
        if len(wanted) != len(axes):
            raise call.invalid(f"sizes {wanted} do not fit {len(axes)} axes")
        ratios = [want / dims[axis] for want, axis in zip(wanted, axes, strict=True)]
        if policy == "stretch":
            return wanted, ratios
        ratio = min(ratios) if policy == "not_larger" else max(ratios)
        return [math.floor(ratio * dims[axis] + 0.5) for axis in axes], [ratio] * len(axes)
    if scales is None or scales.size != len(axes):
        raise call.invalid("it has neither scales nor sizes that fit its axes")
    factors = [float(item) for item in scales.reshape(-1)]
    return [math.floor(factor * dims[axis]) for factor, axis in zip(factors, axes, strict=True)], factors


def _resize(
    call: Call,
    x: mx.array,
    axes: list[int],
    sizes: list[int],
    scales: list[float],
    roi: list[float],
    transform: str,
) -> mx.array:
    mode = call.text("mode", "nearest")
    if mode not in ("nearest", "linear", "cubic"):
        raise call.refuse(f"mode {mode!r}")
    check_dims(call, sizes)
    if min(scales, default=1.0) <= 0 or not all(map(math.isfinite, scales)) or 0 in x.shape:
        raise call.invalid(f"an array of shape {list(x.shape)} cannot be resized by {scales}")
    outside: mx.array | None = None
    for place, (axis, out, scale) in enumerate(zip(axes, sizes, scales, strict=True)):
        size = x.shape[axis]
        crop = transform == "tf_crop_and_resize"
        if out == size and scale == 1 and not crop:
            continue
        at = _coordinates(call, transform, size, out, scale, (roi[place], roi[place + len(axes)]) if crop else (0, 1))
        if crop and ((at < 0) | (at > size - 1)).any():
            shape = [1] * x.ndim
            shape[axis] = out
            beyond = mx.array(((at < 0) | (at > size - 1)).reshape(shape))
            outside = beyond if outside is None else mx.logical_or(outside, beyond)
        if mode == "nearest":
            x = mx.take(x, mx.array(_nearest(call, at, size)), axis=axis)
        elif mode == "linear":
            x = _along(x, _matrix(call, at, size, scale, _linear, 1), axis)
        else:
            weigh = _cubic(call.number("cubic_coeff_a", -0.75))
            x = _along(x, _matrix(call, at, size, scale, weigh, 2), axis)
    return x if outside is None else mx.where(outside, const(call.number("extrapolation_value", 0.0), x), x)


@op("Resize", since=11, host=(1, 2, 3))
def resize(
    call: Call, x: mx.array, roi: Host | None = None, scales: Host | None = None, sizes: Host | None = None
) -> mx.array:
    """Resize along some axes."""
    axes = call.axes(call.integers("axes", list(range(x.ndim))), x.ndim)
    out, factors = _sizes(call, x.shape, axes, scales, sizes)
    region = (
        [float(item) for item in roi.reshape(-1)]
        if roi is not None and roi.size == 2 * len(axes)
        else [*[0.0] * len(axes), *[1.0] * len(axes)]
    )
    transform = call.text("coordinate_transformation_mode", "half_pixel")
    if call.text("mode", "nearest") == "nearest":
        return _resize(call, x, axes, out, factors, region, transform)
    return _floats(lambda v: _resize(call, v, axes, out, factors, region, transform), x)


def _floats(function: Callable[[mx.array], mx.array], x: mx.array) -> mx.array:
    if x.dtype in (mx.int8, mx.uint8, mx.int32):
        return function(x.astype(mx.float32)).astype(x.dtype)
    return in_float32(function, x)


@op("Resize", "Upsample", host=(1,))
def upsample(call: Call, x: mx.array, scales: Host | None = None) -> mx.array:
    """Resize before opset 11, and Upsample: coordinates are divided by the scale, and cut."""
    factors = call.get("scales") if scales is None else [float(item) for item in scales.reshape(-1)]
    axes = list(range(x.ndim))
    if factors is None or len(factors) != x.ndim:
        raise call.invalid(f"scales {factors} do not fit an array of {x.ndim} dimensions")
    out = [math.floor(factor * size) for factor, size in zip(factors, x.shape, strict=True)]
    mode = call.text("mode", "nearest")
    renamed = Call(
        call.name,
        call.operator,
        call.version,
        {"mode": "linear" if mode == "bilinear" else mode, "nearest_mode": "floor"},
        call.outputs,
    )
    return _resize(renamed, x, axes, out, list(factors), [], "asymmetric")
