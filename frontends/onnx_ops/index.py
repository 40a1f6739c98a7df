"""Reading and writing at indices. MLX does not check indices, so they are made safe here."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np

from fuser.errors import InvalidInputError
from fuser.frontends.onnx_ops.math import const
from fuser.frontends.onnx_ops.registry import Call, host_value, ints, on_host, op
from fuser.frontends.onnx_ops.shape import check_dims, shape_of
from fuser.frontends.onnx_types import INTEGERS, UNSIGNED, Host, Narrow, Value, to_host


def safe_host(call: Call, indices: Host, size: int) -> Host:
    """Host indices from 0 on; refuses what is out of range."""
    if indices.dtype.kind not in "iu":
        raise call.invalid("its indices are no integers")
    if indices.size and (indices.min() < -size or indices.max() >= size):
        raise InvalidInputError(
            f"{call}: indices from {indices.min()} to {indices.max()} are out of range for an axis of {size}"
        )
    return np.where(indices < 0, indices + size, indices) if indices.size and indices.min() < 0 else indices


def safe(call: Call, indices: Value, size: int) -> mx.array:
    """Indices from 0 on; what is known only at run time is clamped, since MLX would read outside the array."""
    if isinstance(indices, np.ndarray):
        return call.array(safe_host(call, indices, size))
    index = call.array(indices)
    if index.dtype not in INTEGERS:
        raise call.invalid("its indices are no integers")
    if size == 0 and index.size:
        raise call.invalid("it reads from an empty axis")
    if index.dtype not in UNSIGNED:
        index = mx.where(index < 0, index + const(size, index), index)
    return mx.clip(index, const(0, index), const(max(size - 1, 0), index))


def _unwrap(call: Call, value: Value) -> tuple[mx.array, int | None]:
    return call.array(value), value.type if isinstance(value, Narrow) else None


def _wrap(result: mx.array, narrow: int | None) -> mx.array | Narrow:
    return result if narrow is None else Narrow(result, narrow)


@op("Gather", raw=True)
def gather(call: Call, x: Value, indices: Value) -> Value:
    """Slices of an axis, by index."""
    if isinstance(x, np.ndarray) and isinstance(indices, np.ndarray):
        axis = call.axis(call.integer("axis", 0), x.ndim)
        return np.take(x, safe_host(call, indices, x.shape[axis]), axis=axis)
    data, narrow = _unwrap(call, x)
    axis = call.axis(call.integer("axis", 0), data.ndim)
    if isinstance(indices, np.ndarray) and indices.ndim == 0:
        indices = safe_host(call, indices, data.shape[axis])
        return _wrap(mx.take(data, int(indices), axis=axis), narrow)
    return _wrap(mx.take(data, safe(call, indices, data.shape[axis]), axis=axis), narrow)


@op("GatherElements", raw=True, since=11)
def gather_elements(call: Call, x: Value, indices: Value) -> Value:
    """Elements of an axis, by an index for each."""
    axis = call.axis(call.integer("axis", 0), len(shape_of(x)))
    if isinstance(x, np.ndarray) and isinstance(indices, np.ndarray):
        parts = tuple(slice(None) if at == axis else slice(size) for at, size in enumerate(indices.shape))
        return np.take_along_axis(x[parts], safe_host(call, indices, x.shape[axis]), axis=axis)
    data, narrow = _unwrap(call, x)
    index = safe(call, indices, data.shape[axis])
    if any(size > data.shape[at] for at, size in enumerate(index.shape) if at != axis):
        raise call.invalid(f"indices of shape {list(index.shape)} do not fit data of shape {list(data.shape)}")
    window = tuple(slice(None) if at == axis else slice(size) for at, size in enumerate(index.shape))
    if any(at != axis and size != data.shape[at] for at, size in enumerate(index.shape)):
        data = data[window]
    return _wrap(mx.take_along_axis(data, index, axis=axis), narrow)


def flat_index(call: Call, indices: Value, dims: list[int]) -> mx.array | Host:
    """Index tuples (on the last axis) into leading dimensions `dims`, as places in those flattened."""
    strides = [math.prod(dims[axis + 1 :]) for axis in range(len(dims))]
    total: mx.array | Host | None = None
    for axis, (size, stride) in enumerate(zip(dims, strides, strict=True)):
        part: mx.array | Host
        if isinstance(indices, np.ndarray):
            part = safe_host(call, indices[..., axis], size) * stride
        else:
            part = safe(call, call.array(indices)[..., axis], size)
            part = part * const(stride, part)
        total = part if total is None else total + part
    if total is None:
        return np.zeros(
            indices.shape[:-1] if isinstance(indices, np.ndarray) else call.array(indices).shape[:-1],
            np.int64,
        )
    return total


@op("GatherND", raw=True)
def gather_nd(call: Call, x: Value, indices: Value) -> Value:
    """Slices at index tuples."""
    both = isinstance(x, np.ndarray) and isinstance(indices, np.ndarray)
    data, narrow = _unwrap(call, x)
    shape = indices.shape if isinstance(indices, np.ndarray) else call.array(indices).shape
    batch, depth = call.integer("batch_dims", 0), shape[-1]
    if batch + depth > data.ndim or data.shape[:batch] != shape[:batch]:
        raise call.invalid(f"indices of shape {list(shape)} do not fit data of shape {list(data.shape)}")
    dims = list(data.shape[batch : batch + depth])
    place = flat_index(call, indices, dims)
    rows = math.prod(data.shape[:batch])
    if batch:
        offset = np.arange(rows).reshape(*shape[:batch], *(1,) * (len(shape) - 1 - batch)) * math.prod(dims)
        place = place + (offset if isinstance(place, np.ndarray) else mx.array(offset.astype(np.int64)))
    flat = mx.reshape(data, (rows * math.prod(dims), *data.shape[batch + depth :]))
    result = mx.take(flat, place if isinstance(place, mx.array) else mx.array(np.ascontiguousarray(place)), axis=0)
    return to_host(result) if both else _wrap(result, narrow)


def _accumulate(call: Call, reduction: str, flat: mx.array, index: mx.array, updates: mx.array) -> mx.array:
    at = flat.at[index]
    if reduction == "add":
        return at.add(updates)
    if reduction == "mul":
        return at.multiply(updates)
    if reduction == "max":
        return at.maximum(updates)
    if reduction == "min":
        return at.minimum(updates)
    if reduction != "none":
        raise call.refuse(f"reduction {reduction!r} is not one of none, add, mul, min, max")
    flat = mx.array(flat)
    flat[index] = updates
    return flat


def _scatter(call: Call, reduction: str, flat: mx.array, place: Value, updates: mx.array) -> mx.array:
    """Write `updates` into rows of `flat`; of rows written twice without a reduction, the last one counts."""
    if isinstance(place, np.ndarray):
        place = np.ascontiguousarray(place.reshape(-1))
        if place.size == 0:
            return flat
        if reduction == "none" and np.array_equal(place, np.arange(place[0], place[0] + place.size)):
            first = int(place[0])
            return mx.concatenate([flat[:first], updates, flat[first + place.size :]], axis=0)
    elif call.array(place).size == 0:
        return flat
    return _accumulate(call, reduction, flat, call.array(place).reshape(-1), updates)


@op("ScatterND", raw=True)
def scatter_nd(call: Call, x: Value, indices: Value, updates: Value) -> Value:
    """Slices written at index tuples."""
    data, values = call.array(x), call.array(updates)
    shape = indices.shape if isinstance(indices, np.ndarray) else call.array(indices).shape
    depth = shape[-1]
    if depth > data.ndim or tuple(values.shape) != (*shape[:-1], *data.shape[depth:]):
        raise call.invalid(f"indices {list(shape)} and updates {list(values.shape)} do not fit data {list(data.shape)}")
    dims = list(data.shape[:depth])
    rest = data.shape[depth:]
    flat = mx.reshape(data, (math.prod(dims), *rest))
    place = flat_index(call, indices, dims)
    rows = mx.reshape(values, (math.prod(shape[:-1]), *rest))
    result = mx.reshape(_scatter(call, call.text("reduction", "none"), flat, place, rows), data.shape)
    return _like_inputs(result, x, indices, updates)


def _like_inputs(result: mx.array, *inputs: Value) -> Value:
    return to_host(result) if all(isinstance(item, np.ndarray) for item in inputs) else result


@op("Scatter", "ScatterElements", raw=True)
def scatter_elements(call: Call, x: Value, indices: Value, updates: Value) -> Value:
    """Elements of an axis written at an index for each."""
    data, values = call.array(x), call.array(updates)
    axis = call.axis(call.integer("axis", 0), data.ndim)
    shape = indices.shape if isinstance(indices, np.ndarray) else call.array(indices).shape
    if len(shape) != data.ndim or any(size > data.shape[at] for at, size in enumerate(shape) if at != axis):
        raise call.invalid(f"indices of shape {list(shape)} do not fit data of shape {list(data.shape)}")
    stride = math.prod(data.shape[axis + 1 :])
    grid = np.indices(shape, sparse=True)
    base = sum(grid[at] * math.prod(data.shape[at + 1 :]) for at in range(data.ndim) if at != axis) + np.zeros(
        shape, dtype=np.int64
    )
    place: Value
    if isinstance(indices, np.ndarray):
        place = base + safe_host(call, indices, data.shape[axis]).astype(np.int64) * stride
    else:
        index = safe(call, indices, data.shape[axis])
        place = index.astype(mx.int64) * mx.array(stride, dtype=mx.int64) + mx.array(base)
    flat = _scatter(
        call, call.text("reduction", "none"), mx.reshape(data, (data.size,)), place, mx.reshape(values, (-1,))
    )
    return _like_inputs(mx.reshape(flat, data.shape), x, indices, updates)


@op("OneHot", raw=True, host=(1,))
def one_hot(call: Call, indices: Value, depth: Value, values: Value) -> Value:
    """One value at each index, another everywhere else."""
    count = ints(host_value(depth, call, 1).astype(np.int64))[0]
    check_dims(call, [count], on_host=True)
    off_on = call.array(values)
    if off_on.size != 2:
        raise call.invalid(f"{off_on.size} values are not one for off and one for on")
    off_on = off_on.reshape(2)
    index = call.array(indices).astype(mx.int64)
    axis = call.axis(call.integer("axis", -1), index.ndim + 1)
    index = mx.where(index < 0, index + mx.array(count, dtype=mx.int64), index)
    places = mx.array(np.arange(count).reshape(count, *(1,) * (index.ndim - axis)))
    hot = mx.equal(mx.expand_dims(index, axis), places)
    return _like_inputs(mx.where(hot, off_on[1], off_on[0]), indices, depth, values)


@op("CumSum", host=(1,))
def cumsum(call: Call, x: mx.array, axis: Host) -> mx.array:
    """Running sum."""
    at = call.axis(ints(axis)[0], x.ndim)
    result = mx.cumsum(x, axis=at, reverse=call.flag("reverse"), inclusive=not call.flag("exclusive"))
    return result.astype(x.dtype)


@on_host("CumSum")
def _host_cumsum(call: Call, x: Host, axis: Host) -> Host:
    at = call.axis(ints(axis)[0], x.ndim)
    turned = np.flip(x, at) if call.flag("reverse") else x
    total = np.cumsum(turned, axis=at, dtype=x.dtype)
    total = total - turned if call.flag("exclusive") else total
    return np.flip(total, at) if call.flag("reverse") else total


@op("TopK", host=(1,), since=10)
def top_k(call: Call, x: mx.array, k: Host) -> tuple[mx.array, mx.array]:
    """The largest (or smallest) values of an axis and where they are; of equal ones the first comes first."""
    return _top_k(call, x, ints(k)[0])


@op("TopK")
def top_k_attribute(call: Call, x: mx.array) -> tuple[mx.array, mx.array]:
    """TopK before opset 10."""
    return _top_k(call, x, call.integer("k"))


def _top_k(call: Call, x: mx.array, count: int) -> tuple[mx.array, mx.array]:
    axis = call.axis(call.integer("axis", -1), x.ndim)
    size = x.shape[axis]
    if not 0 <= count <= size:
        raise call.invalid(f"there are no {count} values on an axis of {size}")
    if call.flag("largest", True):
        # MLX sorts upwards and keeps the order of equal values: sort backwards, and read backwards
        backwards = mx.argsort(x[_reversed(x.ndim, axis)], axis=axis)
        order = mx.array(size - 1, dtype=mx.int64) - backwards[_reversed(x.ndim, axis)].astype(mx.int64)
    else:
        order = mx.argsort(x, axis=axis).astype(mx.int64)
    order = order[tuple(slice(count) if at == axis else slice(None) for at in range(x.ndim))]
    return mx.take_along_axis(x, order, axis=axis), order


def _reversed(ndim: int, axis: int) -> tuple[slice, ...]:
    return tuple(slice(None, None, -1) if at == axis else slice(None) for at in range(ndim))
