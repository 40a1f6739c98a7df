"""Fourier transforms, as products with matrices made on the host, and windows."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np

from fuser.frontends.onnx_ops.registry import Call, ints, on_host, op
from fuser.frontends.onnx_ops.shape import check_dims, mlx_of
from fuser.frontends.onnx_types import NUMPY_TYPES, Host, number_of

_LONGEST = 1 << 13


def _waves(call: Call, length: int, count: int, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
    """Cosines and sines `[length, count]` of a transform of `length` points."""
    if not 0 < length <= _LONGEST:
        raise call.refuse(f"a Fourier transform of {length} points: it is computed as a product of matrices")
    # the angle is reduced in whole numbers, or large ones would lose their last digits
    angle = 2 * np.pi / length * (np.arange(length)[:, None] * np.arange(count)[None, :] % length)
    numpy = NUMPY_TYPES[number_of(dtype)]
    return mx.array(np.cos(angle).astype(numpy), dtype=dtype), mx.array(np.sin(angle).astype(numpy), dtype=dtype)


def _fit(x: mx.array, length: int) -> mx.array:
    """The last axis cut or filled up with zeros."""
    if x.shape[-1] >= length:
        return x[..., :length]
    return mx.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, length - x.shape[-1])])


def transform(call: Call, real: mx.array, imaginary: mx.array | None, length: int, one_sided: bool) -> mx.array:
    """The Fourier transform along the last axis, real and imaginary parts on a new last one."""
    cos, sin = _waves(call, length, length // 2 + 1 if one_sided else length, real.dtype)
    real = _fit(real, length)
    x, y = mx.matmul(real, cos), -mx.matmul(real, sin)
    if imaginary is not None:
        imaginary = _fit(imaginary, length)
        x, y = x + mx.matmul(imaginary, sin), y + mx.matmul(imaginary, cos)
    return mx.stack([x, y], axis=-1)


def _inverse(call: Call, real: mx.array, imaginary: mx.array | None, length: int, one_sided: bool) -> mx.array:
    cos, sin = _waves(call, length, length, real.dtype)
    scale = np.full(length, 1 / length)
    if one_sided:
        bins = length // 2 + 1
        real = _fit(real, bins)
        imaginary = None if imaginary is None else _fit(imaginary, bins)
        cos, sin, scale = cos[:bins], sin[:bins], scale[:bins]
        # every frequency but the first, and the last of an even length, stands for two
        scale[1 : (length + 1) // 2] *= 2
    else:
        real = _fit(real, length)
        imaginary = None if imaginary is None else _fit(imaginary, length)
    weights = mx.array(scale.astype(NUMPY_TYPES[number_of(real.dtype)]), dtype=real.dtype)
    real = real * weights
    x, y = mx.matmul(real, cos), mx.matmul(real, sin)
    if imaginary is not None:
        imaginary = imaginary * weights
        x, y = x - mx.matmul(imaginary, sin), y + mx.matmul(imaginary, cos)
    return mx.expand_dims(x, -1) if one_sided else mx.stack([x, y], axis=-1)


def _dft(call: Call, x: mx.array, length: Host | None, axis: int) -> mx.array:
    if x.shape[-1] not in (1, 2) or x.ndim < 2:
        raise call.invalid(f"the last axis of {list(x.shape)} does not hold real and imaginary parts")
    at = call.axis(axis, x.ndim)
    if at == x.ndim - 1:
        raise call.invalid("its axis is the one of real and imaginary parts")
    moved = mx.moveaxis(x, at, -2)
    real = moved[..., 0]
    imaginary = moved[..., 1] if x.shape[-1] == 2 else None
    inverse, one_sided = call.flag("inverse"), call.flag("onesided")
    size = x.shape[at]
    points = ints(length)[0] if length is not None else 2 * (size - 1) if inverse and one_sided else size
    function = _inverse if inverse else transform
    return mx.moveaxis(function(call, real, imaginary, points, one_sided), -2, at)


@op("DFT", since=20, host=(1, 2))
def dft(call: Call, x: mx.array, length: Host | None = None, axis: Host | None = None) -> mx.array:
    """Discrete Fourier transform."""
    return _dft(call, x, length, -2 if axis is None else ints(axis)[0])


@op("DFT", host=(1,))
def dft_attribute(call: Call, x: mx.array, length: Host | None = None) -> mx.array:
    """DFT before opset 20."""
    return _dft(call, x, length, call.integer("axis", 1))


@op("STFT", host=(1, 3))
def stft(call: Call, x: mx.array, step: Host, window: mx.array | None = None, length: Host | None = None) -> mx.array:
    """Fourier transforms of overlapping frames of a signal."""
    hop = ints(step)[0]
    size = ints(length)[0] if length is not None else window.shape[0] if window is not None else x.shape[1]
    signal = x[..., None] if x.ndim == 2 else x
    if signal.ndim != 3 or signal.shape[2] not in (1, 2):
        raise call.invalid(f"the last axis of {list(x.shape)} does not hold real and imaginary parts")
    if hop < 1 or not 0 < size <= signal.shape[1]:
        raise call.invalid(f"frames of {size} in steps of {hop} do not fit a signal of {signal.shape[1]}")
    count = 1 + (signal.shape[1] - size) // hop
    places = np.arange(count)[:, None] * hop + np.arange(size)
    frames = mx.take(signal, mx.array(places), axis=1)
    if window is not None:
        if window.shape[0] != size:
            raise call.refuse(f"a window of {window.shape[0]} for frames of {size}")
        frames = frames * window[:, None]
    imaginary = frames[..., 1] if frames.shape[-1] == 2 else None
    return transform(call, frames[..., 0], imaginary, size, call.flag("onesided", True))


def _window(name: str, function: Callable[[Host], Host]) -> None:
    def window(call: Call, size: Host) -> Host:
        length = check_dims(call, ints(size), on_host=True)[0]
        points = length if call.flag("periodic", True) else length - 1
        angle = 2 * np.pi * np.arange(length) / max(points, 1)
        dtype = NUMPY_TYPES[number_of(mlx_of(call, call.integer("output_datatype", 1)))]
        return function(angle).astype(dtype)

    op(name, host=(0,))(window)
    on_host(name)(window)


_window("HannWindow", lambda angle: 0.5 - 0.5 * np.cos(angle))
_window("HammingWindow", lambda angle: 25 / 46 - 21 / 46 * np.cos(angle))
_window("BlackmanWindow", lambda angle: 0.42 - 0.5 * np.cos(angle) + 0.08 * np.cos(2 * angle))


@op("MelWeightMatrix", host=(0, 1, 2, 3, 4))
def mel_weight_matrix(call: Call, bins: Host, length: Host, rate: Host, low: Host, high: Host) -> Host:
    """Triangles on the mel scale, as a matrix from a spectrum to mel bins."""
    count, points = ints(bins)[0], ints(length)[0]
    check_dims(call, [count + 2, points], on_host=True)
    mel = 2595 * np.log10(1 + np.array([float(low), float(high)]) / 700)
    edges = mel[0] + np.arange(count + 2) * (mel[1] - mel[0]) / (count + 2)
    hertz = 700 * (10 ** (edges / 2595) - 1)
    places = np.floor((points + 1) * hertz / float(rate)).astype(np.int64)
    matrix = np.zeros((points // 2 + 1, count))
    rows = np.arange(points // 2 + 1)
    for index in range(count):
        left, center, right = (int(item) for item in places[index : index + 3])
        if center == left:
            matrix[center, index] = 1
        else:
            rising = (rows >= left) & (rows <= center)
            matrix[rising, index] = (rows[rising] - left) / (center - left)
        falling = (rows >= center) & (rows < right)
        matrix[falling, index] = (right - rows[falling]) / max(right - center, 1)
    return matrix.astype(NUMPY_TYPES[number_of(mlx_of(call, call.integer("output_datatype", 1)))])


on_host("MelWeightMatrix")(mel_weight_matrix)
