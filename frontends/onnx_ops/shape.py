"""Shapes, and moves of elements that need nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from fuser.errors import UnsupportedOperatorError
from fuser.frontends.onnx_ops.registry import Call, host_value, ints, on_host, op
from fuser.frontends.onnx_types import (
    MLX_TYPES,
    NUMPY_TYPES,
    Host,
    Items,
    Narrow,
    Value,
    onnx_type,
    type_name,
)

_MAX_ELEMENTS = 1 << 38
_MAX_ON_HOST = 1 << 26


def shape_of(value: Value) -> tuple[int, ...]:
    """The shape of any value."""
    if isinstance(value, Items):
        raise UnsupportedOperatorError("a sequence has no shape: MLX has no sequences")
    return tuple(value.carrier.shape if isinstance(value, Narrow) else value.shape)


@op("Shape", raw=True, shapes=True)
def shape(call: Call, x: Value) -> Host:
    """The shape, or a part of it, known on the host."""
    dims = shape_of(x)
    start, end = call.integer("start", 0), call.get("end")
    return np.array(dims[slice(*slice(start, end).indices(len(dims))[:2])], dtype=np.int64)


@op("Size", raw=True, shapes=True)
def size(call: Call, x: Value) -> Host:
    """The number of elements, known on the host."""
    return np.array(math.prod(shape_of(x)), dtype=np.int64)


def _target_shape(call: Call, dims: Sequence[int], target: Sequence[int]) -> list[int]:
    if not call.flag("allowzero"):
        if any(size == 0 and axis >= len(dims) for axis, size in enumerate(target)):
            raise call.invalid(f"shape {list(target)} copies a dimension that {list(dims)} does not have")
        target = [dims[axis] if size == 0 else size for axis, size in enumerate(target)]
    if any(size < -1 for size in target) or list(target).count(-1) > 1:
        raise call.invalid(f"shape {list(target)} is not one")
    known = math.prod(size for size in target if size != -1)
    total = math.prod(dims)
    if -1 in target:
        if known == 0 or total % known:
            raise call.invalid(f"{list(dims)} cannot be reshaped to {list(target)}")
        target = [total // known if size == -1 else size for size in target]
    elif known != total:
        raise call.invalid(f"{list(dims)} cannot be reshaped to {list(target)}")
    return list(target)


@op("Reshape", host=(1,), moves=True)
def reshape(call: Call, x: mx.array, target: Host) -> mx.array:
    """Reshape to a shape known on the host."""
    return mx.reshape(x, _target_shape(call, x.shape, ints(target)))


@on_host("Reshape")
def _host_reshape(call: Call, x: Host, target: Host) -> Host:
    return x.reshape(_target_shape(call, x.shape, ints(target)))


def _axes(call: Call, axes: Host | None) -> list[int] | None:
    if axes is not None:
        return ints(axes)
    return call.integers("axes") if "axes" in call.attributes else None


def _squeezed(call: Call, dims: Sequence[int], axes: Host | None) -> list[int]:
    given = _axes(call, axes)
    if given is None:
        return [size for size in dims if size != 1]
    chosen = call.axes(given, len(dims))
    if any(dims[axis] != 1 for axis in chosen):
        raise call.invalid(f"axes {given} of shape {list(dims)} are not all 1")
    return [size for axis, size in enumerate(dims) if axis not in chosen]


@op("Squeeze", host=(1,), moves=True)
def squeeze(call: Call, x: mx.array, axes: Host | None = None) -> mx.array:
    """Drop axes of size 1."""
    given = _axes(call, axes)
    _squeezed(call, x.shape, axes)
    return mx.squeeze(x) if given is None else (mx.squeeze(x, call.axes(given, x.ndim)) if given else x)


@on_host("Squeeze")
def _host_squeeze(call: Call, x: Host, axes: Host | None = None) -> Host:
    return x.reshape(_squeezed(call, x.shape, axes))


@op("Unsqueeze", host=(1,), moves=True)
def unsqueeze(call: Call, x: mx.array, axes: Host | None = None) -> mx.array:
    """Add axes of size 1."""
    given = _axes(call, axes)
    if given is None:
        raise call.invalid("it has no axes")
    return mx.expand_dims(x, call.axes(given, x.ndim + len(given)))


@on_host("Unsqueeze")
def _host_unsqueeze(call: Call, x: Host, axes: Host | None = None) -> Host:
    given = _axes(call, axes) or []
    return np.expand_dims(x, tuple(call.axes(given, x.ndim + len(given))))


@op("Flatten", moves=True)
def flatten(call: Call, x: mx.array) -> mx.array:
    """Two dimensions, cut at an axis."""
    axis = call.integer("axis", 1)
    if not -x.ndim <= axis <= x.ndim:
        raise call.invalid(f"axis {axis} is out of range for an array of {x.ndim} dimensions")
    axis += x.ndim if axis < 0 else 0
    return mx.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


@op("Identity", narrow=True)
def identity(call: Call, x: Value) -> Value:
    """The same."""
    return x


@on_host("Identity")
def _host_identity(call: Call, x: Host) -> Host:
    return x


def _permutation(call: Call, ndim: int) -> list[int]:
    perm = call.integers("perm", list(range(ndim))[::-1])
    if len(perm) != ndim:
        raise call.invalid(f"perm {perm} does not fit an array of {ndim} dimensions")
    return call.axes(perm, ndim)


@op("Transpose", moves=True)
def transpose(call: Call, x: mx.array) -> mx.array:
    """Axes in another order."""
    return mx.transpose(x, _permutation(call, x.ndim))


@on_host("Transpose")
def _host_transpose(call: Call, x: Host) -> Host:
    return np.transpose(x, _permutation(call, x.ndim))


@op("Concat", narrow=True)
def concat(call: Call, *inputs: mx.array | Narrow) -> mx.array | Narrow:
    """Arrays one after the other along an axis."""
    parts = [call.array(item) for item in inputs]
    axis = call.axis(call.integer("axis"), parts[0].ndim)
    joined = mx.concatenate(parts, axis=axis) if len(parts) > 1 else parts[0]
    return Narrow(joined, inputs[0].type) if isinstance(inputs[0], Narrow) else joined


@on_host("Concat")
def _host_concat(call: Call, *inputs: Host) -> Host:
    return np.concatenate(inputs, axis=call.axis(call.integer("axis"), inputs[0].ndim))


def _parts(call: Call, size: int, sizes: Sequence[int] | None) -> list[int]:
    """The lengths of the parts of a Split."""
    if sizes is None:
        count = call.integer("num_outputs", len(call.outputs))
        if count < 1 or count != len(call.outputs):
            raise call.invalid(f"cannot split into {count} parts for {len(call.outputs)} outputs")
        each = -(-size // count)
        sizes = [max(0, min(each, size - index * each)) for index in range(count)]
    if any(length < 0 for length in sizes) or sum(sizes) != size or len(sizes) < len(call.outputs):
        raise call.invalid(f"an axis of {size} cannot be split into {list(sizes)}")
    return list(sizes)


@op("Split", host=(1,), moves=True)
def split(call: Call, x: mx.array, sizes: Host | None = None) -> tuple[mx.array, ...]:
    """Parts along an axis."""
    axis = call.axis(call.integer("axis", 0), x.ndim)
    given = ints(sizes) if sizes is not None else call.get("split")
    lengths = _parts(call, x.shape[axis], given)
    ends = [sum(lengths[: index + 1]) for index in range(len(lengths) - 1)]
    return tuple(mx.split(x, ends, axis=axis)) if ends else (x,)


@on_host("Split")
def _host_split(call: Call, x: Host, sizes: Host | None = None) -> tuple[Host, ...]:
    axis = call.axis(call.integer("axis", 0), x.ndim)
    lengths = _parts(call, x.shape[axis], ints(sizes) if sizes is not None else call.get("split"))
    return tuple(np.split(x, np.cumsum(lengths)[:-1], axis=axis))


def _slices(
    call: Call,
    dims: Sequence[int],
    starts: Sequence[int],
    ends: Sequence[int],
    axes: Sequence[int] | None,
    steps: Sequence[int] | None,
) -> tuple[slice, ...]:
    axes = call.axes(list(range(len(starts))) if axes is None else axes, len(dims))
    steps = [1] * len(starts) if steps is None else steps
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        raise call.invalid("its starts, ends, axes and steps do not fit together")
    result = [slice(None)] * len(dims)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        first, last, step = slice(start, end, step).indices(dims[axis])
        result[axis] = slice(first, None if last < 0 else last, step)
    return tuple(result)


@op("Slice", since=10, host=(1, 2, 3, 4), moves=True)
def slice_(
    call: Call, x: mx.array, starts: Host, ends: Host, axes: Host | None = None, steps: Host | None = None
) -> mx.array:
    """A slice along some axes; the bounds are known on the host."""
    index = _slices(
        call,
        x.shape,
        ints(starts),
        ints(ends),
        None if axes is None else ints(axes),
        None if steps is None else ints(steps),
    )
    return _sliced(x, index)


def _sliced(x: mx.array, index: tuple[slice, ...]) -> mx.array:
    trivial = all(part in (slice(None), slice(0, size, 1)) for part, size in zip(index, x.shape, strict=True))
    return x if trivial else x[index]


@op("Slice", moves=True)
def slice_attributes(call: Call, x: mx.array) -> mx.array:
    """A slice, before opset 10."""
    return _sliced(x, _slices(call, x.shape, call.integers("starts"), call.integers("ends"), call.get("axes"), None))


@on_host("Slice")
def _host_slice(call: Call, x: Host, *bounds: Host | None) -> Host:
    if not bounds:
        return x[_slices(call, x.shape, call.integers("starts"), call.integers("ends"), call.get("axes"), None)]
    given = [None if item is None else ints(item) for item in bounds] + [None, None]
    if given[0] is None or given[1] is None:
        raise call.invalid("it has no starts or ends")
    return x[_slices(call, x.shape, given[0], given[1], given[2], given[3])]


def check_dims(call: Call, dims: Sequence[int], on_host: bool = False) -> list[int]:
    """Dimensions of a new array, refused where no array (or none that is written out on the host) can have them."""
    if any(not 0 <= size < 1 << 31 for size in dims) or math.prod(dims) > (_MAX_ON_HOST if on_host else _MAX_ELEMENTS):
        raise call.invalid(f"no array has shape {list(dims)}")
    return list(dims)


def _expanded(call: Call, dims: Sequence[int], target: Sequence[int]) -> list[int]:
    rank = max(len(dims), len(target))
    pairs = zip([1] * (rank - len(dims)) + list(dims), [1] * (rank - len(target)) + list(target), strict=True)
    result = []
    for size, wanted in pairs:
        if size != wanted and 1 not in (size, wanted):
            raise call.invalid(f"{list(dims)} cannot be expanded to {list(target)}")
        result.append(size if wanted == 1 else wanted)
    return check_dims(call, result)


@op("Expand", host=(1,), moves=True)
def expand(call: Call, x: mx.array, target: Host) -> mx.array:
    """Broadcast to a shape known on the host."""
    dims = _expanded(call, x.shape, ints(target))
    return x if dims == list(x.shape) else mx.broadcast_to(x, dims)


@on_host("Expand")
def _host_expand(call: Call, x: Host, target: Host) -> Host:
    return np.broadcast_to(x, _expanded(call, x.shape, ints(target)))


@op("Tile", host=(1,), moves=True)
def tile(call: Call, x: mx.array, repeats: Host) -> mx.array:
    """Copies side by side."""
    counts = ints(repeats)
    if len(counts) != x.ndim:
        raise call.invalid(f"repeats {counts} do not fit an array of {x.ndim} dimensions")
    check_dims(call, [count * size for count, size in zip(counts, x.shape, strict=True)])
    return mx.tile(x, counts)


@op("ConstantOfShape", raw=True, host=(0,))
def constant_of_shape(call: Call, target: Value) -> Host | mx.array:
    """One value in a shape known on the host; nothing is written out."""
    value: Host = call.get("value", np.zeros(1, dtype=np.float32))
    if value.dtype not in NUMPY_TYPES.values() or value.size != 1:
        raise call.refuse("its value is not a number")
    return np.broadcast_to(value.reshape(()), check_dims(call, ints(host_value(target, call, 0))))


def arange(call: Call, start: Host, limit: Host, delta: Host) -> Host:
    """Numbers in steps."""
    if delta == 0 or not all(np.isfinite(np.float64(item)) for item in (start, limit, delta)):
        raise call.invalid(f"no range from {start} to {limit} in steps of {delta}")
    count = max(0, math.ceil((float(limit) - float(start)) / float(delta)))
    if start.dtype.kind in "iu":
        count = max(0, -((int(start) - int(limit)) // int(delta)))
    check_dims(call, [count], on_host=True)
    return np.asarray(start.reshape(()) + np.arange(count).astype(start.dtype) * delta.reshape(()), dtype=start.dtype)


@op("Range", raw=True, host=(0, 1, 2))
def range_(call: Call, start: Value, limit: Value, delta: Value) -> Host:
    """Numbers in steps, known on the host."""
    values = [
        host_value(item, call, position).reshape(-1)[:1].reshape(())
        for position, item in enumerate((start, limit, delta))
    ]
    return arange(call, *values)


def mlx_of(call: Call, number: int) -> mx.Dtype:
    """The MLX type of a number given as `dtype` attribute."""
    if number not in MLX_TYPES:
        raise call.refuse(f"MLX has no arrays of ONNX type {type_name(number)}")
    return MLX_TYPES[number]


def constant_value(name: str, attributes: Mapping[str, Any]) -> Host:
    """The value of a Constant node."""
    if "value" in attributes:
        value: Host = attributes["value"]
        onnx_type(value)
        return value
    kinds = {
        "value_float": np.float32,
        "value_floats": np.float32,
        "value_int": np.int64,
        "value_ints": np.int64,
    }
    for key, dtype in kinds.items():
        if key in attributes:
            return np.array(attributes[key], dtype=dtype)
    what = ", ".join(attributes) or "no value"
    raise UnsupportedOperatorError(f"node {name!r} (Constant): {what}: MLX has no such arrays")


@op("Constant", raw=True)
def constant(call: Call) -> Host:
    """A value of the node's own."""
    return constant_value(call.name, call.attributes)
