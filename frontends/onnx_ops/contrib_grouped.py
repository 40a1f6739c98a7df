"""Attention with shared keys and a cache, as ONNX Runtime's generators write it."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from fuser.frontends.onnx_ops.attention import Keep, both, in_window, merge_heads, rotate, split_heads
from fuser.frontends.onnx_ops.contrib import MS
from fuser.frontends.onnx_ops.contrib_attention import attend
from fuser.frontends.onnx_ops.contrib_cache import Quantizer, Sliding, cached, local_window, visible
from fuser.frontends.onnx_ops.index import safe
from fuser.frontends.onnx_ops.math import const
from fuser.frontends.onnx_ops.norm import rms
from fuser.frontends.onnx_ops.registry import Call, host_value, ints, op
from fuser.frontends.onnx_types import Host, Value


@op("GroupQueryAttention", domain=MS, raw=True, host=(6,))
def group_query_attention(call: Call, *inputs: Value | None) -> tuple[mx.array, ...]:
    """Causal attention with shared keys, a cache of fixed or growing length, and rotary embedding."""
    given: list[Value | None] = [*inputs, *[None] * (17 - len(inputs))]
    query, key, value, past_key, past_value, lengths, total, cos, sin, places, bias, sink = given[:12]
    k_scale, v_scale, q_weight, k_weight, valid = given[12:17]
    if query is None or lengths is None or total is None:
        raise call.invalid("it has no query, seqlens_k or total_sequence_length")
    heads, kv_heads = call.integer("num_heads"), call.integer("kv_num_heads")
    q, k, v = packed(call, query, key, value, heads, kv_heads)
    if q_weight is not None and k_weight is not None:
        epsilon = call.number("qk_norm_epsilon", 1e-6)
        q = rms(q, [-1], call.number("q_norm_epsilon", epsilon)) * call.array(q_weight)
        k = rms(k, [-1], call.number("k_norm_epsilon", epsilon)) * call.array(k_weight)
    step, final = q.shape[2], ints(host_value(total, call, 6))[0]
    capacity = 0 if past_key is None else call.array(past_key).shape[2]
    sliding = call.flag("sliding_window_cache")
    # how many keys come before the new ones: the same for all sequences, unless a batch of them goes on
    prompt = valid is None and (final == step or capacity == 0)
    before: int | mx.array = 0 if prompt else final - step
    count = mx.minimum(_tokens(call, lengths), mx.array(step)) if valid is None else _tokens(call, valid, 0)
    if valid is not None or (not prompt and (q.shape[0] > 1 or sliding)):
        before = _tokens(call, lengths) - (mx.array(step, dtype=mx.int64) if valid is None else count)
    if call.flag("do_rotary"):
        if cos is None or sin is None:
            raise call.invalid("it has no cos_cache and sin_cache")
        q, k = rotated(call, q, k, cos, sin, places, before)
    added = None if bias is None else call.array(bias)
    quantizers = (
        Quantizer.of(call, "k_quant_type", k_scale, past_key),
        Quantizer.of(call, "v_quant_type", v_scale, past_value),
    )
    new = [x if each is None else each.codes(x) for x, each in zip((k, v), quantizers, strict=True)]
    keep: Keep
    if sliding:
        if past_key is None or past_value is None or call.array(past_value).shape[2] != capacity:
            raise call.invalid("it has no cache to slide, or two of different sizes")
        start = mx.zeros((q.shape[0], 1), dtype=mx.int64) if isinstance(before, int) else before
        cache = Sliding(call, capacity, step, start, count)
        pasts = call.array(past_key), call.array(past_value)
        held = [mx.concatenate(list(pair), axis=2) for pair in zip(pasts, new, strict=True)]
        presents = [cache.present(x) for x in held]
        if prompt:  # nothing was there: what is known of the mask stays known
            held, keep = new, in_window(step, step, 0, local_window(call) - 1, 0)
        else:
            keep, added = cache.seen(), None if added is None else cache.bias(call, added)
    else:
        size = max(final, capacity)
        presents = held = [
            cached(call, x, past, before, size) for x, past in zip(new, (past_key, past_value), strict=True)
        ]
        keep = visible(call, step, presents[0].shape[2], before, call.flag("causal", True))
    k, v = (x if each is None else each.values(x, q) for x, each in zip(held, quantizers, strict=True))
    if added is not None and (short := k.shape[2] - added.shape[-1]) > 0:
        added = mx.pad(added, [(0, 0)] * (added.ndim - 1) + [(0, short)])
    column = call.array(sink) if sink is not None else None
    if column is None and call.integer("smooth_softmax", 0) == 1:
        column = mx.zeros((heads,), dtype=q.dtype)
    found = attend(call, q, k, v, keep=keep, biases=(added,), softcap=call.number("softcap", 0.0), sink=column)
    results = merge_heads(found.output), *presents
    kind = call.integer("qk_output", 0)
    if not kind or not call.wants(3):
        return results
    if sliding:
        raise call.refuse("the scores of a cache that slides")
    scores = found.weights
    if kind == 1:
        hidden = const(0, found.scores)
        scores = found.scores if keep is None else mx.where(call.array(keep), found.scores, hidden)
    return *results, scores[..., :final]


@op("SparseAttention", domain=MS, raw=True, host=(5, 6, 7))
def sparse_attention(call: Call, *inputs: Value | None) -> tuple[mx.array, ...]:
    """Causal attention to some blocks of a cache with room; heads take turns at what they see."""
    query, key, value, past_key, past_value, starts, columns, total, lengths, *tables = inputs
    if query is None or past_key is None or past_value is None or lengths is None:
        raise call.invalid("it has no query, cache or key_total_sequence_lengths")
    heads, kv_heads = call.integer("num_heads"), call.integer("kv_num_heads")
    q, k, v = packed(call, query, key, value, heads, kv_heads)
    step, size = q.shape[2], call.array(past_key).shape[2]
    if starts is None or columns is None or total is None:
        raise call.invalid("it has no blocks or no total_sequence_length")
    final = ints(host_value(total, call, 7))[0]
    before: int | mx.array = final - step
    if final != step and q.shape[0] > 1:
        before = _tokens(call, lengths, -step)
    if call.flag("do_rotary"):
        if len(tables) < 2 or tables[0] is None or tables[1] is None:
            raise call.invalid("it has no cos_cache and sin_cache")
        q, k = rotated(call, q, k, tables[0], tables[1], None, before)
    k, v = (cached(call, x, past, before, size) for x, past in ((k, past_key), (v, past_value)))
    blocks = _blocks(call, host_value(starts, call, 5), host_value(columns, call, 6), size)
    layout = np.arange(heads) % blocks.shape[0]
    keep: Keep
    if isinstance(before, int):
        keep = (blocks[:, before : before + step] & in_window(step, size, before, -1, 0))[layout]
    else:
        at = safe(call, before + mx.array(np.arange(step)), size)
        rows = mx.take(mx.array(blocks[layout]), at, axis=1)  # [heads, batch, step, keys]
        keep = both(call, mx.moveaxis(rows, 0, 1), visible(call, step, size, before, True))
    found = attend(call, q, k, v, keep=keep)
    return merge_heads(found.output), k, v


def _blocks(call: Call, starts: Host, columns: Host, size: int) -> Host:
    """Which keys a query may see, from compressed rows of blocks: `[layouts, queries, keys]`."""
    block = call.integer("sparse_block_size")
    count = -(-size // max(block, 1))
    fits = starts.ndim == 2 and columns.ndim == 2 and starts.shape[0] == columns.shape[0] and starts.shape[0] > 0
    if block < 1 or not fits or starts.shape[1] < count + 1 or size > 1 << 14:
        raise call.invalid(f"its rows of blocks of {block} do not fit a cache of {size}")
    dense = np.zeros((starts.shape[0], count, count), dtype=np.bool_)
    for layout in range(len(starts)):
        for row in range(count):
            seen = columns[layout, starts[layout, row] : starts[layout, row + 1]]
            dense[layout, row, seen[(seen >= 0) & (seen < count)]] = True
    return np.repeat(np.repeat(dense, block, axis=1), block, axis=2)[:, :size, :size]


def _tokens(call: Call, lengths: Value, more: int = 1) -> mx.array:
    """Lengths of sequences, of which ONNX Runtime stores some less one."""
    return call.array(lengths).astype(mx.int64).reshape(-1, 1) + mx.array(more, dtype=mx.int64)


def packed(
    call: Call, query: Value, key: Value | None, value: Value | None, heads: int, kv_heads: int
) -> tuple[mx.array, mx.array, mx.array]:
    """q, k and v as `[batch, heads, length, width]`, from three arrays or from one."""
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


def rotated(
    call: Call, q: mx.array, k: mx.array, cos: Value, sin: Value, places: Value | None, before: int | mx.array
) -> tuple[mx.array, mx.array]:
    """q and k turned by their positions, given or from `before` on."""
    tables = call.array(cos), call.array(sin)
    steps = np.arange(q.shape[2])
    where: Value
    if places is not None:
        where = places
    elif isinstance(before, int):
        where = (before + steps)[None]
    else:
        where = before + mx.array(steps)
    c, s = (mx.expand_dims(mx.take(table, safe(call, where, table.shape[0]), axis=0), 1) for table in tables)
    turned = call.flag("rotary_interleaved")
    width = 2 * c.shape[-1]
    return rotate(q, c, s, width, turned), rotate(k, c, s, width, turned)
