"""Sampling of images between their pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import mlx.core as mx
import numpy as np

from fuser.frontends.onnx_ops.math import const, reduced
from fuser.frontends.onnx_ops.registry import Call, host_value, ints, op
from fuser.frontends.onnx_ops.shape import check_dims
from fuser.frontends.onnx_types import FLOATS, HALVES, Host


def _weights(mode: str, fraction: mx.array) -> list[tuple[int, mx.array]]:
    """The neighbours that a point between two pixels is made of, by their distance from the lower one."""
    one = const(1, fraction)
    if mode == "nearest":
        return [(0, mx.ones_like(fraction))]
    if mode == "linear":
        return [(0, one - fraction), (1, fraction)]
    a = const(-0.75, fraction)
    two, three, four, five, eight = (const(value, fraction) for value in (2, 3, 4, 5, 8))
    result = []
    for place in (-1, 0, 1, 2):
        d = mx.abs(fraction - const(place, fraction))
        if place in (0, 1):
            weight = ((a + two) * d - (a + three)) * d * d + one
        else:
            weight = ((a * d - five * a) * d + eight * a) * d - four * a
        result.append((place, weight))
    return result


def _reflected(x: mx.array, low: float, high: float) -> mx.array:
    """Coordinates folded back between two borders."""
    span = high - low
    if span <= 0:
        return mx.full(x.shape, low, dtype=x.dtype)
    distance = mx.abs(x - const(low, x))
    rest = mx.remainder(distance, const(2 * span, x))
    return const(low, x) + mx.where(rest > const(span, x), const(2 * span, x) - rest, rest)


def sample(data: mx.array, at: Sequence[mx.array], mode: str, padding: str = "zeros", align: bool = False) -> mx.array:
    """Values of `[N, C, *spatial]` at pixel coordinates, one array `[N, points]` for each spatial axis."""
    sizes = data.shape[2:]
    neighbours: list[list[tuple[mx.array, mx.array]]] = []
    for size, coordinate in zip(sizes, at, strict=True):
        low, high = (0.0, size - 1.0) if align else (-0.5, size - 0.5)
        x = mx.round(coordinate) if mode == "nearest" else coordinate
        outside = mx.logical_or(x < const(low, x), x > const(high, x))
        if padding == "border":
            x = mx.where(outside, mx.clip(x, const(0, x), const(size - 1, x)), x)
        elif padding == "reflection":
            x = mx.where(outside, _reflected(x, low, high), x)
        base = mx.floor(x)
        options = []
        for place, weight in _weights(mode, x - base):
            pixel = base + const(place, base)
            inside = mx.logical_and(pixel >= const(0, pixel), pixel <= const(size - 1, pixel))
            if padding == "zeros":
                weight = mx.where(inside, weight, const(0, weight))
            elif padding == "reflection":
                pixel = mx.where(inside, pixel, _reflected(pixel, low, high))
            # a coordinate that is no number makes an index that is out of range: clipped as integers, it is harmless
            index = mx.clip(pixel.astype(mx.int32), mx.array(0), mx.array(size - 1))
            options.append((index, weight))
        neighbours.append(options)
    flat = data.reshape(*data.shape[:2], -1)
    total: mx.array | None = None
    for corner in product(*neighbours):
        index, weight = corner[0]
        for size, (more, factor) in zip(sizes[1:], corner[1:], strict=True):
            index, weight = index * mx.array(size, dtype=mx.int32) + more, weight * factor
        spread = mx.broadcast_to(index[:, None], (*data.shape[:2], index.shape[1]))
        values = mx.take_along_axis(flat, spread, axis=2) * weight[:, None]
        total = values if total is None else total + values
    assert total is not None
    return total


@op("GridSample")
def grid_sample(call: Call, x: mx.array, grid: mx.array) -> mx.array:
    """Values of an image at the places that a grid gives, from -1 to 1 along each axis."""
    modes = {"bilinear": "linear", "bicubic": "cubic"}
    mode = call.text("mode", "bilinear" if call.version < 20 else "linear")
    mode = modes.get(mode, mode)
    padding, align = call.text("padding_mode", "zeros"), call.flag("align_corners")
    if mode not in ("nearest", "linear", "cubic") or padding not in ("zeros", "border", "reflection"):
        raise call.invalid(f"mode {mode!r} with padding_mode {padding!r}")
    rank = x.ndim - 2
    if rank < 1 or grid.ndim != x.ndim or grid.shape[-1] != rank or grid.shape[0] != x.shape[0]:
        raise call.invalid(f"a grid {list(grid.shape)} does not fit {list(x.shape)}")
    wide = x.astype(mx.float32) if x.dtype in HALVES or x.dtype not in FLOATS else x
    places = grid.astype(wide.dtype).reshape(grid.shape[0], -1, rank)
    at = []
    for axis, size in enumerate(x.shape[2:]):
        n = places[..., rank - 1 - axis] + const(1, places)
        half = const(0.5, n)
        at.append(n * half * const(size - 1, n) if align else (n * const(size, n) - const(1, n)) * half)
    result = sample(wide, at, mode, padding, align)
    return result.reshape(*x.shape[:2], *grid.shape[1:-1]).astype(x.dtype)


@op("AffineGrid", host=(1,))
def affine_grid(call: Call, theta: mx.array, size: Host) -> mx.array:
    """A grid for GridSample, from a matrix for each image."""
    dims = check_dims(call, ints(size)[2:], on_host=True)
    rank = len(dims)
    if rank not in (2, 3) or tuple(theta.shape[1:]) != (rank, rank + 1):
        raise call.invalid(f"matrices {list(theta.shape)} do not fit a grid of {dims}")
    lines = []
    for count in dims:
        steps = np.arange(count)
        if call.flag("align_corners"):
            lines.append(steps * 2 / (count - 1) - 1 if count > 1 else np.zeros(count))
        else:
            lines.append((2 * steps + 1) / count - 1)
    mesh = np.meshgrid(*lines, indexing="ij")
    points = np.stack([*mesh[::-1], np.ones(dims)], axis=-1).reshape(-1, rank + 1)
    product_ = mx.matmul(mx.array(points.astype(np.float32)).astype(theta.dtype), mx.transpose(theta, (0, 2, 1)))
    return product_.reshape(theta.shape[0], *dims, rank)


@op("DeformConv")
def deform_conv(
    call: Call,
    x: mx.array,
    weight: mx.array,
    offset: mx.array,
    bias: mx.array | None = None,
    mask: mx.array | None = None,
) -> mx.array:
    """Convolution whose kernel reads at places of its own for every output."""
    rank = x.ndim - 2
    kernel, out = list(weight.shape[2:]), list(offset.shape[2:])
    taps, points = math.prod(kernel), math.prod(out)
    groups, shared = call.integer("group", 1), call.integer("offset_group", 1)
    stride, dilation = call.integers("strides", [1] * rank), call.integers("dilations", [1] * rank)
    pads = call.integers("pads", [0] * 2 * rank)
    n, channels = x.shape[:2]
    if channels % shared or channels != weight.shape[1] * groups or offset.shape[1] != shared * taps * rank:
        raise call.invalid(f"weights {list(weight.shape)} and offsets {list(offset.shape)} do not fit {list(x.shape)}")
    moves = offset.reshape(n * shared, taps, rank, points)
    at = []
    for axis in range(rank):
        shape = [1] * 2 * rank
        shape[axis], shape[rank + axis] = kernel[axis], out[axis]
        place = np.arange(kernel[axis])[:, None] * dilation[axis] + np.arange(out[axis]) * stride[axis] - pads[axis]
        base = np.broadcast_to(place.reshape(shape), (*kernel, *out)).reshape(taps, points)
        at.append((moves[:, :, axis] + mx.array(base.astype(np.float32)).astype(x.dtype)).reshape(n * shared, -1))
    values = sample(x.reshape(n * shared, channels // shared, *x.shape[2:]), at, "linear", "zeros", True)
    values = values.reshape(n, shared, channels // shared, taps, points)
    if mask is not None:
        values = values * mask.reshape(n, shared, 1, taps, points)
    columns = values.reshape(n, groups, -1, points)
    rows = weight.reshape(1, groups, weight.shape[0] // groups, -1)
    result = mx.matmul(rows, columns).reshape(n, weight.shape[0], *out)
    return result if bias is None else result + bias.reshape(-1, *(1,) * rank)


@op("RoiAlign")
def roi_align(call: Call, x: mx.array, rois: mx.array, batch: mx.array) -> mx.array:
    """Regions of images pooled to one size."""
    ratio = call.integer("sampling_ratio", 0)
    if ratio > 0:
        return _pooled(call, x, rois, batch, ratio, ratio)
    boxes = _known(call, rois)
    parts = []
    for index, (left, top, right, bottom) in enumerate(boxes * call.number("spatial_scale", 1.0)):
        high, wide = bottom - top, right - left
        if not _half_pixel(call):
            high, wide = max(high, 1.0), max(wide, 1.0)
        rows = max(1, math.ceil(high / call.integer("output_height", 1)))
        columns = max(1, math.ceil(wide / call.integer("output_width", 1)))
        if rows * columns > 1 << 16:
            raise call.invalid(f"a region of {high:g} by {wide:g} takes too many samples")
        parts.append(_pooled(call, x, rois[index : index + 1], batch[index : index + 1], rows, columns))
    if parts:
        return mx.concatenate(parts, axis=0)
    return mx.zeros((0, x.shape[1], call.integer("output_height", 1), call.integer("output_width", 1)), dtype=x.dtype)


def _known(call: Call, rois: mx.array) -> Host:
    return host_value(rois, call, 1).astype(np.float64)


def _half_pixel(call: Call) -> bool:
    if call.version < 16:
        return False
    return call.text("coordinate_transformation_mode", "half_pixel") == "half_pixel"


def _line(
    call: Call, start: mx.array, end: mx.array, size: int, bins: int, samples: int
) -> list[tuple[mx.array, mx.array]]:
    """Along one axis: the two pixels of every sample and their weights, each `[regions, bins, samples]`."""
    length = end - start
    if not _half_pixel(call):
        length = mx.maximum(length, const(1, length))
    step = length / const(bins, length)
    inner = (np.arange(bins)[:, None] + (np.arange(samples) + 0.5) / samples).astype(np.float32)
    at = start[:, None, None] + step[:, None, None] * mx.array(inner).astype(start.dtype)
    outside = mx.logical_or(at < const(-1, at), at > const(size, at))
    at = mx.clip(at, const(0, at), const(size - 1, at))
    low = mx.floor(at)
    fraction = at - low
    high = mx.minimum(low + const(1, low), const(size - 1, low))
    zero = const(0, at)
    return [
        (low.astype(mx.int32), mx.where(outside, zero, const(1, at) - fraction)),
        (high.astype(mx.int32), mx.where(outside, zero, fraction)),
    ]


def _pooled(call: Call, x: mx.array, rois: mx.array, batch: mx.array, rows: int, columns: int) -> mx.array:
    if x.ndim != 4 or rois.ndim != 2 or rois.shape[1] != 4:
        raise call.invalid(f"regions of shape {list(rois.shape)} do not fit {list(x.shape)}")
    size = (call.integer("output_height", 1), call.integer("output_width", 1))
    if min(size) < 1 or math.prod([rois.shape[0], x.shape[1], *size, rows, columns]) > 1 << 28:
        raise call.invalid(f"regions of {list(size)} values, each of {rows} by {columns}, are too large or none")
    height, width = x.shape[2:]
    shift = const(0.5 if _half_pixel(call) else 0.0, rois)
    boxes = rois * const(call.number("spatial_scale", 1.0), rois) - shift
    vertical = _line(call, boxes[:, 1], boxes[:, 3], height, call.integer("output_height", 1), rows)
    horizontal = _line(call, boxes[:, 0], boxes[:, 2], width, call.integer("output_width", 1), columns)
    flat = mx.transpose(x, (0, 2, 3, 1)).reshape(-1, x.shape[1])
    image = mx.clip(batch.astype(mx.int32), mx.array(0), mx.array(x.shape[0] - 1)).reshape(-1, 1, 1, 1, 1)
    corners = []
    for (y, y_weight), (x_, x_weight) in product(vertical, horizontal):
        place = (image * mx.array(height) + y[:, :, :, None, None]) * mx.array(width) + x_[:, None, None]
        weight = y_weight[:, :, :, None, None] * x_weight[:, None, None]
        corners.append(mx.take(flat, place, axis=0) * weight[..., None])
    # [regions, out height, rows, out width, columns, channels]
    if call.text("mode", "avg") == "avg":
        result = reduced("mean", corners[0] + corners[1] + corners[2] + corners[3], (2, 4), keep=False)
    else:
        result = reduced("max", mx.stack(corners), (0, 3, 5), keep=False)
    return mx.transpose(result, (0, 3, 1, 2))


@op("NonMaxSuppression", host=(0, 1, 2, 3, 4))
def non_max_suppression(
    call: Call,
    boxes: Host,
    scores: Host,
    most: Host | None = None,
    overlap: Host | None = None,
    least: Host | None = None,
) -> Host:
    """The best boxes that do not overlap, of values known on the host."""
    limit = 0 if most is None else ints(most)[0]
    threshold = 0.0 if overlap is None else float(overlap.reshape(-1)[0])
    corners = _corners(boxes, call.flag("center_point_box"))
    chosen: list[tuple[int, int, int]] = []
    for image, kind in product(range(scores.shape[0]), range(scores.shape[1])):
        values = scores[image, kind]
        order = [int(item) for item in np.argsort(-values, kind="stable")]
        if least is not None:
            order = [item for item in order if values[item] > float(least.reshape(-1)[0])]
        kept: list[int] = []
        for item in order:
            if len(kept) >= limit:
                break
            if all(_overlap(corners[image, item], corners[image, other]) <= threshold for other in kept):
                kept.append(item)
        chosen.extend((image, kind, item) for item in kept)
    return np.array(chosen, dtype=np.int64).reshape(-1, 3)


def _corners(boxes: Host, centers: bool) -> Host:
    first, second = boxes[..., :2], boxes[..., 2:]
    if centers:
        first, second = first - second / 2, first + second / 2
    return np.concatenate([np.minimum(first, second), np.maximum(first, second)], axis=-1)


def _overlap(a: Host, b: Host) -> float:
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    common = float(np.prod(np.maximum(sides, 0)))
    union = float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])) - common
    return common / union if union > 0 else 0.0
