"""Operators of com.microsoft that ONNX Runtime's tools write into transformers, attention aside."""

from __future__ import annotations

import math
from collections.abc import Callable

import mlx.core as mx
import numpy as np

from fuser.frontends.onnx_ops.activation import gelu
from fuser.frontends.onnx_ops.index import safe
from fuser.frontends.onnx_ops.linear import gemm, matmul
from fuser.frontends.onnx_ops.math import const, reduced
from fuser.frontends.onnx_ops.norm import normalized, rms
from fuser.frontends.onnx_ops.registry import Call, op
from fuser.frontends.onnx_ops.window import channels_last, conv, refuse_empty, window
from fuser.frontends.onnx_types import HALVES, Host

MS = "com.microsoft"


def _wide(x: mx.array) -> mx.array:
    return x.astype(mx.float32) if x.dtype in HALVES else x


def _layer_norm(x: mx.array, scale: mx.array, bias: mx.array | None, epsilon: float) -> mx.array:
    result = normalized(_wide(x), [-1], epsilon)[0].astype(x.dtype) * scale
    return result if bias is None else result + bias


@op("SimplifiedLayerNormalization", domain=MS)
def simplified_layer_normalization(call: Call, x: mx.array, scale: mx.array) -> mx.array:
    """Normalization by the root mean square; ONNX Runtime writes it into the standard domain."""
    axis = call.axis(call.integer("axis", -1), x.ndim)
    result = rms(_wide(x), list(range(axis, x.ndim)), call.number("epsilon", 1e-5))
    return result.astype(x.dtype) * scale


@op("SkipLayerNormalization", domain=MS)
def skip_layer_normalization(
    call: Call,
    x: mx.array,
    skip: mx.array,
    scale: mx.array,
    shift: mx.array | None = None,
    bias: mx.array | None = None,
) -> tuple[mx.array | None, ...]:
    """Layer normalization of a sum."""
    total = x + skip if bias is None else x + skip + bias
    return _layer_norm(total, scale, shift, call.number("epsilon", 1e-12)), None, None, total


@op("SkipSimplifiedLayerNormalization", domain=MS)
def skip_simplified_layer_normalization(
    call: Call, x: mx.array, skip: mx.array, scale: mx.array, bias: mx.array | None = None
) -> tuple[mx.array | None, ...]:
    """Root mean square normalization of a sum."""
    total = x + skip if bias is None else x + skip + bias
    result = rms(_wide(total), [-1], call.number("epsilon", 1e-12)).astype(x.dtype) * scale
    return result, None, None, total


@op("EmbedLayerNormalization", domain=MS)
def embed_layer_normalization(
    call: Call,
    tokens: mx.array,
    segments: mx.array | None,
    words: mx.array,
    positions: mx.array,
    kinds: mx.array | None,
    scale: mx.array,
    shift: mx.array,
    mask: mx.array | None = None,
    places: mx.array | None = None,
) -> tuple[mx.array, ...]:
    """The embeddings of BERT, normalized; and how many tokens of each sequence count."""
    total = mx.take(words, safe(call, tokens, words.shape[0]), axis=0)
    if places is None:
        total = total + positions[: tokens.shape[1]]
    else:
        total = total + mx.take(positions, safe(call, places, positions.shape[0]), axis=0)
    if segments is not None and kinds is not None:
        total = total + mx.take(kinds, safe(call, segments, kinds.shape[0]), axis=0)
    zeros = mx.zeros((tokens.shape[0],), dtype=mx.int32)
    counts = zeros if mask is None else reduced("sum", mask, 1, keep=False).astype(mx.int32)
    return _layer_norm(total, scale, shift, call.number("epsilon", 1e-12)), counts, total


@op("Gelu", domain=MS)
def gelu_exact(call: Call, x: mx.array) -> mx.array:
    """Exact GELU."""
    return gelu(x, tanh=False)


@op("BiasGelu", domain=MS)
def bias_gelu(call: Call, x: mx.array, bias: mx.array) -> mx.array:
    """Exact GELU of a sum."""
    return gelu(x + bias, tanh=False)


@op("FastGelu", domain=MS)
def fast_gelu(call: Call, x: mx.array, bias: mx.array | None = None) -> mx.array:
    """GELU by tanh."""
    return gelu(x if bias is None else x + bias, tanh=True)


@op("QuickGelu", domain=MS)
def quick_gelu(call: Call, x: mx.array) -> mx.array:
    """x * sigmoid(alpha * x)."""
    return x * mx.sigmoid(x * const(call.number("alpha", 1.702), x))


@op("BiasSplitGelu", domain=MS)
def bias_split_gelu(call: Call, x: mx.array, bias: mx.array) -> mx.array:
    """One half times the GELU of the other."""
    left, right = mx.split(x + bias, 2, axis=-1)
    return left * gelu(right, tanh=False)


@op("BiasAdd", domain=MS)
def bias_add(call: Call, x: mx.array, bias: mx.array, skip: mx.array) -> mx.array:
    """A sum of three."""
    return x + bias + skip


@op("FusedMatMul", "TransposeMatMul", domain=MS)
def fused_matmul(call: Call, a: mx.array, b: mx.array) -> mx.array:
    """Product of matrices, transposed and scaled."""
    sides = []
    for side, x in (("A", a), ("B", b)):
        if call.flag(f"transBatch{side}") and x.ndim > 2:
            x = mx.moveaxis(x, 0, -2)
        sides.append(mx.swapaxes(x, -1, -2) if call.flag(f"trans{side}") and x.ndim > 1 else x)
    result = matmul(*sides)
    alpha = call.number("alpha", 1.0)
    return result if alpha == 1 else result * const(alpha, result)


def _activated(call: Call, x: mx.array, parameters: list[float]) -> mx.array:
    alpha = parameters[0] if parameters else None
    beta = parameters[1] if len(parameters) > 1 else None
    name = call.text("activation", "")
    table: dict[str, Callable[[], mx.array]] = {
        "": lambda: x,
        "Relu": lambda: mx.maximum(x, const(0, x)),
        "Tanh": lambda: mx.tanh(x),
        "Sigmoid": lambda: mx.sigmoid(x),
        "LeakyRelu": lambda: mx.where(x < 0, x * const(0.01 if alpha is None else alpha, x), x),
        "Clip": lambda: mx.clip(
            x, const(-math.inf if alpha is None else alpha, x), const(math.inf if beta is None else beta, x)
        ),
        "HardSigmoid": lambda: mx.clip(
            x * const(0.2 if alpha is None else alpha, x) + const(0.5 if beta is None else beta, x),
            const(0, x),
            const(1, x),
        ),
    }
    if name not in table:
        raise call.refuse(f"activation {name!r}")
    return table[name]()


@op("FusedGemm", domain=MS)
def fused_gemm(call: Call, a: mx.array, b: mx.array, c: mx.array | None = None) -> mx.array:
    """Gemm and an activation."""
    given = (call.get("activation_alpha"), call.get("activation_beta"))
    result: mx.array = gemm(call, a, b, c)
    return _activated(call, result, [item for item in given if item is not None])


@op("FusedConv", domain=MS)
def fused_conv(
    call: Call, x: mx.array, weight: mx.array, bias: mx.array | None = None, skip: mx.array | None = None
) -> mx.array:
    """Convolution, a sum and an activation."""
    result: mx.array = conv(call, x, weight, bias)
    return _activated(call, result if skip is None else result + skip, list(call.get("activation_params") or []))


@op("NhwcConv", domain=MS)
def nhwc_conv(call: Call, x: mx.array, weight: mx.array, bias: mx.array | None = None) -> mx.array:
    """Convolution with channels last, in the weights (M, kH, kW, C / group) as well."""
    if not 3 <= x.ndim <= 5 or weight.ndim != x.ndim:
        raise call.refuse(f"MLX has no convolution over {x.ndim - 2} spatial axes")
    groups = call.integer("group", 1)
    if groups < 1 or weight.shape[-1] * groups != x.shape[-1]:
        raise call.invalid(f"weights {list(weight.shape)} do not fit {list(x.shape)}")
    refuse_empty(call, weight)
    view = window(call, x.shape[1:-1], weight.shape[1:-1])
    result = mx.conv_general(
        x,
        weight,
        stride=view.stride,
        padding=(view.low, view.high),
        kernel_dilation=view.dilation,
        groups=groups,
    )
    return result if bias is None else result + bias


def _group_norm(call: Call, x: mx.array, scale: mx.array, shift: mx.array) -> mx.array:
    last = call.flag("channels_last", True)
    groups = call.integer("groups")
    x = x if last else channels_last(x)
    if groups < 1 or x.shape[-1] % groups:
        raise call.invalid(f"{x.shape[-1]} channels cannot be put into {groups} groups")
    split = _wide(x).reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    result = normalized(split, [1, 3], call.number("epsilon", 1e-5))[0].reshape(x.shape)
    result = result * _wide(scale) + _wide(shift)
    if call.integer("activation", 0) == 1:
        result = result * mx.sigmoid(result)
    result = result.astype(x.dtype)
    return result if last else mx.moveaxis(result, -1, 1)


@op("GroupNorm", domain=MS)
def group_norm(call: Call, x: mx.array, scale: mx.array, shift: mx.array) -> mx.array:
    """Group normalization, with SiLU where asked for."""
    return _group_norm(call, x, scale, shift)


@op("SkipGroupNorm", domain=MS)
def skip_group_norm(
    call: Call, x: mx.array, scale: mx.array, shift: mx.array, skip: mx.array, bias: mx.array | None = None
) -> tuple[mx.array, mx.array]:
    """Group normalization of a sum."""
    last = call.flag("channels_last", True)
    if skip.ndim == 2:
        skip = skip[:, None, None, :] if last else skip[:, :, None, None]
    total = x + skip
    if bias is not None:
        total = total + (bias if last else bias[:, None, None])
    return _group_norm(call, total, scale, shift), total


@op("RelativePositionBias", domain=MS, host=(1, 2))
def relative_position_bias(call: Call, table: mx.array, queries: Host, keys: Host) -> mx.array:
    """T5's bias for every distance of query and key: exact near by, logarithmic further away."""
    rows, columns = int(queries.reshape(-1)[0]), int(keys.reshape(-1)[0])
    if rows < 1 or columns < 1 or rows * columns > 1 << 28:
        raise call.invalid(f"no bias of {rows} by {columns}")
    distance = np.arange(columns)[None, :] - np.arange(rows)[:, None]
    count = table.shape[0]
    base = np.zeros_like(distance)
    if call.flag("is_bidirectional"):
        count //= 2
        base = np.where(distance > 0, count, 0)
        distance = np.abs(distance)
    else:
        distance = np.maximum(-distance, 0)
    exact = count // 2
    if exact < 1:
        raise call.invalid(f"a table of {table.shape[0]} rows is too small")
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact)) / np.float32(
        math.log(call.integer("max_distance") / exact)
    )
    far = np.minimum(exact + (ratio * np.float32(count - exact)).astype(np.int64), count - 1)
    bucket = base + np.where(distance < exact, distance, far)
    return mx.transpose(mx.take(table, mx.array(bucket), axis=0), (2, 0, 1))[None]
