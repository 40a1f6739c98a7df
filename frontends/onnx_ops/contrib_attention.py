"""Attention as ONNX Runtime's tools write it, spelled out like the standard one."""

from __future__ import annotations

import math
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from fuser.frontends.onnx_ops.attention import (
    Keep,
    both,
    in_window,
    merge_heads,
    repeat_heads,
    rotate,
    split_heads,
)
from fuser.frontends.onnx_ops.contrib import MS
from fuser.frontends.onnx_ops.index import safe
from fuser.frontends.onnx_ops.math import const, reduced
from fuser.frontends.onnx_ops.norm import rms
from fuser.frontends.onnx_ops.quantize import exact_product
from fuser.frontends.onnx_ops.registry import Call, host_value, ints, op
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
        raise call.refuse("do_rotary and past_present_share_buffer")
    if len(sizes) != 3 or sum(sizes) != packed.shape[-1]:
        raise call.invalid(f"a width of {packed.shape[-1]} is not split into {sizes}")
    parts = mx.split(packed, [sizes[0], sizes[0] + sizes[1]], axis=-1)
    q, k, v = (split_heads(call, part, heads) for part in parts)
    if past is not None:
        before = call.array(past)
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


@op("PackedAttention", domain=MS)
def packed_attention(
    call: Call,
    x: mx.array,
    weights: mx.array,
    bias: mx.array,
    token_offset: mx.array,
    lengths: mx.array,
    attention_bias: mx.array | None = None,
) -> mx.array:
    """Attention of sequences that lie one after the other without padding: each token sees its own sequence."""
    if attention_bias is not None:
        raise call.refuse("attention_bias")
    packed = mx.matmul(x, weights) + bias
    sizes = call.get("qkv_hidden_sizes") or [packed.shape[-1] // 3] * 3
    parts = mx.split(packed[None], [sizes[0], sizes[0] + sizes[1]], axis=-1)
    q, k, v = (split_heads(call, part, call.integer("num_heads")) for part in parts)
    places = mx.array(np.arange(x.shape[0]).reshape(-1, 1))
    sequence = reduced("sum", (places >= lengths[1:].astype(mx.int64)).astype(mx.int32), 1, keep=False)
    keep = mx.equal(sequence[:, None], sequence[None, :])
    return merge_heads(attend(call, q, k, v, keep=keep).output)[0]


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
    if beams is not None:
        raise call.refuse("cache_indirection")
    heads = call.integer("num_heads")
    q, k, v = _inputs(call, call.array(query), key, value, heads, None if bias is None else call.array(bias))
    queries, keep = q.shape[2], None
    if past_key is not None and past_value is not None:
        if past_length is None:
            k = mx.concatenate([call.array(past_key), k], axis=2)
            v = mx.concatenate([call.array(past_value), v], axis=2)
        else:  # the cache has room: keys and values go to their places in it
            before = _length(call, past_length)
            size = call.array(past_key).shape[2]
            k, v = (_cached(call, new, past, before, size) for new, past in ((k, past_key), (v, past_value)))
            keep = _visible(call, queries, size, before, call.flag("unidirectional"))
    keys = k.shape[2]
    if keep is None:
        keep = _causal(call, queries, keys)
    padding = padding_bias(call, mask, q.shape[0], queries, keys, q)
    extra = None if attention_bias is None else call.array(attention_bias)
    found = attend(call, q, k, v, keep=keep, biases=(padding, extra))
    if not call.wants(3):
        return merge_heads(found.output), k, v
    hidden = mx.finfo(found.scores.dtype).min
    scores = found.scores if keep is None else mx.where(call.array(keep), found.scores, const(hidden, found.scores))
    return merge_heads(found.output), k, v, scores


def _length(call: Call, value: Value) -> int | mx.array:
    """How many keys a cache holds: a number, or an array of one where only a run tells."""
    if isinstance(value, np.ndarray):
        return ints(value)[0]
    return call.array(value).astype(mx.int64).reshape(1, 1)


def _inputs(
    call: Call, q: mx.array, key: Value | None, value: Value | None, heads: int, bias: mx.array | None
) -> tuple[mx.array, mx.array, mx.array]:
    """q, k and v as `[batch, heads, length, width]`, from any of the layouts that the operator takes."""
    if q.ndim == 5:  # [batch, length, heads, 3, width]
        stacked = mx.transpose(q, (3, 0, 2, 1, 4))
        parts = [stacked[0], stacked[1], stacked[2]]
    elif key is None:
        raise call.invalid("it has no key")
    else:
        k = call.array(key)
        if k.ndim == 5:  # [batch, length, heads, 2, width]
            stacked = mx.transpose(k, (3, 0, 2, 1, 4))
            parts = [split_heads(call, q, heads), stacked[0], stacked[1]]
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


@op("GroupQueryAttention", domain=MS, raw=True, host=(6,))
def group_query_attention(call: Call, *inputs: Value | None) -> tuple[mx.array, ...]:
    """Causal attention with shared keys, a cache of fixed or growing length, and rotary embedding."""
    given: list[Value | None] = [*inputs, *[None] * (17 - len(inputs))]
    query, key, value, past_key, past_value, lengths, total, cos, sin, places, bias, sink = given[:12]
    if any(item is not None for item in (given[12], given[13], given[16])) or call.flag("sliding_window_cache"):
        raise call.refuse("a quantized or windowed cache, and query_seqlens")
    if query is None or lengths is None or total is None:
        raise call.invalid("it has no query, seqlens_k or total_sequence_length")
    heads, kv_heads = call.integer("num_heads"), call.integer("kv_num_heads")
    q, k, v = _grouped(call, query, key, value, heads, kv_heads)
    if given[14] is not None and given[15] is not None:
        epsilon = call.number("qk_norm_epsilon", 1e-6)
        q = rms(q, [-1], call.number("q_norm_epsilon", epsilon)) * call.array(given[14])
        k = rms(k, [-1], call.number("k_norm_epsilon", epsilon)) * call.array(given[15])
    step, final = q.shape[2], ints(host_value(total, call, 6))[0]
    capacity = 0 if past_key is None else call.array(past_key).shape[2]
    # how many keys come before the new ones: the same for all sequences, unless a batch of them goes on
    prompt = final == step or capacity == 0
    before: int | mx.array = 0 if prompt else final - step
    if not prompt and q.shape[0] > 1:
        before = call.array(lengths).astype(mx.int64).reshape(-1, 1) + mx.array(1 - step, dtype=mx.int64)
    if call.flag("do_rotary"):
        if cos is None or sin is None:
            raise call.invalid("it has no cos_cache and sin_cache")
        q, k = _rotated(call, q, k, cos, sin, places, before)
    k, v = (_cached(call, new, past, before, max(final, capacity)) for new, past in ((k, past_key), (v, past_value)))
    keys = k.shape[2]
    keep = _visible(call, step, keys, before, call.flag("causal", True))
    added = None if bias is None else call.array(bias)
    if added is not None and added.shape[-1] < keys:
        added = mx.pad(added, [(0, 0)] * (added.ndim - 1) + [(0, keys - added.shape[-1])])
    column = call.array(sink) if sink is not None else None
    if column is None and call.integer("smooth_softmax", 0) == 1:
        column = mx.zeros((heads,), dtype=q.dtype)
    found = attend(call, q, k, v, keep=keep, biases=(added,), softcap=call.number("softcap", 0.0), sink=column)
    results = merge_heads(found.output), k, v
    match call.integer("qk_output", 0):
        case 1:
            hidden = const(0, found.scores)
            return *results, found.scores if keep is None else mx.where(call.array(keep), found.scores, hidden)
        case 2:
            return *results, found.weights
    return results


def _grouped(
    call: Call, query: Value, key: Value | None, value: Value | None, heads: int, kv_heads: int
) -> tuple[mx.array, mx.array, mx.array]:
    q = call.array(query)
    if key is not None and value is not None:
        return (
            split_heads(call, q, heads),
            split_heads(call, call.array(key), kv_heads),
            split_heads(call, call.array(value), kv_heads),
        )
    width = q.shape[-1] // (heads + 2 * kv_heads)
    parts = mx.split(q, [heads * width, (heads + kv_heads) * width], axis=-1)
    return (
        split_heads(call, parts[0], heads),
        split_heads(call, parts[1], kv_heads),
        split_heads(call, parts[2], kv_heads),
    )


def _rotated(
    call: Call, q: mx.array, k: mx.array, cos: Value, sin: Value, places: Value | None, before: int | mx.array
) -> tuple[mx.array, mx.array]:
    tables = call.array(cos), call.array(sin)
    steps = np.arange(q.shape[2])
    where: Value
    if places is not None:
        where = places
    elif isinstance(before, int):
        where = (before + steps)[None]
    else:
        where = before + mx.array(steps)
    index = safe(call, where, tables[0].shape[0])
    c, s = (mx.expand_dims(mx.take(table, index, axis=0), 1) for table in tables)
    turned = call.flag("rotary_interleaved")
    width = 2 * c.shape[-1]
    return rotate(q, c, s, width, turned), rotate(k, c, s, width, turned)


def _cached(call: Call, new: mx.array, past: Value | None, before: int | mx.array, size: int) -> mx.array:
    """New keys or values behind those of a cache, in a cache of `size`."""
    old = new[:, :, :0] if past is None else call.array(past)
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


def _visible(call: Call, step: int, keys: int, before: int | mx.array, causal: bool) -> Keep:
    """What of a cache is seen: what it holds, or, causally, what stands before each query in the local window."""
    window = call.integer("local_window_size", -1)
    left = window - 1 if window > 0 else -1
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
    index = safe(call, places, c.shape[0])
    c, s = (mx.expand_dims(mx.take(table, index, axis=0), 1) for table in (c, s))
    result = rotate(x, c, s, width, call.flag("interleaved"))
    return merge_heads(result) if flat else result
