"""Attention as ONNX Runtime's tools write it, spelled out like the standard one."""

from __future__ import annotations

import math
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from fuser.frontends.onnx_ops.attention import (
    Keep,
    in_window,
    merge_heads,
    repeat_heads,
    rotate,
    split_heads,
)
from fuser.frontends.onnx_ops.contrib import MS
from fuser.frontends.onnx_ops.contrib_cache import cached, from_beams, length, visible, widened
from fuser.frontends.onnx_ops.index import safe
from fuser.frontends.onnx_ops.math import const
from fuser.frontends.onnx_ops.quantize import exact_product
from fuser.frontends.onnx_ops.registry import Call, host_value, op
from fuser.frontends.onnx_types import Value


class Attended(NamedTuple):
    """What comes of an attention; the scores are those before anything is hidden."""

    output: mx.array
    scores: mx.array
    weights: mx.array


def attend(
    call: Call,
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    keep: Keep = None,
    biases: tuple[mx.array | None, ...] = (),
    softcap: float = 0.0,
    sink: mx.array | None = None,
) -> Attended:
    """Attention of `[batch, heads, length, width]` arrays."""
    scale = call.get("scale") or 1 / math.sqrt(q.shape[-1])
    scores = mx.matmul(q, mx.transpose(repeat_heads(call, k, q.shape[1]), (0, 1, 3, 2))) * const(scale, q)
    if softcap > 0:
        scores = mx.tanh(scores / const(softcap, scores)) * const(softcap, scores)
    for bias in biases:
        scores = scores if bias is None else scores + bias.astype(scores.dtype)
    all_scores = scores
    if keep is not None and not (isinstance(keep, np.ndarray) and keep.all()):
        scores = mx.where(call.array(keep), scores, const(-math.inf, scores))
    if sink is not None:
        column = mx.broadcast_to(sink.astype(scores.dtype).reshape(1, -1, 1, 1), (*scores.shape[:3], 1))
        weights = mx.softmax(mx.concatenate([scores, column], axis=-1), axis=-1)[..., :-1]
    else:
        weights = mx.softmax(scores, axis=-1)
    return Attended(mx.matmul(weights, repeat_heads(call, v, q.shape[1])), all_scores, weights)


def padding_bias(
    call: Call, mask: Value | None, batch: int, queries: int, keys: int, like: mx.array
) -> mx.array | None:
    """A mask in any of ONNX Runtime's forms, as something to add: a finite value where masked."""
    if mask is None:
        return None
    array = call.array(mask)
    places = mx.array(np.arange(keys, dtype=np.int32))
    if array.ndim == 1 and array.size == batch:
        keep = places[None] < array[:, None]
    elif array.ndim == 1 and array.size == 3 * batch + 2:  # lengths, and where packed sequences would start
        keep = places[None] < array[:batch, None]
    elif array.ndim == 1 and array.size == 2 * batch:
        keep = mx.logical_and(places[None] < array[:batch, None], places[None] >= array[batch:, None])
    elif (array.ndim == 2 and tuple(array.shape) == (batch, keys)) or (
        array.ndim == 3 and tuple(array.shape) == (batch, queries, keys)
    ):
        keep = array > const(0, array)
    else:
        raise call.refuse(f"a mask of shape {list(array.shape)}")
    keep = keep[:, None, None, :] if keep.ndim == 2 else keep[:, None]
    return mx.where(keep, const(0, like), const(call.number("mask_filter_value", -10000.0), like))


def _causal(call: Call, queries: int, keys: int) -> Keep:
    return in_window(queries, keys, keys - queries, -1, 0) if call.flag("unidirectional") else None


def _self_attention(
    call: Call, packed: mx.array, mask: Value | None, past: Value | None, bias: Value | None
) -> tuple[mx.array, ...]:
    """Attention of projected q, k and v that lie side by side."""
    heads = call.integer("num_heads")
    sizes = call.get("qkv_hidden_sizes") or [packed.shape[-1] // 3] * 3
    if call.flag("do_rotary") or call.flag("past_present_share_buffer"):
        raise call.refuse(
            "do_rotary and past_present_share_buffer, which ONNX Runtime has on GPUs only: "
            "write MultiHeadAttention and RotaryEmbedding instead"
        )
    if len(sizes) != 3 or sum(sizes) != packed.shape[-1]:
        raise call.invalid(f"a width of {packed.shape[-1]} is not split into {sizes}")
    parts = mx.split(packed, [sizes[0], sizes[0] + sizes[1]], axis=-1)
    q, k, v = (split_heads(call, part, heads) for part in parts)
    if past is not None:
        before = call.array(past)
        if before.ndim != 5 or before.shape[0] != 2:
            raise call.invalid(f"a past of shape {list(before.shape)} is not keys and values")
        k, v = mx.concatenate([before[0], k], axis=2), mx.concatenate([before[1], v], axis=2)
    queries, keys = q.shape[2], k.shape[2]
    padding = padding_bias(call, mask, q.shape[0], queries, keys, q)
    extra = None if bias is None else call.array(bias)
    output = attend(call, q, k, v, keep=_causal(call, queries, keys), biases=(padding, extra))
    if not call.wants(1):
        return (merge_heads(output.output),)
    return merge_heads(output.output), mx.stack([k, v])


@op("Attention", domain=MS, raw=True)
def attention(
    call: Call,
    x: Value,
    weights: Value,
    bias: Value | None = None,
    mask: Value | None = None,
    past: Value | None = None,
    attention_bias: Value | None = None,
    past_length: Value | None = None,
) -> tuple[mx.array, ...]:
    """Self attention with its projections."""
    packed = mx.matmul(call.array(x), call.array(weights))
    packed = packed if bias is None else packed + call.array(bias)
    return _self_attention(call, packed, mask, past, attention_bias)


@op("QAttention", domain=MS, raw=True)
def quantized_attention(
    call: Call,
    x: Value,
    weights: Value,
    bias: Value,
    x_scale: Value,
    w_scale: Value,
    mask: Value | None = None,
    x_zero: Value | None = None,
    w_zero: Value | None = None,
    past: Value | None = None,
) -> tuple[mx.array, ...]:
    """Self attention with quantized projections."""
    left, right = call.array(x).astype(mx.float32), call.array(weights).astype(mx.float32)
    left = left if x_zero is None else left - call.array(x_zero).astype(mx.float32)
    right = right if w_zero is None else right - call.array(w_zero).astype(mx.float32)
    exact = exact_product(left, right).astype(mx.float32)
    packed = exact * (call.array(x_scale) * call.array(w_scale)) + call.array(bias)
    return _self_attention(call, packed, mask, past, None)


@op("MultiHeadAttention", domain=MS, raw=True)
def multi_head_attention(
    call: Call,
    query: Value,
    key: Value | None = None,
    value: Value | None = None,
    bias: Value | None = None,
    mask: Value | None = None,
    attention_bias: Value | None = None,
    past_key: Value | None = None,
    past_value: Value | None = None,
    past_length: Value | None = None,
    beams: Value | None = None,
) -> tuple[mx.array, ...]:
    """Attention of projected q, k and v."""
    caches = None if past_key is None or past_value is None else (past_key, past_value, past_length)
    return _with_cache(call, (query, key, value, bias), mask, attention_bias, caches, beams, 8)


@op("DecoderMaskedMultiHeadAttention", domain=MS, raw=True)
def decoder_masked_multi_head_attention(
    call: Call,
    query: Value,
    key: Value | None = None,
    value: Value | None = None,
    mask: Value | None = None,
    attention_bias: Value | None = None,
    past_key: Value | None = None,
    past_value: Value | None = None,
    past_length: Value | None = None,
    beam_width: Value | None = None,
    beams: Value | None = None,
    bias: Value | None = None,
) -> tuple[mx.array, ...]:
    """Attention of one new query, to a cache with room or to keys from elsewhere."""
    caches = None if past_key is None or past_value is None else (past_key, past_value, past_length)
    if caches is not None and past_length is None:
        raise call.refuse("a cache without past_sequence_length")
    return _with_cache(call, (query, key, value, bias), mask, attention_bias, caches, beams, 7)


def _with_cache(
    call: Call,
    projected: tuple[Value, Value | None, Value | None, Value | None],
    mask: Value | None,
    bias: Value | None,
    caches: tuple[Value, Value, Value | None] | None,
    beams: Value | None,
    place: int,
) -> tuple[mx.array, ...]:
    """Attention behind a cache that grows, or that has room: there input `place` says how much of it is used."""
    query, key, value, shift = projected
    heads = call.integer("num_heads")
    q, k, v = _inputs(call, call.array(query), key, value, heads, None if shift is None else call.array(shift))
    queries, seen, keep, before = q.shape[2], None, None, None
    if caches is not None and caches[2] is None:
        k, v = (mx.concatenate([call.array(past), new], axis=2) for new, past in zip((k, v), caches[:2], strict=True))
    elif caches is not None and caches[2] is not None:  # keys and values go to their places
        # scores are put out for the keys that are there: how many must be known
        before = length(call, host_value(caches[2], call, place) if call.wants(3) else caches[2])
        size = call.array(caches[0]).shape[2]
        k, v = (cached(call, new, past, before, size) for new, past in zip((k, v), caches[:2], strict=True))
        keep = visible(call, queries, size, before, call.flag("unidirectional"))
        if beams is not None:
            seen = [from_beams(call, x, beams, before) for x in (k, v)]
    keys = k.shape[2]
    if keep is None:
        keep = _causal(call, queries, keys)
    hidden = None if mask is None else widened(call.array(mask), keys)
    padding = padding_bias(call, hidden, q.shape[0], queries, keys, q)
    extra = None if bias is None else widened(call.array(bias), keys)
    found = attend(call, q, *(seen or (k, v)), keep=keep, biases=(padding, extra))
    if not call.wants(3):
        return merge_heads(found.output), k, v
    lowest = const(mx.finfo(found.scores.dtype).min, found.scores)
    scores = found.scores if keep is None else mx.where(call.array(keep), found.scores, lowest)
    if isinstance(before, int):
        scores = scores[..., : before + queries]
    return merge_heads(found.output), k, v, scores


def _unstacked(call: Call, x: mx.array, count: int) -> list[mx.array]:
    """`[batch, length, heads, count, width]` as so many `[batch, heads, length, width]`."""
    if x.shape[3] != count:
        raise call.invalid(f"an array of shape {list(x.shape)} is not {count} in one")
    stacked = mx.transpose(x, (3, 0, 2, 1, 4))
    return [stacked[place] for place in range(count)]


def _inputs(
    call: Call, q: mx.array, key: Value | None, value: Value | None, heads: int, bias: mx.array | None
) -> tuple[mx.array, mx.array, mx.array]:
    """q, k and v as `[batch, heads, length, width]`, from any of the layouts that the operator takes."""
    if q.ndim == 5:
        parts = _unstacked(call, q, 3)
    elif key is None:
        raise call.invalid("it has no key")
    else:
        k = call.array(key)
        if k.ndim == 5:
            parts = [split_heads(call, q, heads), *_unstacked(call, k, 2)]
        elif value is None:
            raise call.invalid("it has no value")
        elif k.ndim == 4:
            parts = [split_heads(call, q, heads), k, call.array(value)]
            if bias is not None:  # keys and values of a cache have theirs already
                bias = bias[: q.shape[-1]]
        else:
            parts = [split_heads(call, x, heads) for x in (q, k, call.array(value))]
    if bias is not None:
        start = 0
        for index, part in enumerate(parts):
            width = part.shape[1] * part.shape[3]
            if start + width > bias.shape[0]:
                break
            parts[index] = part + bias[start : start + width].reshape(1, part.shape[1], 1, part.shape[3])
            start += width
    return parts[0], parts[1], parts[2]


@op("RotaryEmbedding", domain=MS, raw=True)
def rotary_embedding(call: Call, value: Value, places: Value, cos: Value, sin: Value) -> mx.array:
    """Rotary position embedding, by positions or from one on."""
    # ONNX Runtime has attributes `scale` and `is_packed_batching` too, and computes the same with them
    x, c, s = call.array(value), call.array(cos), call.array(sin)
    flat = x.ndim == 3
    width = call.integer("rotary_embedding_dim", 0) or 2 * c.shape[-1]
    if flat:
        heads = call.integer("num_heads", 0) or x.shape[-1] // (2 * c.shape[-1])
        x = split_heads(call, x, heads)
    elif x.ndim != 4:
        raise call.invalid(f"its input must have 3 or 4 dimensions, not {x.ndim}")
    if call.array(places).ndim == 1:
        start = call.array(places).astype(mx.int64).reshape(1, 1)
        places = start + mx.array(np.arange(x.shape[2])[None])
    c, s = (mx.expand_dims(mx.take(table, safe(call, places, table.shape[0]), axis=0), 1) for table in (c, s))
    result = rotate(x, c, s, width, call.flag("interleaved"))
    return merge_heads(result) if flat else result
