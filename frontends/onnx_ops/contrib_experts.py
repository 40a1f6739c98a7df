"""Mixtures of experts as ONNX Runtime writes them: each token goes through a few of many small networks."""

from __future__ import annotations

import mlx.core as mx

from fuser.frontends.onnx_ops.activation import gelu
from fuser.frontends.onnx_ops.contrib import MS
from fuser.frontends.onnx_ops.contrib_blocks import unpacked
from fuser.frontends.onnx_ops.math import const
from fuser.frontends.onnx_ops.registry import Call, op
from fuser.frontends.onnx_types import HALVES


def _chosen(call: Call, logits: mx.array, mixing: mx.array | None) -> tuple[mx.array, mx.array]:
    """For each token the experts it goes to, and what each counts."""
    count = call.integer("k", 1)
    if call.flag("use_sparse_mixer"):
        raise call.refuse("use_sparse_mixer")
    if not 0 < count <= logits.shape[-1]:
        raise call.invalid(f"{count} of {logits.shape[-1]} experts")
    wide = logits.astype(mx.float32)
    experts = mx.argsort(-wide, axis=-1)[..., :count]
    normalized = call.flag("normalize_routing_weights")
    if mixing is not None:
        shares = mx.take_along_axis(mixing.astype(mx.float32), experts, axis=-1)
        return experts, shares / mx.sum(shares, axis=-1, keepdims=True) if normalized else shares
    if call.operator == "MoE" and not normalized:  # QMoE normalizes always
        return experts, mx.take_along_axis(mx.softmax(wide, axis=-1), experts, axis=-1)
    return experts, mx.softmax(mx.take_along_axis(wide, experts, axis=-1), axis=-1)


def _activated(call: Call, x: mx.array, gate: mx.array | None) -> mx.array:
    name = call.text("activation_type", "relu")
    if name == "swiglu":
        return _swiglu(call, x, gate)
    if name == "relu":
        y = mx.maximum(x, const(0, x))
    elif name == "gelu":
        y = gelu(x, tanh=False)
    elif name == "silu":
        y = x * mx.sigmoid(x)
    elif name == "identity":
        y = x
    else:
        raise call.refuse(f"activation {name!r}")
    return y if gate is None else y * gate


def _swiglu(call: Call, x: mx.array, linear: mx.array | None) -> mx.array:
    fusion = call.integer("swiglu_fusion", 0)
    if call.flag("swiglu_limit_after_activation"):
        raise call.refuse("swiglu_limit_after_activation")
    if fusion == 1:
        x, linear = x[..., 0::2], x[..., 1::2]
    elif fusion == 2:
        x, linear = mx.split(x, 2, axis=-1)
    if linear is None:
        raise call.invalid("swiglu has no second half")
    limit = call.get("swiglu_limit")
    if limit is not None:
        x = mx.minimum(x, const(limit, x))
        linear = mx.clip(linear, const(-limit, x), const(limit, x))
    gate = x * mx.sigmoid(x * const(call.number("activation_alpha", 1.0), x))
    return gate * (linear + const(call.number("activation_beta", 0.0), x))


def _through(
    call: Call, x: mx.array, weight: mx.array, bias: mx.array | None, experts: mx.array, count: int
) -> mx.array:
    """`[tokens, chosen, width]` through the matrices `[experts, out, width]` that were chosen of `count`."""
    if weight.ndim != 3 or weight.shape[0] != count or weight.shape[2] != x.shape[-1]:
        raise call.invalid(
            f"weights of shape {list(weight.shape)} are none of {count} experts for {x.shape[-1]} values"
        )
    if bias is not None and tuple(bias.shape) != tuple(weight.shape[:2]):
        raise call.invalid(f"a bias of shape {list(bias.shape)} does not fit weights of shape {list(weight.shape)}")
    y = mx.gather_mm(x[:, :, None, :], mx.swapaxes(weight, 1, 2), rhs_indices=experts)[:, :, 0, :]
    return y if bias is None else y + mx.take(bias, experts, axis=0)


def _mixture(
    call: Call,
    x: mx.array,
    logits: mx.array,
    weights: tuple[mx.array, mx.array, mx.array | None],
    biases: tuple[mx.array | None, mx.array | None, mx.array | None],
    mixing: mx.array | None,
) -> mx.array:
    rows = x.reshape(-1, x.shape[-1])
    count = logits.shape[-1]
    for routing in (logits, mixing):
        if routing is not None and tuple(routing.shape) != (rows.shape[0], count):
            raise call.invalid(f"{list(routing.shape)} does not choose among experts for {rows.shape[0]} tokens")
    if x.dtype in HALVES and mx.default_device() == mx.Device(mx.cpu):  # where MLX gathers float32 only
        rows = rows.astype(mx.float32)
        weights = (weights[0].astype(mx.float32), weights[1].astype(mx.float32), _wide(weights[2]))
    experts, shares = _chosen(call, logits, mixing)
    # every chosen expert sees the token
    spread = mx.broadcast_to(rows[:, None], (rows.shape[0], experts.shape[1], rows.shape[1]))
    first = _through(call, spread, weights[0], biases[0], experts, count)
    third = None if weights[2] is None else _through(call, spread, weights[2], biases[2], experts, count)
    second = _through(call, _activated(call, first, third), weights[1], biases[1], experts, count)
    return mx.sum(second * shares[..., None].astype(second.dtype), axis=1).reshape(x.shape).astype(x.dtype)


def _wide(x: mx.array | None) -> mx.array | None:
    return None if x is None else x.astype(mx.float32)


@op("MoE", domain=MS)
def mixture_of_experts(
    call: Call,
    x: mx.array,
    logits: mx.array,
    first: mx.array,
    first_bias: mx.array | None,
    second: mx.array,
    second_bias: mx.array | None = None,
    third: mx.array | None = None,
    third_bias: mx.array | None = None,
) -> mx.array:
    """A mixture of experts."""
    return _mixture(call, x, logits, (first, second, third), (first_bias, second_bias, third_bias), None)


@op("QMoE", domain=MS)
def quantized_mixture_of_experts(call: Call, x: mx.array, logits: mx.array, *given: mx.array | None) -> mx.array:
    """A mixture of experts with weights of few bits."""
    inputs = [*given, *[None] * (19 - len(given))]
    if call.text("quant_type", "int") != "int" or any(item is not None for item in inputs[13:]):
        raise call.refuse(f"weights of type {call.text('quant_type', 'int')}, and activations that are quantized")
    if call.integer("weights_prepacked", -1) == 1:
        raise call.refuse("weights packed for another device")
    bits = call.integer("expert_weight_bits", 4)
    weights = [
        None
        if inputs[3 * place] is None
        else _dequantized(
            call,
            inputs[3 * place],
            inputs[3 * place + 1],
            inputs[9 + place],
            call.integer(f"fc{place + 1}_expert_weight_bits", bits),
            x.dtype,
        )
        for place in range(3)
    ]
    first, second, third = weights
    if first is None or second is None:
        raise call.invalid("it has no weights")
    biases = inputs[2], inputs[5], inputs[8]
    return _mixture(call, x, logits, (first, second, third), biases, inputs[12])


def _dequantized(
    call: Call, codes: mx.array | None, scales: mx.array | None, zeros: mx.array | None, bits: int, dtype: mx.Dtype
) -> mx.array:
    if codes is None or scales is None or bits not in (2, 4, 8) or codes.ndim != 3:
        raise call.refuse(f"weights of {bits} bits, or without scales")
    count, rows, width = codes.shape[0], codes.shape[1], codes.shape[2] * 8 // bits
    values = unpacked(codes, bits, width).astype(scales.dtype)
    middle: mx.array = const(1 << (bits - 1), scales)
    rates = scales.reshape(count, rows, -1)
    if zeros is not None:
        whole = scales.ndim == 2
        points = unpacked(zeros.reshape(count, -1) if whole else zeros, bits, rows if whole else rates.shape[-1])
        middle = mx.repeat(points.reshape(rates.shape).astype(scales.dtype), width // rates.shape[-1], axis=-1)
    return ((values - middle) * mx.repeat(rates, width // rates.shape[-1], axis=-1)).astype(dtype)
