"""What ONNX Runtime's generators write between attentions: gates, norms of branches, linear attention."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np

from fuser.frontends.onnx_ops.attention import merge_heads, rotate, split_heads
from fuser.frontends.onnx_ops.contrib import MS
from fuser.frontends.onnx_ops.index import safe
from fuser.frontends.onnx_ops.math import const, reduced
from fuser.frontends.onnx_ops.norm import rms
from fuser.frontends.onnx_ops.recurrent import linear_attention, recurrence
from fuser.frontends.onnx_ops.registry import Call, op
from fuser.frontends.onnx_ops.window import causal_conv_with_state


@op("GatedAdd", domain=MS)
def gated_add(call: Call, x: mx.array, y: mx.array, gate: mx.array, weight: mx.array | None = None) -> mx.array:
    """A sum of which one part is gated."""
    if weight is not None:
        raise call.refuse("gate_weight, which ONNX Runtime has on GPUs only")
    return x + y * gate


@op("GatedRMSNorm", domain=MS)
def gated_rms_norm(call: Call, x: mx.array, scale: mx.array, gate: mx.array) -> mx.array:
    """Normalization of groups by the root mean square, and a gate; computed in float32."""
    kind = call.text("activation", "silu")
    if kind not in ("silu", "swish", "sigmoid"):
        raise call.invalid(f"activation {kind!r} is unknown")
    width = scale.size
    if width == 0 or x.shape[-1] % width:
        raise call.invalid(f"{x.shape[-1]} values are not groups of {width}")
    groups = x.astype(mx.float32).reshape(*x.shape[:-1], -1, width)
    normalized = rms(groups, [-1], call.number("epsilon", 1e-5)) * scale.astype(mx.float32)
    wide = gate.astype(mx.float32)
    opened = mx.sigmoid(wide) if kind == "sigmoid" else wide * mx.sigmoid(wide)
    return (normalized.reshape(x.shape) * opened).astype(x.dtype)


@op("BranchwiseRMSNorm", domain=MS)
def branchwise_rms_norm(call: Call, x: mx.array, scale: mx.array | None = None) -> mx.array:
    """Normalization of every branch by its own root mean square; computed in float32."""
    branches = call.integer("num_branches", 0)
    grouped = x.reshape(*x.shape[:-1], branches, -1) if branches else x
    result = rms(grouped.astype(mx.float32), [-1], call.number("epsilon", 1e-5))
    if scale is not None:
        wide = scale.astype(mx.float32)
        result = result * (wide.reshape(grouped.shape[-2:]) if wide.size > grouped.shape[-1] else wide.reshape(-1))
    return result.astype(x.dtype).reshape(x.shape)


@op("ScaledSiLU", domain=MS)
def scaled_silu(call: Call, x: mx.array, scale: mx.array | None = None) -> mx.array:
    """SiLU of a scaled array."""
    scaled = x * (const(call.number("alpha", 1.0), x) if scale is None else scale.reshape(()).astype(x.dtype))
    return scaled * mx.sigmoid(scaled)


@op("LinearAttentionGate", domain=MS)
def linear_attention_gate(
    call: Call, a: mx.array, shift: mx.array, scale: mx.array, b: mx.array | None = None
) -> tuple[mx.array, ...]:
    """The decay and the update rate of a linear attention; computed in float32."""
    total = a.astype(mx.float32) + shift
    decay = (scale * mx.logaddexp(total, const(0, total))).astype(a.dtype)
    return (decay,) if b is None else (decay, mx.sigmoid(b.astype(mx.float32)).astype(b.dtype))


@op("LinearAttention", domain=MS)
def linear_attention_with_state(call: Call, *inputs: mx.array | None) -> tuple[mx.array, mx.array]:
    """Attention without softmax, as a recurrence over a matrix for each head."""
    if call.integer("state_window", 0):
        raise call.refuse("state_window, the states of several steps")
    result: tuple[mx.array, mx.array] = linear_attention(call, *inputs)
    return result


@op("GatedDeltaNet", domain=MS)
def gated_delta_net(
    call: Call,
    query: mx.array,
    key: mx.array | None = None,
    value: mx.array | None = None,
    starts: mx.array | None = None,
    decay: mx.array | None = None,
    beta: mx.array | None = None,
    initial: mx.array | None = None,
    a_log: mx.array | None = None,
    shift: mx.array | None = None,
    *others: mx.array | None,
) -> tuple[mx.array, mx.array]:
    """The same with gates from their projections, on `[tokens, heads, width]` or `[batch, steps, heads, width]`."""
    if starts is not None or call.integer("state_update_capacity", 0):
        raise call.refuse("sequences of different lengths in one, and the updates of speculative decoding")
    rule = call.text("update_rule", "gated_delta")
    if key is None or value is None:
        if initial is None:
            raise call.invalid("q, k and v in one need an initial state")
        _, many, wide, width = initial.shape
        heads = (query.shape[-1] - many * wide) // (2 * width)
        lead = query.shape[:-1]
        parts = mx.split(query, [heads * width, 2 * heads * width], axis=-1)
        query, key = (part.reshape(*lead, heads, width) for part in parts[:2])
        value = parts[2].reshape(*lead, many, wide)
    batch = query.shape[0] if query.ndim == 4 else 0 if initial is None else initial.shape[0]
    many = value.shape[-2]
    if batch < 1 or query.shape[-2] != key.shape[-2] or many % query.shape[-2]:
        raise call.invalid("its heads do not fit each other, or nothing says how many sequences there are")

    def by_head(x: mx.array) -> mx.array:
        return mx.transpose(x.reshape(batch, -1, *x.shape[-2:]).astype(mx.float32), (0, 2, 1, 3))

    q, k, v = by_head(query), by_head(key), by_head(value)
    if call.flag("qk_l2_norm"):
        q, k = (x * mx.rsqrt(reduced("sum", mx.square(x), -1) + const(1e-6, x)) for x in (q, k))
    q, k = (mx.repeat(x, many // x.shape[1], axis=1) for x in (q, k))
    gate = rate = None
    if "gated" in rule and decay is not None:
        raw = decay.reshape(batch, q.shape[2], many, -1).astype(mx.float32)
        gate = mx.exp(mx.transpose(_decay(call, raw, a_log, shift), (0, 2, 1, 3)))
    if "delta" in rule and beta is not None:
        rate = mx.transpose(beta.reshape(batch, q.shape[2], many, 1).astype(mx.float32), (0, 2, 1, 3))
        rate = mx.sigmoid(rate) if call.text("beta_activation", "none") == "sigmoid" else rate
    if ("gated" in rule) != (gate is not None) or ("delta" in rule) != (rate is not None):
        raise call.invalid("its decay and beta do not fit its update_rule")
    zeros = mx.zeros((batch, many, q.shape[3], v.shape[3]))
    state = zeros if initial is None else mx.swapaxes(initial.astype(mx.float32), 2, 3)
    seen, state = recurrence(call, q, k, v, state, gate, rate)
    scale = call.number("scale", 0.0) or 1 / math.sqrt(q.shape[3])
    result = mx.transpose(seen * mx.array(scale), (0, 2, 1, 3)).reshape(*value.shape)
    return result.astype(query.dtype), mx.swapaxes(state, 2, 3)


def _decay(call: Call, raw: mx.array, a_log: mx.array | None, shift: mx.array | None) -> mx.array:
    """The logarithm of what is kept, `[batch, steps, heads, width or 1]`."""
    kind = call.text("gate_activation", "none")
    if kind == "none":
        return raw
    if a_log is None or kind not in ("softplus", "qwen", "sigmoid", "kda"):
        raise call.invalid(f"gate_activation {kind!r} is unknown, or it has no a_log")
    moved = raw if shift is None else raw + shift.reshape(raw.shape[2], -1).astype(mx.float32)
    factor = mx.exp(a_log.astype(mx.float32)).reshape(-1, 1)
    if kind in ("sigmoid", "kda"):
        return mx.array(call.number("gate_lower_bound", -5.0)) * mx.sigmoid(factor * moved)
    return -factor * mx.logaddexp(moved, const(0, moved))


@op("CausalConvWithState", domain=MS)
def causal_convolution(call: Call, *inputs: mx.array | None) -> tuple[mx.array, mx.array]:
    """A convolution of each channel that looks backwards only, with the end of the sequence before it."""
    for name in ("state_window", "state_update_capacity", "state_length", "input_channels", "input_channel_offset"):
        if call.integer(name, 0):
            raise call.refuse(f"{name}, of speculative decoding")
    result: tuple[mx.array, mx.array] = causal_conv_with_state(call, *inputs)
    return result


@op("MRotaryEmbedding", domain=MS)
def multimodal_rotary_embedding(call: Call, x: mx.array, places: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
    """Rotary embedding by three positions of every token: time, height and width, each in a part of the axis."""
    half = cos.shape[-1]
    sections = call.integers("mrope_section")
    if len(sections) != 3 or sum(sections) != half or places.ndim != 3 or places.shape[0] != 3:
        raise call.invalid(f"sections {sections} do not fit a cache of width {half}")
    if call.flag("mrope_layout"):
        which = np.zeros(half, np.int64)
        for stream in (1, 2):
            which[stream : 3 * sections[stream] : 3] = stream
    else:
        which = np.repeat(np.arange(3), sections)
    if tuple(cos.shape) != tuple(sin.shape):
        raise call.invalid(f"caches of shapes {list(cos.shape)} and {list(sin.shape)} differ")
    index = safe(call, places, cos.shape[0])
    masks = [mx.array(which == stream) for stream in range(3)]
    tables = []
    for table in (cos, sin):
        streams = [mx.take(table, index[stream], axis=0) for stream in range(3)]
        mixed = mx.where(masks[1], streams[1], mx.where(masks[2], streams[2], streams[0]))
        tables.append(mx.expand_dims(mixed, 1))
    flat = x.ndim == 3
    heads = call.integer("num_heads", 0)
    q = split_heads(call, x, heads or x.shape[-1] // (2 * half)) if flat else x
    result = rotate(q, tables[0], tables[1], 2 * half, call.flag("interleaved"))
    return merge_heads(result) if flat else result
