"""ONNX Runtime's own operators: attentions with caches that have room, their scores; quantized arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.onnx_build import run_node

B, S, N, D, ROOM = 2, 3, 4, 16, 9
Array = np.ndarray[Any, Any]
LOWEST = np.finfo(np.float32).min


def floats(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def heads(x: Array, count: int) -> Array:
    return x.reshape(*x.shape[:2], count, -1).transpose(0, 2, 1, 3)


def weights(scores: Array) -> Array:
    parts = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(parts / parts.sum(-1, keepdims=True))


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("known", [True, False])
def test_a_cache_with_room_is_filled_where_it_ends(causal: int, known: bool) -> None:
    q, k, v = (floats(B, S, N * D) + shift for shift in (0, 1, 2))
    caches, length = [floats(B, N, ROOM, D), floats(B, N, ROOM, D) + 1], 2
    inputs = [q, k, v, None, None, None, *caches, np.array([length], np.int32)]
    options: dict[str, Any] = {"constants": (8,) if known else (), "num_heads": N, "unidirectional": causal}
    y, *presents = run_node("MultiHeadAttention", inputs, 3, domain="com.microsoft", **options)
    filled = [
        np.concatenate([cache[:, :, :length], heads(new, N)], 2) for cache, new in zip(caches, (k, v), strict=True)
    ]
    for present, cache, full in zip(presents, caches, filled, strict=True):
        np.testing.assert_array_equal(present, np.concatenate([full, cache[:, :, length + S :]], 2))
    scores = heads(q, N) @ filled[0].swapaxes(2, 3) / D**0.5
    if causal:
        scores = np.where(np.arange(length + S) <= np.arange(S)[:, None] + length, scores, -np.inf)
    expected = weights(scores) @ filled[1]
    np.testing.assert_allclose(y, expected.transpose(0, 2, 1, 3).reshape(B, S, -1), rtol=1e-4, atol=1e-5)


def test_the_scores_of_multi_head_attention() -> None:
    q, k, v = floats(B, S, N * D), floats(B, S, N * D) + 1, floats(B, S, N * D)
    mask = np.array([[1, 1, 1], [1, 1, 0]], np.int32)
    options: dict[str, Any] = {"num_heads": N, "unidirectional": 1, "domain": "com.microsoft"}
    *_, got = run_node("MultiHeadAttention", [q, k, v, None, mask], 4, **options)
    scores = heads(q, N) @ heads(k, N).swapaxes(2, 3) / D**0.5 + np.where(mask, 0, -10000)[:, None, None]
    np.testing.assert_allclose(got, np.where(np.tri(S) > 0, scores, LOWEST), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [1, 2])
def test_the_scores_of_group_query_attention(kind: int) -> None:
    q, k, v = floats(1, S, N * D), floats(1, S, 2 * D) + 1, floats(1, S, 2 * D)
    empty = np.zeros((1, 2, 0, D), np.float32)
    inputs = [q, k, v, empty, empty, np.array([S - 1], np.int32), np.array(S, np.int32)]
    options: dict[str, Any] = {"constants": (6,), "num_heads": N, "kv_num_heads": 2, "domain": "com.microsoft"}
    *_, got = run_node("GroupQueryAttention", inputs, 4, qk_output=kind, softcap=3.0, **options)
    scores = heads(q, N) @ np.repeat(heads(k, 2), 2, axis=1).swapaxes(2, 3) / D**0.5
    scores = np.where(np.tri(S) > 0, 3 * np.tanh(scores / 3), -np.inf)
    expected = weights(scores) if kind == 2 else np.where(np.isfinite(scores), scores, 0)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attribute", [{"scale": 2.0}, {"is_packed_batching": 1}])
def test_rotary_attributes_that_onnx_runtime_does_not_read(attribute: dict[str, Any]) -> None:
    inputs = [floats(B, N, S, 8), np.arange(S)[None].repeat(B, 0), floats(ROOM, 4), floats(ROOM, 4) + 1]
    (plain,) = run_node("RotaryEmbedding", inputs, domain="com.microsoft")
    (same,) = run_node("RotaryEmbedding", inputs, domain="com.microsoft", **attribute)
    np.testing.assert_array_equal(same, plain)


SCALES = {"a": np.float32(0.05), "b": np.float32(0.02), "y": np.float32(0.03)}
ZEROS = {"a": np.uint8(120), "b": np.uint8(100), "y": np.uint8(130)}


def quantized(y: Array) -> Array:
    return np.clip(np.round(y / SCALES["y"]) + ZEROS["y"], 0, 255).astype(np.uint8)


def plain(x: Array, name: str) -> Array:
    return np.asarray((x.astype(np.float32) - ZEROS[name]) * SCALES[name])


RNG = np.random.default_rng(3)
A, W = RNG.integers(0, 256, (4, 6)).astype(np.uint8), RNG.integers(0, 256, (4, 6)).astype(np.uint8)
BIAS = RNG.integers(-1000, 1000, 4).astype(np.int32)
a, b, y = ([SCALES[name], ZEROS[name]] for name in "aby")
fa, fb = plain(A, "a"), plain(W, "b")
QUANTIZED: list[tuple[str, list[Any], dict[str, Any], Array]] = [
    ("QLinearAdd", [A, *a, W, *b, *y], {}, quantized(fa + fb)),
    ("QLinearMul", [A, *a, W, *b, *y], {}, quantized(fa * fb)),
    ("QLinearConcat", [*y, A, *a, W, *b], {"axis": 1}, quantized(np.concatenate([fa, fb], 1))),
    ("QLinearSigmoid", [A, *a, *y], {}, quantized(1 / (1 + np.exp(-fa)))),
    ("QLinearLeakyRelu", [A, *a, *y], {"alpha": 0.5}, quantized(np.where(fa < 0, fa / 2, fa))),
    ("QLinearSoftmax", [A, *a, *y], {"axis": -1, "opset": 13}, quantized(weights(fa))),
    ("QGemm", [A, *a, W, *b, BIAS, *y], {"transB": 1}, quantized(fa @ fb.T + BIAS * np.float32(0.001))),
    ("QGemm", [A, *a, W, *b], {"transB": 1, "alpha": 2.0}, fa @ fb.T * 2),
    ("DequantizeLinear", [A, *a], {}, fa),
    ("QuantizeLinear", [fa * 2, *y], {}, quantized(fa * 2)),
]


@pytest.mark.parametrize(("kind", "inputs", "options", "expected"), QUANTIZED)
def test_quantized_arithmetic(kind: str, inputs: list[Any], options: dict[str, Any], expected: Array) -> None:
    (got,) = run_node(kind, [np.asarray(each) for each in inputs], domain="com.microsoft", **options)
    assert got.dtype == expected.dtype
    # where the exact value lies between two, float32 may round either way
    assert np.abs(got.astype(np.float64) - expected).max() <= (1 if expected.dtype == np.uint8 else 1e-4)
