"""Primitives that no trace on a CPU holds, rebuilt from the arguments that a GPU's trace has."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from fuser.ir.ops import rebuild
from fuser.ir.types import TensorType
from tests.test_ops_replay import assert_same, numbers

Q, K, V = numbers(2, 4, 3, 8), numbers(2, 2, 5, 8, seed=1), numbers(2, 2, 5, 6, seed=2)
MASK, BIAS, SINKS = numbers(2, 4, 3, 5, dtype=mx.bool_), numbers(2, 4, 3, 5, seed=3), numbers(4, seed=4)
attention = mx.fast.scaled_dot_product_attention


@pytest.mark.parametrize(
    ("causal", "mask", "sinks"),
    [
        (False, None, None),
        (True, None, None),
        (False, MASK, None),
        (False, BIAS, None),
        (False, None, SINKS),
        (True, None, SINKS),
        (False, BIAS, SINKS),
    ],
)
@pytest.mark.parametrize("gradient", [False, True])
def test_attention(causal: bool, mask: mx.array | None, sinks: mx.array | None, gradient: bool):
    inputs = [Q, K, V, *(each for each in (mask, sinks) if each is not None)]
    arguments = (0.25, causal, sinks is not None, gradient, False)
    made = rebuild("ScaledDotProductAttention", arguments, inputs)
    expected = attention(Q, K, V, scale=0.25, mask="causal" if causal else mask, sinks=sinks)
    assert_same(list(made[:1]), [expected])
    assert len(made) == 1 + gradient
    if gradient:  # the row sums are never read, and must not pass for numbers
        assert made[1].shape == (2, 4, 3, 1)
        assert mx.isnan(made[1]).all()


def test_attention_infers_its_type():
    holders = [mx.zeros(x.shape, mx.float16) for x in (Q, K, V)]
    (made,) = rebuild("ScaledDotProductAttention", (1.0, False, False, False, False), holders)
    assert made.shape == (2, 4, 3, 6)
    assert made.dtype == mx.float16


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_norms(dtype: mx.Dtype):
    x, w, b, g = (numbers(*s, dtype=dtype, seed=i) for i, s in enumerate([(3, 5, 8), (8,), (8,), (3, 5, 8)]))
    one, zero = mx.array(1, dtype), mx.array(0, dtype)
    rms, layer = mx.fast.rms_norm, mx.fast.layer_norm

    def gradients(f: Any, *primals: mx.array) -> list[mx.array]:
        found: list[mx.array] = mx.vjp(f, list(primals), [g])[1]
        return found

    for op, inputs, expected in [
        ("RMSNorm", [x, w], [rms(x, w, 1e-5)]),
        ("RMSNorm", [x, one], [rms(x, None, 1e-5)]),
        ("RMSNormVJP", [x, w, g], gradients(lambda x, w: rms(x, w, 1e-5), x, w)),
        ("RMSNormVJP", [x, one, g], [*gradients(lambda x: rms(x, None, 1e-5), x), zero]),
        ("LayerNorm", [x, w, b], [layer(x, w, b, 1e-5)]),
        ("LayerNorm", [x, w, zero], [layer(x, w, None, 1e-5)]),
        ("LayerNorm", [x, one, zero], [layer(x, None, None, 1e-5)]),
        ("LayerNormVJP", [x, w, b, g], gradients(lambda x, w, b: layer(x, w, b, 1e-5), x, w, b)),
        ("LayerNormVJP", [x, w, zero, g], [*gradients(lambda x, w: layer(x, w, None, 1e-5), x, w), zero]),
        (
            "LayerNormVJP",
            [x, one, zero, g],
            [*gradients(lambda x: layer(x, None, None, 1e-5), x), zero, zero],
        ),
    ]:
        assert_same(list(rebuild(op, (1e-5,), inputs)), expected)


@pytest.mark.parametrize("traditional", [False, True])
@pytest.mark.parametrize("offset", [mx.array(3), mx.array([1, 4])])
@pytest.mark.parametrize("freqs", [None, mx.array([1.0, 30.0, 200.0])])
def test_rope(traditional: bool, offset: mx.array, freqs: mx.array | None):
    x, g = numbers(2, 4, 5, 8), numbers(2, 4, 5, 8, seed=1)
    base = None if freqs is not None else 1000.0

    def rope(x: mx.array) -> mx.array:
        return mx.fast.rope(x, 6, traditional=traditional, base=base, scale=0.5, offset=offset, freqs=freqs)

    rest = [offset] if freqs is None else [offset, freqs]
    arguments = (6, traditional, 1000.0 if freqs is None else 1.0, 0.5)
    assert_same(list(rebuild("RoPE", (*arguments, True), [x, *rest])), [rope(x)])
    assert_same(list(rebuild("RoPE", (*arguments, False), [g, *rest])), list(mx.vjp(rope, [x], [g])[1]))


@pytest.mark.parametrize(("mode", "name"), list(enumerate(["affine", "mxfp4", "mxfp8", "nvfp4"])))
def test_quantize(mode: int, name: str):
    w = numbers(4, 64)
    group, bits = {"affine": (32, 4), "mxfp4": (32, 4), "mxfp8": (32, 8), "nvfp4": (16, 4)}[name]
    packed = mx.quantize(w, group, bits, name)
    assert_same(list(rebuild("Quantize", (group, bits, mode, False), [w])), list(packed))
    for dtype in (mx.float32, mx.bfloat16) if mode else (mx.float32,):
        whole = mx.dequantize(*packed, group_size=group, bits=bits, mode=name, dtype=dtype)
        traced = (TensorType((4, 64), dtype),)
        assert_same(list(rebuild("Quantize", (group, bits, mode, True), list(packed), traced)), [whole])
        (inferred,) = rebuild("Quantize", (group, bits, mode, True), list(packed))
        assert inferred.shape == whole.shape


def test_quantize_with_a_scale_of_all():
    w, scale = numbers(4, 64), mx.array(2.0)
    packed = mx.quantize(w, mode="nvfp4", global_scale=scale)
    assert_same(list(rebuild("Quantize", (16, 4, 3, False), [w, scale])), list(packed))


def test_primitives_that_are_identities_in_a_trace():
    x = numbers(3, 4)
    for op in ("Copy", "StopGradient"):
        assert_same(list(rebuild(op, (), [x])), [x])
    (gradient,) = mx.vjp(lambda x: rebuild("StopGradient", (), [x])[0] * x, [x], [mx.ones_like(x)])[1]
    assert_same([gradient], [x])


def test_primitives_that_mlx_does_not_export_yet():
    x, n = numbers(3, 4), numbers(3, 4, dtype=mx.int16)
    assert_same(list(rebuild("BitwiseInvert", (), [n])), [~n])
    assert_same(list(rebuild("Contiguous", (False,), [x.T])), [x.T])
    segments = mx.array([[0, 2], [1, 4]], mx.uint32)
    assert_same(list(rebuild("SegmentedMM", (), [x, x.T, segments])), [mx.segmented_mm(x, x.T, segments)])
    small = mx.to_fp8(x)
    assert_same(list(rebuild("ConvertFP8", (True,), [x])), [small])
    types = (TensorType((3, 4), mx.bfloat16),)
    assert_same(list(rebuild("ConvertFP8", (False,), [small], types)), [mx.from_fp8(small, mx.bfloat16)])
