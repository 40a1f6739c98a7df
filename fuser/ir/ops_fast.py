"""The primitives of `mx.fast`: on a GPU they are nodes of their own, on a CPU traces hold their fallbacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from fuser.ir.ops_linear import MODES
from fuser.ir.ops_table import Arguments, Rebuild
from fuser.ir.types import TensorType

# Our own kernel. Its arguments: scale, window (keys seen ahead and behind), whether the last operand is sinks, softcap,
# and what the slopes before them are, "" (none), "signed" or "folded" (of distances without a sign).
FLASH = "FlashAttention"


def _attention(a: Arguments, x: Sequence[mx.array], o: Sequence[TensorType]) -> tuple[mx.array, ...]:
    scale, causal, has_sinks = a[:3]
    sinks = x[-1] if has_sinks else None
    mask = x[3] if len(x) - has_sinks > 3 else "causal" if causal else None
    options: dict[str, Any] = {"force_fused": True} if len(a) > 4 and a[4] else {}

    def attend(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask, sinks=sinks, **options)

    if len(a) < 4 or not a[3]:
        return (attend(*x[:3]),)
    # The kernel keeps its row sums only while a gradient is taken. Nothing but that gradient, which is never
    # exported, can read them: NaN shows it, should that change.
    (out,), _ = mx.vjp(attend, list(x[:3]), [mx.zeros((*x[0].shape[:-1], x[2].shape[-1]), x[0].dtype)])
    return out, mx.full((*x[0].shape[:-1], 1), float("nan"), mx.float32)


def _flash(a: Arguments, x: Sequence[mx.array]) -> mx.array:
    """What our own kernel computes: scores that are capped by tanh, tilted by slopes, masked, seen through a window."""
    scale, (ahead, behind), has_sinks, cap, slopes = a
    q, k, v, *rest = x
    batch, heads, rows, _ = q.shape
    groups, columns = heads // k.shape[1], k.shape[2]
    grouped = (q.astype(mx.float32) * scale).reshape(batch, k.shape[1], groups, rows, -1)
    scores = grouped @ mx.expand_dims(k, 2).astype(mx.float32).swapaxes(-1, -2)
    if cap:
        scores = mx.tanh(scores / cap) * cap
    scores = scores.reshape(batch, heads, rows, -1)
    lowest = mx.array(mx.finfo(mx.float32).min)
    away = mx.arange(columns) - (mx.arange(rows)[:, None] + (columns - rows))
    if slopes:
        each = rest[-1 - has_sinks].astype(mx.float32).reshape(heads, 1, 1)
        scores = scores + each * (mx.abs(away) if slopes == "folded" else away)
    if ahead < rows - 1 or behind < columns - 1:
        scores = mx.where(mx.logical_and(away <= ahead, away >= -behind), scores, lowest)
    if len(rest) > has_sinks + bool(slopes):
        mask = rest[0]
        scores = mx.where(mask, scores, lowest) if mask.dtype == mx.bool_ else scores + mask.astype(mx.float32)
    if has_sinks:
        sinks = mx.broadcast_to(rest[-1].astype(mx.float32).reshape(1, heads, 1, 1), (batch, heads, rows, 1))
        scores = mx.concatenate([sinks, scores], axis=-1)
    weights = mx.softmax(scores, axis=-1)[..., int(has_sinks) :].reshape(batch, k.shape[1], groups, rows, -1)
    output = weights @ mx.expand_dims(v, 2).astype(mx.float32)
    return output.reshape(batch, heads, rows, -1).astype(q.dtype)


def _given(x: mx.array) -> mx.array | None:
    """A weight that was left out is traced as a scalar."""
    return x if x.ndim else None


def _rms_norm(x: Sequence[mx.array], eps: float) -> mx.array:
    return mx.fast.rms_norm(x[0], _given(x[1]), eps)


def _rms_norm_vjp(x: Sequence[mx.array], eps: float) -> Sequence[mx.array]:
    if x[1].ndim:
        return mx.vjp(lambda y, w: mx.fast.rms_norm(y, w, eps), list(x[:2]), [x[2]])[1]
    return (*mx.vjp(lambda y: mx.fast.rms_norm(y, None, eps), [x[0]], [x[2]])[1], mx.zeros_like(x[1]))


def _layer_norm(x: Sequence[mx.array], eps: float) -> mx.array:
    return mx.fast.layer_norm(x[0], _given(x[1]), _given(x[2]), eps)


def _layer_norm_vjp(x: Sequence[mx.array], eps: float) -> Sequence[mx.array]:
    """The gradients of x, weight and bias; those of a weight or bias that was left out are zero."""
    given = [i for i in range(3) if i == 0 or x[i].ndim]

    def norm(*arrays: mx.array) -> mx.array:
        by_place: dict[int, mx.array] = dict(zip(given, arrays, strict=True))
        return mx.fast.layer_norm(arrays[0], by_place.get(1), by_place.get(2), eps)

    gradients = dict(zip(given, mx.vjp(norm, [x[i] for i in given], [x[3]])[1], strict=True))
    return [gradients[i] if i in gradients else mx.zeros_like(x[i]) for i in range(3)]


def _rope(a: Arguments, x: Sequence[mx.array]) -> mx.array:
    dims, traditional, base, scale, forward = a
    freqs = x[2] if len(x) > 2 else None

    def rotate(y: mx.array) -> mx.array:
        return mx.fast.rope(
            y,
            dims,
            traditional=traditional,
            base=None if freqs is not None else base,
            scale=scale,
            offset=x[1],
            freqs=freqs,
        )

    # The rotation backwards is the gradient of the rotation, at any place.
    return rotate(x[0]) if forward else mx.vjp(rotate, [x[0]], [x[0]])[1][0]


def _quantize(a: Arguments, x: Sequence[mx.array], o: Sequence[TensorType]) -> Sequence[mx.array]:
    group_size, bits, mode, dequantize = a
    name = MODES[mode]
    if not dequantize:
        scale = x[1] if len(x) > 1 else None
        return mx.quantize(x[0], group_size, bits, name, global_scale=scale)
    extra = x[2] if len(x) > 2 else None
    biases, scale = (extra, None) if name == "affine" else (None, extra)
    dtype = o[0].dtype if o else None
    return (mx.dequantize(x[0], x[1], biases, group_size, bits, name, global_scale=scale, dtype=dtype),)


FAST: dict[str, Rebuild] = {
    "ScaledDotProductAttention": _attention,
    FLASH: lambda a, x, _: (_flash(a, x),),
    "RMSNorm": lambda a, x, _: (_rms_norm(x, a[0]),),
    "RMSNormVJP": lambda a, x, _: _rms_norm_vjp(x, a[0]),
    "LayerNorm": lambda a, x, _: (_layer_norm(x, a[0]),),
    "LayerNormVJP": lambda a, x, _: _layer_norm_vjp(x, a[0]),
    "RoPE": lambda a, x, _: (_rope(a, x),),
    "Quantize": _quantize,
    "ConvertFP8": lambda a, x, o: (mx.to_fp8(x[0]) if a[0] else mx.from_fp8(x[0], o[0].dtype),),
}
