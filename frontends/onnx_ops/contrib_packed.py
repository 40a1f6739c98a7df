"""Batches without their padding, as ONNX Runtime's packing mode writes them."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from fuser.frontends.onnx_ops.attention import merge_heads, split_heads
from fuser.frontends.onnx_ops.contrib import MS
from fuser.frontends.onnx_ops.contrib_attention import attend
from fuser.frontends.onnx_ops.index import safe
from fuser.frontends.onnx_ops.math import reduced
from fuser.frontends.onnx_ops.registry import Call, op
from fuser.frontends.onnx_types import Host


@op("RemovePadding", domain=MS, host=(1,))
def remove_padding(call: Call, x: mx.array, counts: Host) -> tuple[mx.array | Host, ...]:
    """The tokens of all sequences, one after the other; where they were, where each sequence starts, the longest."""
    batch, length = x.shape[0], x.shape[1]
    if counts.size != batch or (counts < 0).any() or (counts > length).any():
        raise call.invalid(f"{counts.tolist()} are not the lengths of {batch} sequences of at most {length}")
    inside = (np.arange(length) < counts.reshape(-1, 1)).reshape(-1)
    offsets = np.concatenate([np.flatnonzero(inside), np.flatnonzero(~inside)]).astype(counts.dtype)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(counts.dtype)
    total = int(starts[-1])
    flat = x.reshape(batch * length, *x.shape[2:])
    tokens = mx.take(flat, mx.array(offsets[:total]), axis=0)
    return tokens, offsets.reshape(batch, length), starts, counts.max(initial=0).reshape(1)


@op("RestorePadding", domain=MS)
def restore_padding(call: Call, x: mx.array, offsets: mx.array) -> mx.array:
    """Tokens back in their places, and zeros in all others."""
    batch, length = offsets.shape
    rest = mx.zeros((batch * length - x.shape[0], *x.shape[1:]), dtype=x.dtype)
    # where in what is here each place's token is
    source = mx.argsort(offsets.reshape(-1))
    return mx.take(mx.concatenate([x, rest], axis=0), source, axis=0).reshape(batch, length, *x.shape[1:])


@op("PackedAttention", domain=MS)
def packed_attention(
    call: Call,
    x: mx.array,
    weights: mx.array,
    bias: mx.array,
    offsets: mx.array,
    starts: mx.array,
    attention_bias: mx.array | None = None,
) -> mx.array:
    """Self attention with its projections, in which each token sees its own sequence."""
    packed = mx.matmul(x, weights) + bias
    sizes = call.get("qkv_hidden_sizes") or [packed.shape[-1] // 3] * 3
    parts = list(mx.split(packed, [sizes[0], sizes[0] + sizes[1]], axis=-1))
    return _packed(call, parts, offsets, starts, attention_bias)


@op("PackedMultiHeadAttention", domain=MS)
def packed_multi_head_attention(
    call: Call,
    query: mx.array,
    key: mx.array | None,
    value: mx.array | None,
    bias: mx.array | None,
    offsets: mx.array,
    starts: mx.array,
    attention_bias: mx.array | None = None,
) -> mx.array:
    """Attention of projected q, k and v, in which each token sees its own sequence."""
    if query.ndim == 4 and query.shape[2] == 3:  # [tokens, heads, 3, width]
        parts = [query[:, :, place].reshape(query.shape[0], -1) for place in range(3)]
    elif key is None or value is None:
        raise call.invalid("it has no key or no value")
    else:
        parts = [query, key, value]
    if bias is not None:
        ends = np.cumsum([part.shape[-1] for part in parts])
        shifts = mx.split(bias, [int(ends[0]), int(ends[1])], axis=-1)
        parts = [part + shift for part, shift in zip(parts, shifts, strict=True)]
    return _packed(call, parts, offsets, starts, attention_bias)


def _packed(
    call: Call, parts: Sequence[mx.array], offsets: mx.array, starts: mx.array, bias: mx.array | None
) -> mx.array:
    q, k, v = (split_heads(call, part[None], call.integer("num_heads")) for part in parts)
    count = q.shape[2]
    places = mx.array(np.arange(count).reshape(-1, 1))
    sequence = reduced("sum", (places >= starts[1:].astype(mx.int64)).astype(mx.int32), 1, keep=False)
    keep = mx.equal(sequence[:, None], sequence[None, :])
    if bias is not None and bias.shape[-2:] != (offsets.shape[1],) * 2:
        raise call.invalid(f"a bias of shape {list(bias.shape)} does not fit offsets of shape {list(offsets.shape)}")
    if bias is not None:  # of every sequence with its padding: the rows and columns of the tokens that there are
        length = mx.array(offsets.shape[1], dtype=mx.int64)
        at = safe(call, offsets.reshape(-1)[:count].astype(mx.int64), offsets.size)
        row = at % length
        rows = bias if bias.shape[0] > 1 else mx.broadcast_to(bias, (offsets.shape[0], *bias.shape[1:]))
        flat = mx.moveaxis(rows, 1, -1).reshape(-1, rows.shape[-1], rows.shape[1])
        bias = mx.moveaxis(mx.take(mx.take(flat, at, axis=0), row, axis=1), -1, 0)[None]
    return merge_heads(attend(call, q, k, v, keep=keep, biases=(bias,)).output)[0]
