"""Attention of ai.onnx, spelled out in plain operations so that one matcher reads every program."""

from __future__ import annotations

import math
from typing import TypeAlias

import mlx.core as mx
import numpy as np

from fuser.frontends.onnx_ops.index import safe
from fuser.frontends.onnx_ops.math import const, reduced
from fuser.frontends.onnx_ops.registry import Call, op
from fuser.frontends.onnx_types import MLX_TYPES, Host, Value

# which keys a query may see: known on the host, or not
Keep: TypeAlias = "Host | mx.array | None"


def split_heads(call: Call, x: mx.array, heads: int) -> mx.array:
    """`[batch, length, heads * width]` as `[batch, heads, length, width]`."""
    if x.ndim != 3 or heads < 1 or x.shape[-1] % heads:
        raise call.invalid(f"an array of shape {list(x.shape)} cannot be split into {heads} heads")
    return mx.transpose(x.reshape(x.shape[0], x.shape[1], heads, x.shape[2] // heads), (0, 2, 1, 3))


def merge_heads(x: mx.array) -> mx.array:
    """`[batch, heads, length, width]` as `[batch, length, heads * width]`."""
    return mx.transpose(x, (0, 2, 1, 3)).reshape(x.shape[0], x.shape[2], x.shape[1] * x.shape[3])


def repeat_heads(call: Call, x: mx.array, heads: int) -> mx.array:
    """Keys or values for every query head: each serves several in a row."""
    if x.shape[1] == 0 or heads % x.shape[1]:
        raise call.invalid(f"{heads} query heads cannot share {x.shape[1]} key heads")
    return x if heads == x.shape[1] else mx.repeat(x, heads // x.shape[1], axis=1)


def in_window(queries: int, keys: int, past: int, left: int, right: int) -> Host:
    """True where query `past + i` may see a key: at most `left` before it and `right` behind it (-1: any number)."""
    distance = np.arange(queries)[:, None] + past - np.arange(keys)[None, :]
    keep = np.ones_like(distance, dtype=np.bool_)
    if left >= 0:
        keep &= distance <= left
    if right >= 0:
        keep &= distance >= -right
    return keep


def both(call: Call, first: Keep, second: Keep) -> Keep:
    """Keys that two conditions leave."""
    if first is None or second is None:
        return second if first is None else first
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return np.logical_and(first, second)
    return mx.logical_and(call.array(first), call.array(second))


def masked_softmax(call: Call, scores: mx.array, keep: Keep, bias: mx.array | None, precision: mx.Dtype) -> mx.array:
    """Softmax of masked scores; a query that may see no key at all gets zeros."""
    minus_infinity = const(-math.inf, scores)
    if isinstance(keep, np.ndarray) and keep.all() and keep.size:
        keep = None
    if keep is not None:
        scores = mx.where(call.array(keep), scores, minus_infinity)
    weights = mx.softmax(scores.astype(precision), axis=-1)
    seen: Keep = keep if bias is None else both(call, keep, bias > const(-math.inf, bias))
    if isinstance(seen, np.ndarray):
        rows: Host = np.asarray(seen.any(axis=-1, keepdims=True))
        return weights if rows.all() else mx.where(mx.array(rows), weights, const(0, weights))
    if seen is None:
        return weights
    return mx.where(reduced("any", seen, -1), weights, const(0, weights))


def _split_mask(call: Call, mask: Value | None, keys: int) -> tuple[Keep, mx.array | None]:
    """A mask as what it keeps and what it adds; one shorter than the keys keeps none of those beyond it."""
    if mask is None:
        return None, None
    if isinstance(mask, np.ndarray):
        short = keys - mask.shape[-1]
        boolean = mask.dtype == np.bool_
        widths = [(0, 0)] * (mask.ndim - 1) + [(0, max(0, short))]
        mask = np.pad(mask, widths, constant_values=False if boolean else -math.inf)
        if boolean:
            return mask, None
        if ((mask == 0) | np.isneginf(mask)).all():
            return mask == 0, None
        return None, call.array(mask)
    array = call.array(mask)
    if (short := keys - array.shape[-1]) > 0:
        fill = mx.array(False) if array.dtype == mx.bool_ else const(-math.inf, array)
        array = mx.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, short)], constant_values=fill)
    return (array, None) if array.dtype == mx.bool_ else (None, array)


def _windows(call: Call, queries: int, keys: int, past: int, lengths: Value | None) -> Keep:
    """What causality, the window and the number of valid keys leave."""
    left, right = call.integer("left_window_size", -1), call.integer("right_window_size", -1)
    if left < -1 or right < -1:
        raise call.invalid("window sizes must be -1 or more")
    if call.flag("is_causal"):
        right = 0
    bounded = left >= 0 or right >= 0
    if lengths is None:
        return in_window(queries, keys, past, left, right) if bounded else None
    if isinstance(lengths, np.ndarray):
        counts = lengths.reshape(-1, 1, 1, 1)
        keep: Host = np.arange(keys).reshape(1, 1, 1, keys) < counts
        parts = [in_window(queries, keys, int(count) - queries, left, right)[None] for count in lengths.reshape(-1)]
        return keep & np.stack(parts) if bounded else keep
    counted = call.array(lengths).astype(mx.int64).reshape(-1, 1, 1, 1)
    valid = mx.array(np.arange(keys).reshape(1, 1, 1, keys)) < counted
    if not bounded:
        return valid
    base = np.arange(queries).reshape(1, 1, queries, 1) - queries - np.arange(keys).reshape(1, 1, 1, keys)
    distance = mx.array(base) + counted
    if left >= 0:
        valid = mx.logical_and(valid, distance <= mx.array(left, dtype=mx.int64))
    if right >= 0:
        valid = mx.logical_and(valid, distance >= mx.array(-right, dtype=mx.int64))
    return valid


def scaled_scores(q: mx.array, k: mx.array, scale: float) -> mx.array:
    """q @ k' * scale, with the root of the scale on both sides, which keeps half precision in range."""
    swapped = (0, 1, 3, 2)
    if scale <= 0:
        return mx.matmul(q * const(scale, q), mx.transpose(k, swapped))
    root = math.sqrt(scale)
    return mx.matmul(q * const(root, q), mx.transpose(k * const(root, k), swapped))


@op("Attention", since=23, raw=True)
def attention(
    call: Call,
    query: Value,
    key: Value,
    value: Value,
    mask: Value | None = None,
    past_key: Value | None = None,
    past_value: Value | None = None,
    lengths: Value | None = None,
) -> tuple[mx.array, ...]:
    """Scaled dot product attention of opset 23 to 25."""
    q, k, v = call.array(query), call.array(key), call.array(value)
    flat = q.ndim == 3
    if flat:
        heads = call.integer("kv_num_heads")
        q = split_heads(call, q, call.integer("q_num_heads"))
        k, v = split_heads(call, k, heads), split_heads(call, v, heads)
    if q.ndim != 4 or k.ndim != 4 or v.ndim != 4:
        raise call.invalid(f"q, k and v must have 3 or 4 dimensions, not {q.ndim}, {k.ndim} and {v.ndim}")
    if (past_key is None) != (past_value is None) or (lengths is not None and past_key is not None):
        raise call.invalid("past_key and past_value come together, and not with nonpad_kv_seqlen")
    past = 0
    if past_key is not None and past_value is not None:
        past = call.array(past_key).shape[2]
        k = mx.concatenate([call.array(past_key), k], axis=2)
        v = mx.concatenate([call.array(past_value), v], axis=2)
    queries, keys = q.shape[2], k.shape[2]
    keep, bias = _split_mask(call, mask, keys)
    keep = both(call, keep, _windows(call, queries, keys, past, lengths))
    scale = call.get("scale")
    raw = scores = scaled_scores(
        q, repeat_heads(call, k, q.shape[1]), 1 / math.sqrt(q.shape[3]) if scale is None else scale
    )
    softcap = call.number("softcap", 0.0)
    if softcap > 0:
        scores = mx.tanh(scores / const(softcap, scores)) * const(softcap, scores)
    capped = scores
    if bias is not None:
        scores = scores + bias.astype(scores.dtype)
    precision = MLX_TYPES.get(call.integer("softmax_precision", 0), scores.dtype)
    weights = masked_softmax(call, scores, keep, bias, precision).astype(q.dtype)
    output = mx.matmul(weights, repeat_heads(call, v, q.shape[1]).astype(q.dtype))
    output = merge_heads(output) if flat else output
    if not call.wants(3):
        return output, k, v
    mode = call.integer("qk_matmul_output_mode", 0)
    if mode == 2 and keep is not None:
        scores = mx.where(call.array(keep), scores, const(-math.inf, scores))
    modes = [raw, capped, scores, weights]
    if not 0 <= mode < 4:
        raise call.invalid(f"qk_matmul_output_mode {mode} is not 0, 1, 2 or 3")
    return output, k, v, modes[mode]


def rotate(x: mx.array, cos: mx.array, sin: mx.array, width: int, interleaved: bool) -> mx.array:
    """Rotary embedding of the first `width` of the last axis."""
    turned, rest = x[..., :width], x[..., width:]
    if interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = turned[..., : width // 2], turned[..., width // 2 :]
    real, imaginary = first * cos - second * sin, first * sin + second * cos
    if interleaved:
        turned = mx.stack([real, imaginary], axis=-1).reshape(turned.shape)
    else:
        turned = mx.concatenate([real, imaginary], axis=-1)
    return turned if width == x.shape[-1] else mx.concatenate([turned, rest], axis=-1)


@op("RotaryEmbedding", since=23, raw=True)
def rotary_embedding(
    call: Call, value: Value, cos_cache: Value, sin_cache: Value, position_ids: Value | None = None
) -> mx.array:
    """Rotary position embedding of `[batch, heads, length, width]` or `[batch, length, heads * width]`."""
    x, cos, sin = call.array(value), call.array(cos_cache), call.array(sin_cache)
    flat = x.ndim == 3
    x = split_heads(call, x, call.integer("num_heads")) if flat else x
    width = call.integer("rotary_embedding_dim", 0) or x.shape[-1]
    if position_ids is not None:
        cos, sin = (mx.take(table, safe(call, position_ids, table.shape[0]), axis=0) for table in (cos, sin))
    if cos.shape[-1] * 2 != width or sin.shape[-1] * 2 != width or width > x.shape[-1]:
        raise call.invalid(f"caches of width {cos.shape[-1]} do not fit a rotation of {width}")
    cos, sin = mx.expand_dims(cos, 1), mx.expand_dims(sin, 1)
    result = rotate(x, cos, sin, width, call.flag("interleaved"))
    return merge_heads(result) if flat else result


@op("FlexAttention", domain="ai.onnx.preview")
def flex_attention(call: Call, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    """Attention with graphs that change its scores and its weights."""
    if q.ndim != 4 or k.ndim != 4 or v.ndim != 4:
        raise call.invalid("q, k and v must have 4 dimensions")
    precision = MLX_TYPES.get(call.integer("softmax_precision", 0), mx.float64 if q.dtype == mx.float64 else mx.float32)
    scale = call.number("scale", 1 / math.sqrt(q.shape[-1]))
    scores = scaled_scores(q, repeat_heads(call, k, q.shape[1]), scale).astype(precision)
    scores = _changed(call, "score_mod", scores)
    weights = _changed(call, "prob_mod", mx.softmax(scores, axis=-1))
    values = repeat_heads(call, v, q.shape[1])
    return mx.matmul(weights, values.astype(precision)).astype(v.dtype)


def _changed(call: Call, name: str, x: mx.array) -> mx.array:
    graph = call.get(name)
    if graph is None:
        return x
    results = call.run(graph, dict(zip(graph.inputs, [x], strict=True)))
    return call.array(results[0])
