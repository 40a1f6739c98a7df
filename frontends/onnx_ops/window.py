"""Windows that slide over an image: their geometry, convolution and pooling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import mlx.core as mx
import numpy as np

from fuser.frontends.onnx_ops.math import const, reduced
from fuser.frontends.onnx_ops.registry import Call, op
from fuser.frontends.onnx_types import FLOATS, Host


@dataclass(frozen=True, slots=True)
class Window:
    """A window along every spatial axis of `[batch, channels, *spatial]`."""

    size: list[int]
    kernel: list[int]
    stride: list[int]
    dilation: list[int]
    low: list[int]
    high: list[int]
    out: list[int]

    def covers(self, axis: int) -> Host:
        """Which element of the axis each output's window has at each place: `[out, kernel]`, may lie in the padding."""
        starts = np.arange(self.out[axis]) * self.stride[axis] - self.low[axis]
        return starts[:, None] + np.arange(self.kernel[axis]) * self.dilation[axis]


def window(call: Call, size: Sequence[int], kernel: Sequence[int]) -> Window:
    """The window of a Conv or pooling node."""
    rank = len(size)
    stride = call.integers("strides", [1] * rank)
    dilation = call.integers("dilations", [1] * rank)
    pads = call.integers("pads", [0] * 2 * rank)
    if not len(kernel) == len(stride) == len(dilation) == rank or len(pads) != 2 * rank:
        raise call.invalid(f"its kernel, strides, dilations or pads do not fit {rank} spatial axes")
    if min([*kernel, *stride, *dilation], default=1) < 1:
        raise call.invalid("its kernel, strides and dilations must be positive")
    low, high = pads[:rank], pads[rank:]
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    auto = call.text("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        out = [-(-n // s) for n, s in zip(size, stride, strict=True)]
        total = [max(0, (o - 1) * s + e - n) for o, s, e, n in zip(out, stride, extent, size, strict=True)]
        low = [(t + 1) // 2 if auto == "SAME_LOWER" else t // 2 for t in total]
        high = [t - b for t, b in zip(total, low, strict=True)]
        return _checked(call, Window(list(size), list(kernel), stride, dilation, low, high, out))
    if auto == "VALID":
        low, high = [0] * rank, [0] * rank
    out = []
    for n, s, e, b, a in zip(size, stride, extent, low, high, strict=True):
        room = n + b + a - e
        count = (-(-room // s) if call.flag("ceil_mode") else room // s) + 1
        # a window that would start in the padding behind the image is none
        if call.flag("ceil_mode") and (count - 1) * s >= n + b:
            count -= 1
        out.append(count)
    return _checked(call, Window(list(size), list(kernel), stride, dilation, low, high, out))


def _checked(call: Call, view: Window) -> Window:
    pads = [*view.low, *view.high]
    if min([*view.out, *pads], default=0) < 0 or max([*view.kernel, *pads], default=0) > 1 << 16:
        raise call.invalid(f"a window of {view.kernel} does not fit an image of {view.size}")
    return view


def channels_last(x: mx.array) -> mx.array:
    """`[N, C, *spatial]` as `[N, *spatial, C]`."""
    return mx.moveaxis(x, 1, -1)


def channels_first(x: mx.array) -> mx.array:
    """`[N, *spatial, C]` as `[N, C, *spatial]`."""
    return mx.moveaxis(x, -1, 1)


@op("Conv")
def conv(call: Call, x: mx.array, weight: mx.array, bias: mx.array | None = None) -> mx.array:
    """Convolution over one to three spatial axes."""
    return convolve(call, x, weight, bias)


def convolve(call: Call, x: mx.array, weight: mx.array, bias: mx.array | None) -> mx.array:
    """Convolution of `[N, C, *spatial]` with `[O, C / groups, *kernel]`."""
    rank = x.ndim - 2
    if not 1 <= rank <= 3:
        raise call.refuse(f"MLX has no convolution over {rank} spatial axes")
    groups = call.integer("group", 1)
    if weight.ndim != x.ndim or groups < 1 or weight.shape[1] * groups != x.shape[1] or weight.shape[0] % groups:
        raise call.invalid(f"weights {list(weight.shape)} in {groups} groups do not fit {list(x.shape)}")
    refuse_empty(call, weight)
    view = window(call, x.shape[2:], weight.shape[2:])
    padding = (view.low, view.high)
    kernel = channels_last(weight)
    result = _convolution(channels_last(x), kernel, view.stride, padding, view.dilation, groups, [1] * rank)
    result = channels_first(result)
    return result if bias is None else result + bias.reshape(-1, *(1,) * rank)


def _convolution(
    x: mx.array,
    kernel: mx.array,
    stride: list[int],
    padding: tuple[list[int], list[int]],
    dilation: list[int],
    groups: int,
    gaps: list[int],
    flip: bool = False,
) -> mx.array:
    """MLX's convolution, channels last; `gaps` is how far numbers of `x` are apart.

    Over three axes it takes no groups: there it is one over the last two for each place of the kernel on the first.
    """
    if groups == 1 or x.ndim < 5:
        return mx.conv_general(x, kernel, stride, padding, dilation, gaps, groups, flip)
    low, high = padding
    count, depth, size = x.shape[0], x.shape[1], kernel.shape[1]
    spaced = mx.pad(x[:, :, None], [(0, 0), (0, 0), (0, gaps[0] - 1), (0, 0), (0, 0), (0, 0)]).flatten(1, 2)
    padded = mx.pad(spaced[:, : (depth - 1) * gaps[0] + 1], [(0, 0), (low[0], high[0]), (0, 0), (0, 0), (0, 0)])
    out = (padded.shape[1] - (size - 1) * dilation[0] - 1) // stride[0] + 1
    total: mx.array | None = None
    for place in range(size):
        first = place * dilation[0]
        part = padded[:, first : first + (out - 1) * stride[0] + 1 : stride[0]].flatten(0, 1)
        tap = kernel[:, size - 1 - place if flip else place]
        around = (low[1:], high[1:])
        added = mx.conv_general(part, tap, stride[1:], around, dilation[1:], gaps[1:], groups, flip)
        total = added if total is None else total + added
    assert total is not None
    return total.reshape(count, out, *total.shape[1:])


def refuse_empty(call: Call, weight: mx.array) -> None:
    """MLX ends the process at a convolution from or to no channels."""
    if weight.size == 0:
        raise call.invalid(f"its weights {list(weight.shape)} are empty")


def slide(x: mx.array, view: Window, fill: float, combine: Callable[[mx.array, mx.array], mx.array]) -> mx.array:
    """Combine the elements of every window, one axis after the other."""
    for axis in range(len(view.size)):
        at = axis + 2
        stride, dilation, kernel, out = (
            view.stride[axis],
            view.dilation[axis],
            view.kernel[axis],
            view.out[axis],
        )
        low = view.low[axis]
        # windows of the last row may reach beyond the declared padding (ceil_mode)
        reach = (out - 1) * stride + (kernel - 1) * dilation + 1
        high = max(0, reach - low - x.shape[at])
        if low or high:
            widths = [(0, 0)] * x.ndim
            widths[at] = (low, high)
            x = mx.pad(x, widths, constant_values=const(fill, x))
        result: mx.array | None = None
        for place in range(kernel):
            first = place * dilation
            part = x[
                tuple(
                    slice(first, first + (out - 1) * stride + 1, stride) if d == at else slice(None)
                    for d in range(x.ndim)
                )
            ]
            result = part if result is None else combine(result, part)
        assert result is not None
        x = result
    return x


def _lowest(x: mx.array) -> float:
    return -math.inf if x.dtype in FLOATS else mx.iinfo(x.dtype).min


@op("MaxPool")
def max_pool(call: Call, x: mx.array) -> mx.array | tuple[mx.array, mx.array]:
    """The largest value of each window, and where it was."""
    view = window(call, x.shape[2:], call.integers("kernel_shape"))
    if not call.wants(1):
        return slide(x, view, _lowest(x), mx.maximum)
    places, inside = _places(view)
    flat = mx.reshape(x, (*x.shape[:2], -1))
    values = mx.where(mx.array(inside), mx.take(flat, mx.array(places), axis=2), const(_lowest(x), x))
    best = mx.argmax(values, axis=-1, keepdims=True)
    largest = mx.take_along_axis(values, best, axis=-1)
    table = places
    if call.flag("storage_order"):
        table = np.ravel_multi_index(np.unravel_index(places, view.size), view.size, order="F")
    where = mx.take_along_axis(mx.broadcast_to(mx.array(table), values.shape), best, axis=-1)
    plane = np.arange(x.shape[0] * x.shape[1]).reshape(*x.shape[:2], 1) * math.prod(view.size)
    shape = (*x.shape[:2], *view.out)
    return mx.reshape(largest, shape), mx.reshape(where.astype(mx.int64) + mx.array(plane)[..., None], shape)


def _places(view: Window) -> tuple[Host, Host]:
    """For every output and place of its window (both flattened): the element of the image, and whether it is one."""
    rank = len(view.size)
    total = np.zeros((1,) * 2 * rank, dtype=np.int64)
    inside = np.ones((1,) * 2 * rank, dtype=np.bool_)
    for axis in range(rank):
        shape = [1] * 2 * rank
        shape[axis], shape[rank + axis] = view.out[axis], view.kernel[axis]
        covers = view.covers(axis)
        inside = inside & ((covers >= 0) & (covers < view.size[axis])).reshape(shape)
        total = total * view.size[axis] + np.clip(covers, 0, view.size[axis] - 1).reshape(shape)
    flat = (math.prod(view.out), math.prod(view.kernel))
    return total.reshape(flat), np.broadcast_to(inside, (*view.out, *view.kernel)).reshape(flat)


@op("AveragePool")
def average_pool(call: Call, x: mx.array) -> mx.array:
    """The mean of each window."""
    view = window(call, x.shape[2:], call.integers("kernel_shape"))
    counted: Host = np.ones((1,) * len(view.size))
    for axis, size in enumerate(view.size):
        covers = view.covers(axis)
        low, high = (view.low[axis], view.high[axis]) if call.flag("count_include_pad") else (0, 0)
        count = ((covers >= -low) & (covers < size + high)).sum(axis=1)
        counted = counted * count.reshape(-1, *(1,) * (len(view.size) - axis - 1))
    total = slide(x, view, 0, mx.add)
    if (counted == counted.flat[0]).all():
        return total / const(float(counted.flat[0]), total)
    return total / mx.array(counted.astype(np.float32)).astype(total.dtype)


@op("LpPool")
def lp_pool(call: Call, x: mx.array) -> mx.array:
    """The p-norm of each window."""
    view = window(call, x.shape[2:], call.integers("kernel_shape"))
    p = call.number("p", 2)
    total = slide(mx.power(mx.abs(x), const(p, x)), view, 0, mx.add)
    return mx.power(total, const(1 / p, total))


def _spatial(x: mx.array) -> list[int]:
    return list(range(2, x.ndim))


@op("GlobalAveragePool")
def global_average_pool(call: Call, x: mx.array) -> mx.array:
    """Mean of each channel."""
    return reduced("mean", x, _spatial(x))


@op("GlobalMaxPool")
def global_max_pool(call: Call, x: mx.array) -> mx.array:
    """Largest value of each channel."""
    return reduced("max", x, _spatial(x))


@op("GlobalLpPool")
def global_lp_pool(call: Call, x: mx.array) -> mx.array:
    """p-norm of each channel."""
    p = call.number("p", 2)
    total = reduced("sum", mx.power(mx.abs(x), const(p, x)), _spatial(x))
    return mx.power(total, const(1 / p, total))


@op("ConvTranspose")
def conv_transpose(call: Call, x: mx.array, weight: mx.array, bias: mx.array | None = None) -> mx.array:
    """Transposed convolution over one to three spatial axes: a convolution over the spread-out input."""
    rank = x.ndim - 2
    if not 1 <= rank <= 3:
        raise call.refuse(f"MLX has no convolution over {rank} spatial axes")
    groups = call.integer("group", 1)
    if weight.ndim != x.ndim or groups < 1 or weight.shape[0] != x.shape[1] or x.shape[1] % groups:
        raise call.invalid(f"weights {list(weight.shape)} in {groups} groups do not fit {list(x.shape)}")
    refuse_empty(call, weight)
    stride, dilation = call.integers("strides", [1] * rank), call.integers("dilations", [1] * rank)
    extra = call.integers("output_padding", [0] * rank)
    pads = call.integers("pads", [0] * 2 * rank)
    extent = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilation, strict=True)]
    low, high = pads[:rank], pads[rank:]
    auto = call.text("auto_pad", "NOTSET")
    full = [(n - 1) * s + e + o for n, s, e, o in zip(x.shape[2:], stride, extent, extra, strict=True)]
    wanted = call.get("output_shape")
    if wanted is None and auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [n * s for n, s in zip(x.shape[2:], stride, strict=True)]
    if wanted is not None:
        total = [f - w for f, w in zip(full, list(wanted)[-rank:], strict=True)]
        # where the output is larger than what there is, zeros follow it
        low = [max(0, t) // 2 if auto == "SAME_UPPER" else max(0, t) - max(0, t) // 2 for t in total]
        high = [t - b for t, b in zip(total, low, strict=True)]
    # [C, O / g, *k] -> [O, *k, C / g]
    inputs, outputs = weight.shape[0], weight.shape[1]
    kernel = weight.reshape(groups, inputs // groups, outputs, *weight.shape[2:])
    kernel = mx.moveaxis(kernel, 1, -1).reshape(groups * outputs, *weight.shape[2:], inputs // groups)
    before = [e - 1 - b for e, b in zip(extent, low, strict=True)]
    after = [e - 1 - a + o for e, a, o in zip(extent, high, extra, strict=True)]
    padding = ([max(0, p) for p in before], [max(0, p) for p in after])
    result = _convolution(channels_last(x), kernel, [1] * rank, padding, dilation, groups, stride, flip=True)
    cut = tuple(
        slice(max(0, -b), result.shape[1 + axis] - max(0, -a))
        for axis, (b, a) in enumerate(zip(before, after, strict=True))
    )
    result = channels_first(result[(slice(None), *cut)])
    return result if bias is None else result + bias.reshape(-1, *(1,) * rank)


@op("MaxUnpool", host=(2,))
def max_unpool(call: Call, x: mx.array, places: mx.array, shape: Host | None = None) -> mx.array:
    """Values put back where MaxPool took them from."""
    rank = x.ndim - 2
    kernel, stride = call.integers("kernel_shape"), call.integers("strides", [1] * rank)
    pads = call.integers("pads", [0] * 2 * rank)
    size = [
        (n - 1) * s + k - pads[a] - pads[a + rank]
        for a, (n, s, k) in enumerate(zip(x.shape[2:], stride, kernel, strict=True))
    ]
    dims = [*x.shape[:2], *size]
    wanted = dims if shape is None else [int(item) for item in shape]
    coordinates, index = [], places
    for count in dims[:0:-1]:
        coordinates.append(mx.remainder(index, const(count, index)))
        index = mx.floor_divide(index, const(count, index))
    coordinates.append(index)
    flat = mx.zeros_like(places)
    for part, count in zip(coordinates[::-1], wanted, strict=True):
        flat = flat * const(count, flat) + mx.clip(part, const(0, part), const(count - 1, part))
    result = mx.zeros(math.prod(wanted), dtype=x.dtype)
    result[flat.reshape(-1)] = x.reshape(-1)
    return result.reshape(wanted)


def offsets(kernel: Sequence[int]) -> list[tuple[int, ...]]:
    """Every place of a kernel."""
    return list(product(*map(range, kernel)))


@op("CausalConvWithState")
def causal_conv_with_state(
    call: Call, x: mx.array, weight: mx.array, bias: mx.array | None = None, past: mx.array | None = None
) -> tuple[mx.array, mx.array]:
    """A convolution of each channel that looks backwards only, with the end of the sequence before it."""
    size, dilation, last = weight.shape[-1], call.integer("dilation", 1), call.flag("channels_last")
    if last and x.ndim == 3:
        x, past = mx.swapaxes(x, 1, 2), None if past is None else mx.swapaxes(past, 1, 2)
    if x.ndim != 3 or tuple(weight.shape) != (x.shape[1], 1, size) or dilation < 1:
        raise call.invalid(f"weights {list(weight.shape)} do not fit its input")
    held = (size - 1) * dilation
    before = mx.zeros((*x.shape[:2], held), dtype=x.dtype) if past is None else past
    padded = mx.concatenate([before, x], axis=2)
    result: mx.array | None = None
    for place in range(size):
        start = place * dilation
        part = padded[:, :, start : start + x.shape[2]] * weight[:, :, place]
        result = part if result is None else result + part
    if result is None:
        raise call.invalid("its kernel is empty")
    result = result if bias is None else result + bias[:, None]
    activation = call.text("activation", "none")
    if activation in ("silu", "swish"):
        result = result * mx.sigmoid(result)
    elif activation != "none":
        raise call.invalid(f"activation {activation!r} is unknown")
    state = padded[:, :, padded.shape[2] - held :]
    return (mx.swapaxes(result, 1, 2), mx.swapaxes(state, 1, 2)) if last else (result, state)
