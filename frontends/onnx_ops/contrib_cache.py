"""Caches of keys and values as ONNX Runtime's attentions keep them: with room, quantized, or of a window's size."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import numpy as np

from fuser.frontends.onnx_ops.attention import Keep, both, in_window
from fuser.frontends.onnx_ops.index import safe
from fuser.frontends.onnx_ops.math import const
from fuser.frontends.onnx_ops.registry import Call, ints
from fuser.frontends.onnx_types import Value


def length(call: Call, value: Value) -> int | mx.array:
    """How many keys a cache holds: a number, or an array of one where only a run tells."""
    if isinstance(value, np.ndarray):
        return ints(value)[0]
    return call.array(value).astype(mx.int64).reshape(1, 1)


def cached(call: Call, new: mx.array, past: Value | None, before: int | mx.array, size: int) -> mx.array:
    """New keys or values behind those of a cache, in a cache of `size`."""
    old = new[:, :, :0] if past is None else call.array(past)
    if old.ndim != 4 or (*old.shape[:2], old.shape[3]) != (*new.shape[:2], new.shape[3]):
        raise call.invalid(f"a cache of shape {list(old.shape)} does not take {list(new.shape)}")
    if isinstance(before, int):
        parts = [old[:, :, :before], new]
        if before + new.shape[2] < size:
            rest = old[:, :, before + new.shape[2] :]
            parts.append(rest)
        return mx.concatenate(parts, axis=2) if len(parts) > 2 or before else new
    if old.shape[2] < size:
        old = mx.pad(old, [(0, 0), (0, 0), (0, size - old.shape[2]), (0, 0)])
    index = safe(call, before + mx.array(np.arange(new.shape[2])), size)[:, None, :, None]
    return mx.put_along_axis(old, mx.broadcast_to(index, new.shape), new, axis=2)


def visible(call: Call, step: int, keys: int, before: int | mx.array, causal: bool) -> Keep:
    """What of a cache is seen: what it holds, or, causally, what stands before each query in the local window."""
    left = local_window(call) - 1
    if not causal:
        places = np.arange(keys)
        if isinstance(before, int):
            return np.broadcast_to(places < before + step, (step, keys))
        return (mx.array(places) < before + mx.array(step, dtype=mx.int64))[:, None, None]
    if isinstance(before, int):
        return in_window(step, keys, before, left, 0)
    at = (before + mx.array(np.arange(step)))[:, None, :, None]
    distance = at - mx.array(np.arange(keys))
    keep = distance >= mx.array(0, dtype=mx.int64)
    return both(call, keep, distance <= mx.array(left, dtype=mx.int64) if left >= 0 else None)


def local_window(call: Call) -> int:
    """How many keys a query sees, itself among them; 0 for any number."""
    return max(call.integer("local_window_size", -1), 0)


def from_beams(call: Call, cache: mx.array, beams: Value, before: int | mx.array) -> mx.array:
    """Keys or values of a cache, each of those that were there from the beam that `[batch, beam, place]` names."""
    rows, size = call.array(beams).astype(mx.int64), cache.shape[2]
    batch, width, places = rows.shape
    if batch * width != cache.shape[0] or places != size:
        raise call.invalid(f"beams of shape {list(rows.shape)} do not fit a cache of shape {list(cache.shape)}")
    first = mx.array(np.arange(batch).reshape(-1, 1, 1) * width)
    rows = (safe(call, rows, width) + first).reshape(-1, size)
    own = mx.array(np.arange(cache.shape[0]).reshape(-1, 1))
    there = mx.array(np.arange(size)) < (mx.array(before) if isinstance(before, int) else before)
    index = mx.where(there, rows, own)[:, None, :, None]
    return mx.take_along_axis(cache, mx.broadcast_to(index, cache.shape), axis=0)


def widened(x: mx.array, keys: int) -> mx.array:
    """A mask or bias over the keys that there are, for those that a cache has room for: they are hidden anyway."""
    short = keys - x.shape[-1]
    return mx.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, short)]) if x.ndim > 1 and short > 0 else x


class Quantizer(NamedTuple):
    """How a cache holds keys or values: as integers of 8 bits, or of 4 and two in a byte, with their scales."""

    call: Call
    bits: int
    scale: mx.array

    @classmethod
    def of(cls, call: Call, kind: str, scale: Value | None, past: Value | None) -> Quantizer | None:
        """That of the attribute `kind`; `None` where the cache holds what it is given."""
        if call.text(kind, "NONE") == "NONE" and scale is None:
            return None
        bits = call.integer("kv_cache_bit_width", 8)
        if past is None or scale is None or call.array(past).dtype != {8: mx.int8, 4: mx.uint8}.get(bits):
            raise call.refuse(f"a cache of {bits} bits that is not int8, or uint8 for 4 bits, with a scale")
        rates = call.array(scale)
        return cls(call, bits, rates if rates.size == 1 else rates.reshape(1, call.integer("kv_num_heads"), 1, -1))

    def codes(self, x: mx.array) -> mx.array:
        """Values as the cache holds them."""
        highest = (1 << (self.bits - 1)) - 1
        steps = mx.round(x.astype(self.scale.dtype) / self.scale)
        steps = mx.clip(steps, const(-highest - 1, steps), const(highest, steps))
        if self.bits == 8:
            return steps.astype(mx.int8)
        nibbles = (steps + const(8, steps)).astype(mx.uint8)
        return mx.bitwise_or(nibbles[..., 0::2], mx.left_shift(nibbles[..., 1::2], mx.array(4, dtype=mx.uint8)))

    def values(self, codes: mx.array, like: mx.array) -> mx.array:
        """What the cache holds, as values."""
        if self.bits == 4:
            low = mx.bitwise_and(codes, mx.array(15, dtype=mx.uint8))
            high = mx.right_shift(codes, mx.array(4, dtype=mx.uint8))
            pairs = mx.stack([low, high], axis=-1).reshape(*codes.shape[:-1], 2 * codes.shape[-1])
            codes = pairs.astype(self.scale.dtype) - const(8, self.scale)
        return (codes.astype(self.scale.dtype) * self.scale).astype(like.dtype)


class Sliding:
    """A cache that holds the last keys only: how many depends on how many there have been, `G` are let go at once."""

    def __init__(self, call: Call, capacity: int, step: int, before: mx.array, count: mx.array) -> None:
        self._window = local_window(call)
        self._capacity = capacity
        if not 0 < self._window <= capacity:
            raise call.invalid(f"a cache of {capacity} keys does not hold a window of {self._window}")
        rows, steps = mx.array(np.arange(capacity)), mx.array(np.arange(step))
        held = self._resident(before)
        first = before - held
        self._at = before + steps
        self._places = mx.concatenate([first + rows, self._at], axis=1)
        self._filled = mx.concatenate([rows < held, steps < count], axis=1)
        total = before + count
        position = total - self._resident(total) + rows
        source = mx.where(position < before, position - first, position - before + mx.array(capacity))
        self._sources = safe(call, source, capacity + step)[:, None, :, None]

    def _resident(self, tokens: mx.array) -> mx.array:
        group = self._capacity - self._window + 1
        over = mx.maximum(tokens - mx.array(self._capacity), mx.array(0))
        return tokens - (over + mx.array(group - 1)) // mx.array(group) * mx.array(group)

    def seen(self) -> mx.array:
        """Which of the keys that were there, and of the new ones behind them, each query sees."""
        distance = self._at[:, :, None] - self._places[:, None, :]
        near = mx.logical_and(distance >= mx.array(0), distance < mx.array(self._window))
        return mx.logical_and(near, self._filled[:, None, :])[:, None]

    def bias(self, call: Call, bias: mx.array) -> mx.array:
        """The columns of a bias over all positions, for those keys."""
        index = safe(call, self._places, bias.shape[-1])[:, None, None, :]
        rows = mx.broadcast_to(bias, (index.shape[0], *bias.shape[1:]))
        return mx.take_along_axis(rows, mx.broadcast_to(index, (*rows.shape[:-1], index.shape[-1])), axis=-1)

    def present(self, everything: mx.array) -> mx.array:
        """The cache after this step."""
        shape = (*everything.shape[:2], self._capacity, everything.shape[3])
        return mx.take_along_axis(everything, mx.broadcast_to(self._sources, shape), axis=2)
