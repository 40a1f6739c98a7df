"""Operators of ONNX Runtime, each a few times, for tests that compute them beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
F, H, I8, U8, I32, I64 = np.float32, np.float16, np.int8, np.uint8, np.int32, np.int64
RANDOM = np.random.default_rng(0)


class Case(NamedTuple):
    """A node; `types` are those of its outputs, `queries` and `rows` how much counts of the first and of the others.

    `step` is by how much an answer may differ, where it is an integer that was rounded.
    """

    kind: str
    inputs: list[Any]
    options: Mapping[str, Any] = MappingProxyType({})
    types: tuple[Any, ...] = (F,)
    constants: tuple[int, ...] = ()
    queries: list[int] | None = None
    rows: list[int] | None = None
    step: int = 0

    def __str__(self) -> str:
        return f"{self.kind}-" + ",".join(f"{key}={value}" for key, value in self.options.items())


def f(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(F)


def positive(*shape: int) -> Array:
    return np.abs(f(*shape)) * F(0.02) + F(0.01)


def u8(*shape: int) -> Array:
    return RANDOM.integers(0, 256, shape).astype(U8)


def i8(*shape: int) -> Array:
    return RANDOM.integers(-128, 128, shape).astype(I8)


def below(most: int, *shape: int, dtype: Any = I32) -> Array:
    return RANDOM.integers(0, most, shape).astype(dtype)


def one(value: float, dtype: Any = F) -> Array:
    return np.array(value, dtype)


N, K, D = 4, 2, 16
COS, SIN = (np.asarray(turn(np.outer(np.arange(64), np.arange(D // 2) * 0.1)), F) for turn in (np.cos, np.sin))


def held(tokens: int, capacity: int, window: int) -> int:
    """How many keys a sliding cache holds after so many."""
    group = capacity - window + 1
    return tokens if tokens <= capacity else tokens - group * -(-(tokens - capacity) // group)


def grouped(
    step: int,
    totals: list[int],
    capacity: int,
    *,
    quantized: str = "",
    bits: int = 8,
    window: int = 0,
    sliding: bool = False,
    valid: list[int] | None = None,
    rotary: bool = False,
    bias: bool = False,
    sink: bool = False,
    scores: int = 0,
    **options: Any,
) -> Case:
    """GroupQueryAttention of `step` new tokens of sequences that have `totals` after it."""
    batch, most = len(totals), max(totals)
    kind = F if not quantized else I8 if bits == 8 else U8
    width = D if bits == 8 else D // 2
    caches = [
        f(batch, K, capacity, D) if not quantized else (i8 if bits == 8 else u8)(batch, K, capacity, width)
        for _ in range(2)
    ]
    scale = positive(1) if quantized == "PER_TENSOR" else positive(1, K, 1, D)
    inputs: list[Any] = [f(batch, step, heads * D) for heads in (N, K, K)] + caches
    inputs += [np.array(totals, I32) - 1, np.array(most, I32)]
    inputs += [COS if rotary else None, SIN if rotary else None, None]
    inputs += [f(1, N, step, most) if bias else None, f(N) if sink else None]
    inputs += [scale if quantized else None] * 2 + [None, None, None if valid is None else np.array(valid, I32)]
    while inputs[-1] is None:
        inputs.pop()
    given: dict[str, Any] = {"num_heads": N, "kv_num_heads": K, "do_rotary": int(rotary), **options}
    if quantized:
        given.update(k_quant_type=quantized, v_quant_type=quantized, kv_cache_bit_width=bits)
    if window:
        given["local_window_size"] = window
    if sliding:
        given["sliding_window_cache"] = 1
    if scores:
        given["qk_output"] = scores
    rows = [held(total, capacity, window) if sliding else total for total in totals]
    types = (F, kind, kind, F) if scores else (F, kind, kind)
    return Case("GroupQueryAttention", inputs, given, types, (6,), valid, rows)


def caches() -> Iterator[Case]:
    """Attentions whose caches have room, are quantized, slide, or belong to beams."""
    for capacity in (5, 12):
        yield grouped(1, [6], capacity, rotary=True)
    yield grouped(1, [6, 4], 12)
    yield grouped(4, [7], 12, window=3, scores=1)
    yield grouped(4, [4], 12, scores=2)
    for quantized in ("PER_TENSOR", "PER_CHANNEL"):
        for bits in (8, 4):
            yield grouped(4, [4], 12, quantized=quantized, bits=bits)
            yield grouped(1, [6, 4], 12, quantized=quantized, bits=bits, rotary=True)
            yield grouped(1, [6], 5, quantized=quantized, bits=bits)
    for total in range(2, 14, 3):
        yield grouped(2, [total], 6, window=3, sliding=True, sink=total > 5)
    yield grouped(1, [10, 8], 6, window=4, sliding=True, bias=True)
    yield grouped(9, [9], 6, window=4, sliding=True, bias=True, rotary=True)
    yield grouped(3, [12], 6, window=4, sliding=True, quantized="PER_TENSOR", smooth_softmax=1, softcap=2.0)
    yield grouped(4, [5, 7], 12, valid=[2, 4], rotary=True)
    yield grouped(4, [5, 7], 12, valid=[2, 0])
    yield grouped(4, [5, 10], 8, valid=[2, 4], window=5, sliding=True)
    width, room = K * D, 9
    for beams in (1, 3):
        batch = 2 * beams
        new = [f(batch, 1, width) for _ in range(3)]
        past = [f(batch, K, room, D) for _ in range(2)]
        mask, bias = below(2, batch, 4), f(1, K, 1, 4)
        mask[:, 0] = 1
        chosen = below(beams, 2, beams, room)
        rest: list[Any] = [f(3 * width), mask, bias, *past, np.array([3], I32), chosen]
        yield Case("MultiHeadAttention", [*new, *rest], {"num_heads": K}, (F, F, F))
        inputs = [*new, mask, None, *past, np.array([3], I32), np.array([beams], I32), chosen, f(3 * width)]
        options = {"num_heads": K, "past_present_share_buffer": 1, "output_qk": 1}
        yield Case("DecoderMaskedMultiHeadAttention", inputs, options, (F, F, F, F), (7,))
    inputs = [*new, None, None, None, *past, np.array([3], I32)]
    yield Case("MultiHeadAttention", inputs, {"num_heads": K, "unidirectional": 1}, (F, F, F, F), (8,))
    cross = [f(2, 1, width), f(2, K, 6, D), f(2, K, 6, D), below(2, 2, 6) | np.eye(1, 6, dtype=I32)]
    yield Case("DecoderMaskedMultiHeadAttention", cross, {"num_heads": K})
    packed = [f(2, 4, 8), f(8, 3 * width), f(3 * width), np.array([3, 4, 0, 4, 8, 0, 3, 7], I32)]
    yield Case("Attention", packed, {"num_heads": K, "unidirectional": 1})


def experts() -> Iterator[Case]:
    """Mixtures of experts, their weights of 2, 4 and 8 bits."""
    tokens, width, inner, count = 5, 32, 64, 4
    x, logits = f(tokens, width), f(tokens, count)
    weights = [f(count, inner, width), f(count, inner), f(count, width, inner), f(count, width)]
    for kind in ("relu", "gelu", "silu", "identity"):
        yield Case("MoE", [x, logits, *weights], {"k": 2, "activation_type": kind, "normalize_routing_weights": 1})
    yield Case("MoE", [x[None], logits, weights[0], None, weights[2]], {"k": 1})
    swish = {"activation_type": "swiglu", "swiglu_fusion": 1, "activation_alpha": 1.7, "activation_beta": 1.0}
    wide = [f(count, 2 * inner, width), f(count, 2 * inner), *weights[2:]]
    yield Case("MoE", [x, logits, *wide], {"k": 2, "swiglu_limit": 3.0, **swish})
    for bits in (2, 4, 8):
        for block in (0, 32):
            shapes = [(count, inner, width), (count, width, inner)]
            codes = [u8(*shape[:2], shape[2] * bits // 8) for shape in shapes]
            scales = [positive(*shape[:2], *([shape[2] // block] if block else [])) for shape in shapes]
            points = [
                u8(*shape[:2], -(-(shape[2] // block) * bits // 8)) if block else u8(shape[0], shape[1] * bits // 8)
                for shape in shapes
            ]
            first = [codes[0], scales[0], weights[1], codes[1], scales[1], weights[3], None, None, None]
            options = {"k": 2, "expert_weight_bits": bits, **({"block_size": block} if block else {})}
            yield Case("QMoE", [x, logits, *first], options)
            yield Case("QMoE", [x, logits, *first, *points], options)
    mixing = [None, None, None, np.abs(f(tokens, count))]
    yield Case("QMoE", [x, logits, *first, *mixing], {**options, "normalize_routing_weights": 1})


def gates() -> Iterator[Case]:
    """Linear attention, and what stands around it."""
    batch, steps, heads = 2, 5, 4
    yield Case("GatedAdd", [f(2, 3, 4), f(2, 3, 4), f(2, 3, 1)])
    for kind in ("silu", "sigmoid"):
        yield Case("GatedRMSNorm", [f(2, 3, 8), f(4), f(2, 3, 8)], {"activation": kind})
    yield Case("BranchwiseRMSNorm", [f(2, 24), f(3, 8)], {"num_branches": 3})
    yield Case("BranchwiseRMSNorm", [f(2, 3, 8), f(8)])
    yield Case("ScaledSiLU", [f(2, 3)], {"alpha": 1.5})
    yield Case("LinearAttentionGate", [f(2, 3, 4), f(4), f(4), f(2, 3, 4)], {}, (F, F))
    unit = 1 / np.sqrt(F(D))
    for rule in ("linear", "gated", "delta", "gated_delta"):
        decay = -np.abs(f(batch, steps, heads)) if "gated" in rule else None
        rate = positive(batch, steps, heads) if "delta" in rule else None
        inputs = [f(batch, steps, 2 * D) * unit, f(batch, steps, heads * D) * unit, f(batch, steps, heads * 6)]
        options: dict[str, Any] = {"q_num_heads": 2, "kv_num_heads": heads, "update_rule": rule}
        yield Case("LinearAttention", [*inputs, f(batch, heads, D, 6), decay, rate], options, (F, F))
        if decay is not None:
            decay = decay.reshape(-1, heads)
        rows = [f(batch * steps, 2, D) * unit, f(batch * steps, 2, D) * unit, f(batch * steps, heads, 8)]
        rate = None if rate is None else rate.reshape(-1, heads)
        inputs = [*rows, None, decay, rate, f(batch, heads, 8, D)]
        yield Case("GatedDeltaNet", inputs, {"update_rule": rule}, (F, F))
    whole: dict[str, Any] = {"beta_activation": "sigmoid", "qk_l2_norm": 1}
    ends = [None, f(10, heads), f(10, heads), f(batch, heads, 8, D), f(heads), f(heads)]
    for kind in ("softplus", "sigmoid"):
        yield Case("GatedDeltaNet", [*rows, *ends], {"gate_activation": kind, **whole}, (F, F))
    together = [np.concatenate([row.reshape(10, -1) for row in rows], 1), None, None]
    yield Case("GatedDeltaNet", [*together, *ends], {"gate_activation": "softplus", **whole}, (F, F))
    for dilation in (1, 2):
        inputs = [f(2, 6, 7), f(6, 1, 3), f(6), f(2, 6, 2 * dilation)]
        yield Case("CausalConvWithState", inputs, {"dilation": dilation, "activation": "silu"}, (F, F))
        yield Case("CausalConvWithState", [f(2, 7, 6), f(6, 1, 3)], {"dilation": dilation, "channels_last": 1}, (F, F))
    for layout in (0, 1):
        inputs = [f(2, 3, 5, D), below(20, 3, 2, 5, dtype=I64), COS[:20], SIN[:20]]
        yield Case("MRotaryEmbedding", inputs, {"mrope_section": [4, 2, 2], "mrope_layout": layout})


def quantized() -> Iterator[Case]:
    """Quantized convolutions and pools, products with few bits."""
    x = [u8(1, 6, 7, 8), one(0.05), one(120, U8)]
    y = [one(0.3), one(128, U8)]
    for last, channels in ((0, 6), (1, 8)):
        weight = [i8(4, channels, 3, 3), np.full(4, 0.02, F), np.zeros(4, I8)]
        options: dict[str, Any] = {"channels_last": last, "pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
        yield Case("QLinearConv", [*x, *weight, *y, below(900, 4)], options, (U8,), step=1)
        yield Case("QLinearAveragePool", [*x, *y], {"strides": [2, 2], **options}, (U8,), step=1)
        yield Case("QLinearGlobalAveragePool", [*x, *y], {"channels_last": last}, (U8,), step=1)
    choice = [below(2, 3, 4, dtype=np.bool_), i8(1, 4), one(0.05), one(12, I8), i8(3, 1), one(0.03), one(-10, I8)]
    yield Case("QLinearWhere", [*choice, one(0.06), one(3, I8)], {}, (I8,), step=1)
    yield Case("NhwcMaxPool", [u8(1, 7, 8, 4)], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}, (U8,))
    ids, kinds, mask = below(20, 2, 5), below(2, 2, 5), np.tri(2, 5, 2, dtype=I32)
    tables = [u8(20, 8), u8(16, 8), u8(2, 8), u8(8), u8(8)]
    scales, zeros = [one(value / 100) for value in range(1, 6)], [one(value, U8) for value in range(80, 130, 10)]
    yield Case("QEmbedLayerNormalization", [ids, kinds, *tables, mask, *scales, *zeros], {}, (F, I32))
    for kind in (0, 1):
        options = {"K": 48, "N": 5, "block_size": 32, "quant_type": kind}
        yield Case("MatMulBnb4", [f(3, 48), u8(120), np.abs(f(8))], options, constants=(1, 2))
    sides = [(below(6000, *shape) - 3000).astype(np.int16) for shape in ((3, 40), (40, 5))]
    yield Case("MatMulInteger16", sides, {}, (I32,))


def older() -> Iterator[Case]:
    """Operators that ONNX Runtime had before ONNX, or alone."""
    yield Case("Trilu", [f(2, 4, 5)], {"upper": 0})
    yield Case("GridSample", [f(1, 2, 5, 5), np.tanh(f(1, 3, 3, 2)) * F(1.2)], {"padding_mode": "border"})
    yield Case("Pad", [f(2, 3), np.array([1, 0, 0, 2], I64), one(2)], {"mode": "constant"}, constants=(1,))
    yield Case("Range", [one(1), one(5)], {}, constants=(0, 1))
    yield Case("ExpandDims", [f(2, 3), one(1, I32)], {}, constants=(1,))
    yield Case("GatherND", [f(2, 3, 4), np.array([[0, 1], [1, 2]], I64)])
    for metric in ("euclidean", "sqeuclidean"):
        yield Case("CDist", [f(3, 4), f(5, 4)], {"metric": metric})
    yield Case("Unique", [np.array([2, 1, 1, 3, 4, 3], F)], {}, (F, I64, I64), constants=(0,))
    yield Case("UnfoldTensor", [f(2, 7, 2)], {"dim": 1, "size": 3, "step": 2})
    yield Case("NGramRepeatBlock", [below(4, 2, 8, dtype=I64), f(2, 4)], {"ngram_size": 2})
    inputs = [f(1, 3, 4, 4), f(3, 2, 3, 3), np.array([1, 1, 1, 1], I64)]
    yield Case("ConvTransposeWithDynamicPads", inputs, {"kernel_shape": [3, 3]}, constants=(2,))
    yield Case("Inverse", [f(2, 4, 4) + 4 * np.eye(4, dtype=F)])
    yield Case("SampleOp", [f(2, 3)])


CASES = [*caches(), *experts(), *gates(), *quantized(), *older()]
