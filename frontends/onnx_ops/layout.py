"""Triangles, blocks, patches and other rearrangements."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np

from fuser.frontends.onnx_ops.index import safe
from fuser.frontends.onnx_ops.math import const
from fuser.frontends.onnx_ops.pad import padded
from fuser.frontends.onnx_ops.registry import Call, ints, on_host, op
from fuser.frontends.onnx_ops.shape import check_dims, mlx_of
from fuser.frontends.onnx_types import FLOATS, NUMPY_TYPES, Host, Value, number_of


@op("Trilu", host=(1,), moves=True)
def trilu(call: Call, x: mx.array, diagonal: Host | None = None) -> mx.array:
    """A triangle of a matrix, the rest zero."""
    rows, columns = x.shape[-2:]
    offset = max(-rows, min(columns, 0 if diagonal is None else ints(diagonal)[0]))
    # steps of the program rather than a constant: each layer may make a triangle of its own
    edge, place = mx.arange(rows)[:, None] + offset, mx.arange(columns)
    return mx.where(place >= edge if call.flag("upper", True) else place <= edge, x, const(0, x))


@on_host("Trilu")
def _host_trilu(call: Call, x: Host, diagonal: Host | None = None) -> Host:
    offset = 0 if diagonal is None else ints(diagonal)[0]
    distance = np.arange(x.shape[-1])[None, :] - np.arange(x.shape[-2])[:, None]
    keep = distance >= offset if call.flag("upper", True) else distance <= offset
    return np.where(keep, x, np.zeros((), dtype=x.dtype))


@op("EyeLike")
def eye_like(call: Call, x: mx.array) -> mx.array:
    """Ones on a diagonal."""
    if x.ndim != 2:
        raise call.invalid(f"its input must be a matrix, not {list(x.shape)}")
    dtype = mlx_of(call, call.integer("dtype")) if "dtype" in call.attributes else x.dtype
    return mx.eye(x.shape[0], x.shape[1], k=call.integer("k", 0)).astype(dtype)


def _blocks(call: Call) -> int:
    size = call.integer("blocksize")
    if size < 1:
        raise call.invalid(f"blocksize {size} is not positive")
    return size


@op("DepthToSpace")
def depth_to_space(call: Call, x: mx.array) -> mx.array:
    """Channels laid out as blocks of the image."""
    size = _blocks(call)
    n, c, h, w = x.shape
    if call.text("mode", "DCR") == "DCR":
        split = mx.transpose(x.reshape(n, size, size, c // size**2, h, w), (0, 3, 4, 1, 5, 2))
    else:
        split = mx.transpose(x.reshape(n, c // size**2, size, size, h, w), (0, 1, 4, 2, 5, 3))
    return split.reshape(n, c // size**2, h * size, w * size)


@op("SpaceToDepth")
def space_to_depth(call: Call, x: mx.array) -> mx.array:
    """Blocks of the image laid out as channels."""
    size = _blocks(call)
    n, c, h, w = x.shape
    split = x.reshape(n, c, h // size, size, w // size, size)
    if call.text("mode", "DCR") == "DCR":
        return mx.transpose(split, (0, 3, 5, 1, 2, 4)).reshape(n, c * size**2, h // size, w // size)
    return mx.transpose(split, (0, 1, 3, 5, 2, 4)).reshape(n, c * size**2, h // size, w // size)


@op("Einsum")
def einsum(call: Call, *inputs: mx.array) -> mx.array:
    """Einstein summation."""
    equation = call.text("equation").replace(" ", "")
    if "..." in equation or any(len(set(term)) != len(term) for term in equation.split("->")[0].split(",")):
        return _einsum_by_hand(call, equation, inputs)
    return mx.einsum(equation if "->" in equation else f"{equation}->{_implicit(equation)}", *inputs)


def _implicit(equation: str) -> str:
    letters = equation.replace(",", "")
    return "".join(sorted(letter for letter in set(letters) if letters.count(letter) == 1))


def _einsum_by_hand(call: Call, equation: str, inputs: tuple[mx.array, ...]) -> mx.array:
    """Einsum with ellipses and repeated letters, which MLX's lacks: name the hidden axes, take the diagonals."""
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if len(terms) != len(inputs):
        raise call.invalid(f"equation {equation!r} does not fit {len(inputs)} inputs")
    spare = [letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if letter not in equation]
    widest = max(
        (x.ndim - len(term.replace("...", "")) for term, x in zip(terms, inputs, strict=True) if "..." in term),
        default=0,
    )
    hidden = "".join(spare[:widest])
    arrays, names = [], []
    for term, x in zip(terms, inputs, strict=True):
        if "..." in term:
            count = x.ndim - len(term.replace("...", ""))
            term = term.replace("...", hidden[widest - count :])
        for letter in dict.fromkeys(term):
            while term.count(letter) > 1:
                first = term.index(letter)
                second = term.index(letter, first + 1)
                x = mx.diagonal(x, axis1=first, axis2=second)
                term = term[:first] + term[first + 1 : second] + term[second + 1 :] + letter
        arrays.append(x)
        names.append(term)
    if not arrow:
        plain = "".join(term.replace("...", "") for term in left.split(","))
        right = "..." + "".join(sorted(letter for letter in set(plain) if plain.count(letter) == 1))
    return mx.einsum(f"{','.join(names)}->{right.replace('...', hidden)}", *arrays)


@op("CenterCropPad", host=(1,), moves=True)
def center_crop_pad(call: Call, x: mx.array, shape: Host) -> mx.array:
    """The middle of an array, or the array in the middle of zeros."""
    axes = call.axes(call.integers("axes", list(range(x.ndim))), x.ndim)
    sizes = check_dims(call, ints(shape))
    pads = [0] * 2 * len(axes)
    for place, (axis, size) in enumerate(zip(axes, sizes, strict=True)):
        missing = size - x.shape[axis]
        low = missing // 2 if missing >= 0 else -(-missing // 2)
        pads[place], pads[place + len(axes)] = low, missing - low
    return padded(call, x, pads, axes, None)


@op("ReverseSequence", host=(1,))
def reverse_sequence(call: Call, x: mx.array, lengths: Host) -> mx.array:
    """The first elements of each sequence in reverse."""
    time, batch = (
        call.axis(call.integer("time_axis", 0), x.ndim),
        call.axis(call.integer("batch_axis", 1), x.ndim),
    )
    steps = np.arange(x.shape[time])
    sizes = lengths.astype(np.int64).reshape(-1, 1)
    if (sizes.size and (sizes.min() < 0 or sizes.max() > len(steps))) or time == batch:
        raise call.invalid("its sequence lengths are out of range")
    order = np.where(steps < sizes, sizes - 1 - steps, steps)
    shape = [1] * x.ndim
    shape[time], shape[batch] = x.shape[time], x.shape[batch]
    order = (order if batch < time else order.T).reshape(shape)
    return mx.take_along_axis(x, mx.array(np.ascontiguousarray(np.broadcast_to(order, x.shape))), axis=time)


@op("Col2Im", host=(1, 2))
def col2im(call: Call, x: mx.array, image: Host, block: Host) -> mx.array:
    """Patches added up to an image."""
    size, kernel = ints(image), ints(block)
    rank = len(size)
    stride, dilation = call.integers("strides", [1] * rank), call.integers("dilations", [1] * rank)
    pads = call.integers("pads", [0] * 2 * rank)
    wide = [n + pads[axis] + pads[axis + rank] for axis, n in enumerate(size)]
    check_dims(call, [*wide, *kernel], on_host=True)
    counts = [(n - (k - 1) * d - 1) // s + 1 for n, k, d, s in zip(wide, kernel, dilation, stride, strict=True)]
    places = np.zeros((1,) * 2 * rank, dtype=np.int64)
    for axis in range(rank):
        shape = [1] * 2 * rank
        shape[axis], shape[rank + axis] = kernel[axis], counts[axis]
        at = np.arange(kernel[axis])[:, None] * dilation[axis] + np.arange(counts[axis]) * stride[axis]
        places = places * wide[axis] + at.reshape(shape)
    n, channels = x.shape[0], x.shape[1] // math.prod(kernel)
    values = x.reshape(n * channels, -1)
    flat = mx.zeros((math.prod(wide), n * channels), dtype=x.dtype).at[mx.array(places.reshape(-1))].add(values.T)
    full = flat.T.reshape(n, channels, *wide)
    return full[(slice(None), slice(None), *(slice(pads[a], pads[a] + size[a]) for a in range(rank)))]


@op("TensorScatter", raw=True)
def tensor_scatter(call: Call, cache: Value, update: Value, places: Value | None = None) -> mx.array:
    """An update written into a cache, at a place of its own for each sample."""
    past, new = call.array(cache), call.array(update)
    axis = call.axis(call.integer("axis", -2), past.ndim)
    size, count = past.shape[axis], new.shape[axis]
    circular = call.text("mode", "linear") == "circular"
    if count > size or axis == 0:
        raise call.invalid(f"an update of {count} does not fit a cache of {size}")
    if places is None:
        places = np.zeros(past.shape[0], dtype=np.int64)
    shape = (-1, *(1,) * (past.ndim - 1))
    steps = mx.array(np.arange(count).reshape(-1, *(1,) * (past.ndim - axis - 1)))
    if isinstance(places, np.ndarray) and not circular:
        places = np.clip(places, 0, size - count) if places.size else places
    index = call.array(places).astype(mx.int64).reshape(shape) + steps
    index = mx.remainder(index, mx.array(size, dtype=mx.int64)) if circular else safe(call, index, size)
    return mx.put_along_axis(past, mx.broadcast_to(index, new.shape), new, axis=axis)


@op("CumProd", host=(1,))
def cumprod(call: Call, x: mx.array, axis: Host) -> mx.array:
    """Running product."""
    at = call.axis(ints(axis)[0], x.ndim)
    result = mx.cumprod(x, axis=at, reverse=call.flag("reverse"), inclusive=not call.flag("exclusive"))
    return result.astype(x.dtype)


@op("BitCast")
def bit_cast(call: Call, x: mx.array) -> mx.array:
    """The same bits as another type."""
    to = mlx_of(call, call.integer("to"))
    if to.size != x.dtype.size:
        raise call.invalid(f"{x.dtype} and {to} are not of the same width")
    return x.view(to) if mx.bool_ not in (to, x.dtype) else x.astype(to)


@on_host("BitCast")
def _host_bit_cast(call: Call, x: Host) -> Host:
    return x.copy().view(NUMPY_TYPES[number_of(mlx_of(call, call.integer("to")))])


@op("Compress", host=(1,))
def compress(call: Call, x: mx.array, condition: Host) -> mx.array:
    """The slices for which a condition, known on the host, is true."""
    axis = call.get("axis")
    x = x.reshape(-1) if axis is None else x
    at = 0 if axis is None else call.axis(axis, x.ndim)
    places = np.flatnonzero(condition.reshape(-1)[: x.shape[at]])
    return mx.take(x, mx.array(places), axis=at)


@op("NonZero", host=(0,))
def non_zero(call: Call, x: Host) -> Host:
    """Where a value known on the host is not zero."""
    return np.stack(np.nonzero(np.atleast_1d(x))).astype(np.int64)


on_host("NonZero")(non_zero)


@op("Unique", host=(0,))
def unique(call: Call, x: Host) -> tuple[Host, ...]:
    """The different values of an array known on the host, where each is first, which each was, and how many."""
    axis = call.get("axis")
    values, first, inverse, counts = np.unique(x, True, True, True, axis=axis)
    inverse = inverse.reshape(-1)
    if not call.flag("sorted", True):
        order = np.argsort(first)
        rank = np.argsort(order)
        values = np.take(values, order, axis=axis or 0)
        first, counts, inverse = first[order], counts[order], rank[inverse]
    return values, first.astype(np.int64), inverse.astype(np.int64), counts.astype(np.int64)


on_host("Unique")(unique)


@op("Det")
def det(call: Call, x: mx.array) -> mx.array:
    """Determinants of small matrices, by elimination with the largest pivot."""
    size = x.shape[-1]
    if x.ndim < 2 or x.shape[-2] != size or x.dtype not in FLOATS or size > 64:
        raise call.refuse(f"determinants of {list(x.shape)}")
    lead = x.shape[:-2]
    result = mx.ones(lead, dtype=x.dtype)
    for _ in range(size):
        count = x.shape[-1]
        best = mx.argmax(mx.abs(x[..., :, 0]), axis=-1, keepdims=True)
        rows = mx.arange(count, dtype=best.dtype)
        # the pivot row changes places with the first
        order = mx.where(mx.equal(rows, best), const(0, best), mx.where(mx.equal(rows, const(0, best)), best, rows))
        x = mx.take_along_axis(x, mx.broadcast_to(order[..., None], x.shape), axis=-2)
        sign = mx.where(mx.equal(best[..., 0], const(0, best)), const(1, x), const(-1, x))
        pivot = x[..., 0, 0]
        result = result * sign * pivot
        factor = x[..., 1:, :1] / mx.where(mx.equal(pivot, const(0, pivot)), const(1, pivot), pivot)[..., None, None]
        x = x[..., 1:, 1:] - factor * x[..., :1, 1:]
    return result
