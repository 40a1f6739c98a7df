"""Operators that ONNX Runtime had before ONNX, or that its older tools write."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np

from fuser.frontends.onnx_ops.activation import gelu, softmax_flattened
from fuser.frontends.onnx_ops.contrib import MS
from fuser.frontends.onnx_ops.index import gather_nd
from fuser.frontends.onnx_ops.layout import trilu, unique
from fuser.frontends.onnx_ops.math import const, reduced
from fuser.frontends.onnx_ops.pad import pad
from fuser.frontends.onnx_ops.registry import Call, ints, op
from fuser.frontends.onnx_ops.sampling import grid_sample
from fuser.frontends.onnx_ops.shape import range_
from fuser.frontends.onnx_ops.window import conv_transpose
from fuser.frontends.onnx_types import Host, Value

op("Trilu", domain=MS, host=(1,), moves=True)(trilu)
op("GridSample", domain=MS)(grid_sample)
op("GatherND", domain=MS, raw=True)(gather_nd)
op("Pad", domain=MS, host=(1,))(pad)


@op("Range", domain=MS, raw=True, host=(0, 1, 2))
def numbers(call: Call, start: Value, limit: Value, delta: Value | None = None) -> Host:
    """Numbers in steps, of 1 if nothing else is said."""
    step: Value = np.ones((), dtype=np.asarray(start).dtype) if delta is None else delta
    result: Host = range_(call, start, limit, step)
    return result


@op("ExpandDims", domain=MS, host=(1,), moves=True)
def expand_dims(call: Call, x: mx.array, axis: Host) -> mx.array:
    """An axis of size 1 more."""
    return mx.expand_dims(x, call.axes(ints(axis), x.ndim + 1))


@op("Unique", domain=MS, host=(0,))
def unique_in_order(call: Call, x: Host) -> tuple[Host, ...]:
    """The different values in the order in which they come, which each was, and how many."""
    values, _, inverse, counts = unique(replace(call, attributes={"sorted": 0}), x)
    return values, inverse, counts


@op("BiasSoftmax", domain=MS)
def bias_softmax(call: Call, x: mx.array, bias: mx.array) -> mx.array:
    """Softmax of a sum, over all axes from one on."""
    result: mx.array = softmax_flattened(call, x + bias)
    return result


@op("BiasDropout", domain=MS, host=(3, 4))
def bias_dropout(
    call: Call,
    x: mx.array,
    bias: mx.array,
    skip: mx.array | None = None,
    ratio: Host | None = None,
    training: Host | None = None,
) -> tuple[mx.array, mx.array]:
    """A sum; nothing is dropped where nothing is trained."""
    if training is not None and training.any():
        raise call.refuse("training: it draws random numbers")
    total = x + bias
    return total if skip is None else total + skip, mx.ones(x.shape, dtype=mx.bool_)


@op("Inverse", domain=MS)
def inverse(call: Call, x: mx.array) -> mx.array:
    """Inverses of square matrices, which MLX computes on the CPU."""
    return mx.linalg.inv(x, stream=mx.cpu)


@op("GemmFastGelu", domain=MS)
def gemm_fast_gelu(call: Call, x: mx.array, weight: mx.array, bias: mx.array | None = None) -> mx.array:
    """GELU by tanh of a product and a bias."""
    product = mx.matmul(x, weight)
    return gelu(product if bias is None else product + bias, tanh=True)


@op("GemmaRotaryEmbedding", domain=MS)
def gemma_rotary_embedding(
    call: Call, angles: mx.array, q: mx.array, q_turned: mx.array, k: mx.array, k_turned: mx.array
) -> tuple[mx.array, mx.array]:
    """Rotary embedding of q and k, of which the turned halves are given."""
    cos, sin = (mx.expand_dims(table, 1).astype(q.dtype) for table in (mx.cos(angles), mx.sin(angles)))
    return q * cos + q_turned * sin, k * cos + k_turned * sin


@op("CDist", domain=MS)
def distances(call: Call, a: mx.array, b: mx.array) -> mx.array:
    """Distances of the rows of two matrices."""
    metric = call.text("metric", "sqeuclidean")
    if metric not in ("euclidean", "sqeuclidean"):
        raise call.refuse(f"metric {metric!r}")
    squares = reduced("sum", mx.square(a[:, None] - b[None]), -1, keep=False)
    return mx.sqrt(squares) if metric == "euclidean" else squares


@op("UnfoldTensor", domain=MS)
def unfold(call: Call, x: mx.array) -> mx.array:
    """All slices of a size along an axis, each along a last axis of its own."""
    axis = call.axis(call.integer("dim", -1), x.ndim)
    size, step = call.integer("size"), call.integer("step", 1)
    if size < 1 or step < 1 or size > x.shape[axis]:
        raise call.invalid(f"no slices of {size} every {step} in an axis of {x.shape[axis]}")
    starts = np.arange(0, x.shape[axis] - size + 1, step)
    taken = mx.take(x, mx.array(starts[:, None] + np.arange(size)), axis=axis)
    return mx.moveaxis(taken, axis + 1, -1)


@op("NGramRepeatBlock", domain=MS)
def block_repeats(call: Call, tokens: mx.array, scores: mx.array) -> mx.array:
    """Scores without those of tokens that would repeat n tokens that were there before."""
    size, count = call.integer("ngram_size"), tokens.shape[1]
    if size < 1:
        raise call.invalid(f"ngram_size {size} is not positive")
    if count < size:
        return scores
    starts = np.arange(count - size + 1)
    before = mx.take(tokens, mx.array(starts[:, None] + np.arange(size - 1)), axis=1)
    same = mx.all(mx.equal(before, tokens[:, None, count - size + 1 :]), axis=-1)
    follows = tokens[:, size - 1 :].astype(mx.int64)
    wide = mx.array(scores.shape[1], dtype=mx.int64)
    places = mx.where(mx.logical_and(same, follows < wide), follows, wide)
    hits = mx.put_along_axis(
        mx.zeros((tokens.shape[0], scores.shape[1] + 1)), mx.clip(places, mx.array(0), wide), mx.array(1.0), axis=1
    )
    return mx.where(hits[:, :-1] > 0, const(-float("inf"), scores), scores)


@op("ConvTransposeWithDynamicPads", domain=MS, host=(2,))
def conv_transpose_padded(
    call: Call, x: mx.array, weight: mx.array, pads: Host | None = None, bias: mx.array | None = None
) -> mx.array:
    """Transposed convolution whose padding is an input."""
    given = {} if pads is None else {"pads": ints(pads)}
    result: mx.array = conv_transpose(replace(call, attributes={**call.attributes, **given}), x, weight, bias)
    return result


@op("SampleOp", domain=MS, moves=True)
def same(call: Call, x: mx.array) -> mx.array:
    """What comes in."""
    return x


@op("GatedRelativePositionBias", domain=MS)
def gated_relative_position_bias(
    call: Call,
    query: mx.array,
    query_bias: mx.array,
    positions: mx.array,
    weight: mx.array,
    bias: mx.array,
    eco: mx.array,
    token_offset: mx.array | None = None,
) -> mx.array:
    """The bias of WavLM: that of distances, by two gates for every head and query."""
    if token_offset is not None or query.ndim != 3:
        raise call.refuse("queries without padding")
    heads = call.integer("num_heads")
    if heads < 1 or query.shape[-1] % heads or weight.shape[-1] % 2:
        raise call.invalid(f"{query.shape[-1]} values are not split into {heads} heads")
    q = (query + query_bias).reshape(*query.shape[:2], heads, -1)
    gates = mx.matmul(mx.transpose(q, (0, 2, 1, 3)), weight) + bias
    gates = mx.sigmoid(reduced("sum", gates.reshape(*gates.shape[:3], 2, -1), -1, keep=False))
    u, r = gates[..., :1], gates[..., 1:]
    return (u * (r * eco - const(1, r)) + const(2, u)) * positions
