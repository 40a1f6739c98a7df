"""The ONNX operators: ONNX's own node tests, old opsets, com.microsoft, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from fuser.errors import InvalidInputError, InvalidModelError, TraceError, UnsupportedOperatorError
from tests.onnx_build import one_node, primitives, run_node
from tests.onnx_cases import cases, run
from tests.onnx_table import table

DOCUMENT = Path(__file__).parent.parent / "docs" / "onnx-operators.md"
rng = np.random.default_rng(7)


def floats(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def softmax(x, axis=-1):
    weights = np.exp(x - x.max(axis=axis, keepdims=True))
    return weights / weights.sum(axis=axis, keepdims=True)


def test_every_node_test_passes_or_is_refused_and_the_document_says_so():
    outcomes = {name: run(case) for name, case in cases().items()}
    failed = {name: outcome.why for name, outcome in outcomes.items() if outcome.verdict == "failed"}
    assert not failed
    assert sum(outcome.verdict == "passed" for outcome in outcomes.values()) >= 1700
    text = DOCUMENT.read_text(encoding="utf-8")
    if f"onnx {onnx.__version__}," in text:  # another onnx has other tests
        assert text == table(outcomes), "run: python benchmarks/onnx_backend_tests.py --docs"


def test_node_tests_pass_with_inputs_known_on_the_host():
    chosen = [case for place, case in enumerate(cases().values()) if place % 3 == 0]
    outcomes = {case.name: run(case, on_host=True) for case in chosen}
    assert not {name: outcome.why for name, outcome in outcomes.items() if outcome.verdict == "failed"}


X = floats(2, 3, 4)
IMAGE = floats(1, 2, 4, 6)
OLD = [
    ("Softmax", 11, [X], {}, softmax(X.reshape(2, 12)).reshape(X.shape)),
    ("Softmax", 11, [X], {"axis": 2}, softmax(X)),
    ("Softmax", 13, [X], {"axis": 1}, softmax(X, 1)),
    ("LogSoftmax", 11, [X], {"axis": 0}, np.log(softmax(X.reshape(-1)).reshape(X.shape))),
    ("Clip", 6, [X], {"min": -0.5, "max": 0.25}, np.clip(X, -0.5, 0.25)),
    ("Squeeze", 11, [X[:, :1]], {"axes": [1]}, X[:, 0]),
    ("Unsqueeze", 11, [X], {"axes": [0, 4]}, X[None, ..., None]),
    ("ReduceSum", 11, [X], {"axes": [1], "keepdims": 0}, X.sum(1)),
    ("ReduceMean", 17, [X], {"axes": [-1]}, X.mean(-1, keepdims=True)),
    ("Slice", 9, [X], {"starts": [1, -2], "ends": [9, 4], "axes": [1, 2]}, X[:, 1:, -2:]),
    ("Pad", 10, [X], {"pads": [0, 1, 0, 0, 0, 2], "value": 3.0},
     np.pad(X, ((0, 0), (1, 0), (0, 2)), constant_values=3)),
    ("Pad", 10, [X], {"pads": [0, 0, 2, 0, 0, 1], "mode": "reflect"},
     np.pad(X, ((0, 0), (0, 0), (2, 1)), mode="reflect")),
    ("Dropout", 7, [X], {"ratio": 0.5}, X),
    ("Upsample", 7, [IMAGE], {"scales": [1.0, 1.0, 2.0, 3.0]}, IMAGE.repeat(2, 2).repeat(3, 3)),
    ("Upsample", 9, [IMAGE, np.array([1, 1, 2, 2], np.float32)], {}, IMAGE.repeat(2, 2).repeat(2, 3)),
    ("Resize", 10, [IMAGE, np.array([1, 1, 0.5, 0.5], np.float32)], {}, IMAGE[:, :, ::2, ::2]),
    ("BatchNormalization", 9, [IMAGE, *np.array([[2, 3], [1, 0], [0.5, 0.1], [4, 9]], np.float32)], {"epsilon": 0.0},
     (IMAGE - np.array([0.5, 0.1]).reshape(2, 1, 1)) / np.array([2, 3]).reshape(2, 1, 1)
     * np.array([2, 3]).reshape(2, 1, 1) + np.array([1, 0]).reshape(2, 1, 1)),
    ("Gemm", 9, [X[0], X[1], np.ones(3, np.float32)], {"transB": 1, "alpha": 0.5}, 0.5 * X[0] @ X[1].T + 1),
    ("MaxPool", 8, [IMAGE], {"kernel_shape": [2, 2], "strides": [2, 2]}, IMAGE.reshape(1, 2, 2, 2, 3, 2).max((3, 5))),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "opset", "inputs", "attributes", "expected"), OLD)
def test_old_opsets(kind, opset, inputs, attributes, expected):
    (result,) = run_node(kind, inputs, opset=opset, **attributes)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_split_and_topk_of_old_opsets():
    parts = run_node("Split", [X], 2, opset=11, axis=2, split=[1, 3])
    np.testing.assert_array_equal(np.concatenate(parts, axis=2), X)
    values, places = run_node("TopK", [X], 2, opset=9, k=2)
    np.testing.assert_array_equal(values, -np.sort(-X)[..., :2])
    np.testing.assert_array_equal(np.take_along_axis(X, places, -1), values)


def test_top_k_gives_the_first_of_equal_values():
    values, places = run_node("TopK", [np.array([1, 3, 3, 2, 3], np.float32), np.array([4])], 2, constants=(1,))
    assert values.tolist() == [3, 3, 3, 2] and places.tolist() == [1, 2, 4, 3]


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64])
def test_integer_division_cuts_towards_zero(dtype):
    a, b = np.array([-7, 7, -7, 7, 0], dtype), np.array([2, 2, -2, -2, 3], dtype)
    assert run_node("Div", [a, b])[0].tolist() == [-3, 3, 3, -3, 0]
    assert run_node("Div", [a, b], constants=(0, 1))[0].tolist() == [-3, 3, 3, -3, 0]


def test_integer_products_are_exact():
    a, b = rng.integers(0, 256, (3, 5000)).astype(np.uint8), rng.integers(0, 256, (5000, 2)).astype(np.uint8)
    zero = np.array(3, np.uint8)
    expected = (a.astype(np.int64) - 3) @ (b.astype(np.int64) - 3)
    np.testing.assert_array_equal(run_node("MatMulInteger", [a, b, zero, zero])[0], expected)


def attention(q, k, v, keep=None, scale=None):
    k, v = (np.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    scores = q @ np.swapaxes(k, 2, 3) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    return softmax(scores if keep is None else np.where(keep, scores, -1e30)) @ v


def heads(x, count):
    return x.reshape(x.shape[0], x.shape[1], count, -1).transpose(0, 2, 1, 3)


def merged(x):
    return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)


def test_attention_with_a_cache_is_causal_from_the_cache_on():
    q, k, v, past_k, past_v = (
        floats(2, 4, 3, 8),
        floats(2, 2, 3, 8),
        floats(2, 2, 3, 8),
        floats(2, 2, 5, 8),
        floats(2, 2, 5, 8),
    )
    y, keys, _ = run_node("Attention", [q, k, v, None, past_k, past_v], 3, opset=23, is_causal=1)
    all_k, all_v = np.concatenate([past_k, k], 2), np.concatenate([past_v, v], 2)
    keep = np.arange(8) <= np.arange(3)[:, None] + 5
    np.testing.assert_allclose(y, attention(q, all_k, all_v, keep), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(keys, all_k)


def test_attention_rows_that_see_nothing_are_zero():
    q = floats(1, 1, 2, 4)
    mask = np.array([[True, False], [False, False]])
    (y,) = run_node("Attention", [q, q, q, mask], opset=23)
    np.testing.assert_allclose(y[0, 0, 0], q[0, 0, 0], rtol=1e-6)
    assert not y[0, 0, 1].any()
    (y,) = run_node("Attention", [q, q, q, np.where(mask, 0, -np.inf).astype(np.float32)], opset=23)
    assert not y[0, 0, 1].any()


def test_causal_attention_leaves_a_constant_mask_and_no_guard():
    q = floats(1, 2, 4, 8)
    names = primitives(one_node("Attention", [q, q, q], opset=23, is_causal=1), {f"x{i}": q for i in range(3)})
    assert names.count("Softmax") == 1 and "Reduce" not in names and "Less" not in names


B, S, N, D = 2, 5, 4, 8
MS: dict[str, Any] = {"domain": "com.microsoft"}


@pytest.mark.parametrize(
    ("mask", "keep"),
    [
        (None, np.ones((B, S), bool)),
        (np.array([3, 5], np.int32), np.arange(S) < np.array([[3], [5]])),
        (np.array([[1, 1, 0, 0, 0], [0, 1, 1, 1, 1]], np.int32), np.array([[1, 1, 0, 0, 0], [0, 1, 1, 1, 1]], bool)),
        (
            np.array([4, 5, 1, 0], np.int32),
            (np.arange(S) < np.array([[4], [5]])) & (np.arange(S) >= np.array([[1], [0]])),
        ),
    ],
)
def test_microsoft_attention(mask, keep):
    x, w, b = floats(B, S, 16), floats(16, 3 * N * D), floats(3 * N * D)
    (y,) = run_node("Attention", [x, w, b, mask], num_heads=N, **MS)
    q, k, v = (heads(part, N) for part in np.split(x @ w + b, 3, axis=-1))
    np.testing.assert_allclose(y, merged(attention(q, k, v, keep[:, None, None])), rtol=1e-4, atol=1e-4)


def test_microsoft_attention_adds_a_finite_value_where_all_is_masked():
    x, w, b = floats(1, 3, 8), floats(8, 24), floats(24)
    (y,) = run_node("Attention", [x, w, b, np.zeros((1, 3), np.int32)], num_heads=2, **MS)
    (unmasked,) = run_node("Attention", [x, w, b], num_heads=2, **MS)
    np.testing.assert_allclose(y, unmasked, rtol=1e-2, atol=1e-2)  # it cancels, up to rounding beside 10,000


@pytest.mark.parametrize("layout", ["3d", "packed", "packed keys", "cache"])
def test_multi_head_attention_layouts(layout):
    q, k, v = floats(B, N, S, D), floats(B, N, S, D), floats(B, N, S, D)
    flat = [merged(x) for x in (q, k, v)]
    stacked = np.stack([x.transpose(0, 2, 1, 3) for x in (q, k, v)], axis=3)
    inputs = {
        "3d": flat,
        "packed": [stacked],
        "packed keys": [flat[0], stacked[:, :, :, 1:]],
        "cache": [flat[0], k, v],
    }[layout]
    (y,) = run_node("MultiHeadAttention", inputs, num_heads=N, **MS)
    np.testing.assert_allclose(y, merged(attention(q, k, v)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lengths", [[6, 6], [6, 3]])
def test_group_query_attention_goes_on_where_each_sequence_ends(lengths):
    q, k, v = floats(2, 1, N * D), floats(2, 1, 2 * D), floats(2, 1, 2 * D)
    past_k, past_v = floats(2, 2, 6, D), floats(2, 2, 6, D)
    inputs = [q, k, v, past_k, past_v, np.array(lengths, np.int32), np.array(7, np.int32)]
    y, keys, _ = run_node("GroupQueryAttention", inputs, 3, constants=(6,), num_heads=N, kv_num_heads=2, **MS)
    for row, length in enumerate(lengths):
        all_k = np.concatenate([past_k[row : row + 1, :, :length], heads(k[row : row + 1], 2)], 2)
        all_v = np.concatenate([past_v[row : row + 1, :, :length], heads(v[row : row + 1], 2)], 2)
        np.testing.assert_allclose(keys[row, :, : length + 1], all_k[0], rtol=1e-6)
        expected = merged(attention(heads(q[row : row + 1], N), all_k, all_v))
        np.testing.assert_allclose(y[row], expected[0], rtol=1e-4, atol=1e-5)


def test_group_query_attention_window_and_sink():
    q, k, v, empty = floats(1, S, N * D), floats(1, S, 2 * D), floats(1, S, 2 * D), np.zeros((1, 2, 0, D), np.float32)
    inputs = [q, k, v, empty, empty, np.array([S - 1], np.int32), np.array(S, np.int32)]
    options: dict[str, Any] = {"constants": (6,), "num_heads": N, "kv_num_heads": 2, **MS}
    y, _, _ = run_node("GroupQueryAttention", inputs, 3, local_window_size=2, **options)
    distance = np.arange(S)[:, None] - np.arange(S)
    expected = attention(heads(q, N), heads(k, 2), heads(v, 2), (distance >= 0) & (distance < 2))
    np.testing.assert_allclose(y, merged(expected), rtol=1e-4, atol=1e-5)
    smooth, _, _ = run_node("GroupQueryAttention", inputs, 3, smooth_softmax=1, **options)
    plain, _, _ = run_node("GroupQueryAttention", inputs, 3, **options)
    assert (np.abs(smooth[0, 0]) < np.abs(plain[0, 0])).all()  # the sink takes a part of the weight


@pytest.mark.parametrize(("bits", "block", "k"), [(4, 32, 64), (8, 32, 64), (2, 64, 64), (4, 16, 64), (4, 32, 80)])
def test_products_with_weights_of_few_bits(bits, block, k):
    n, blocks = 24, -(-k // block)
    packed = rng.integers(0, 256, (n, blocks, block * bits // 8)).astype(np.uint8)
    scales, a = floats(n, blocks), floats(3, k)
    values = np.stack([packed >> shift & (1 << bits) - 1 for shift in range(0, 8, bits)], -1).reshape(n, blocks, block)
    weight = ((values.astype(np.float32) - 2 ** (bits - 1)) * scales[..., None]).reshape(n, -1)[:, :k]
    options: dict[str, Any] = {"K": k, "N": n, "bits": bits, "block_size": block, "constants": (1, 2), **MS}
    (y,) = run_node("MatMulNBits", [a, packed, scales], **options)
    np.testing.assert_allclose(y, a @ weight.T, rtol=1e-4, atol=1e-3)
    table_ = packed.reshape(n, -1)
    if k % block == 0 and bits > 2:
        options = {"bits": bits, "block_size": block, "quantize_axis": 1, "constants": (0, 2), **MS}
        (rows,) = run_node("GatherBlockQuantized", [table_, np.array([[3, -1]]), scales], **options)
        np.testing.assert_allclose(rows, weight[[[3, -1]]], rtol=1e-5)


def test_microsoft_normalizations():
    x, skip, scale, shift = floats(2, 3, 8), floats(2, 3, 8), floats(8), floats(8)
    total = x + skip
    y, _, _, summed = _four("SkipLayerNormalization", [x, skip, scale, shift])
    deviation = np.sqrt(total.var(-1, keepdims=True) + 1e-12)
    np.testing.assert_allclose(
        y, (total - total.mean(-1, keepdims=True)) / deviation * scale + shift, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(summed, total)
    y, _, _, _ = _four("SkipSimplifiedLayerNormalization", [x, skip, scale])
    np.testing.assert_allclose(
        y, total / np.sqrt((total**2).mean(-1, keepdims=True) + 1e-12) * scale, rtol=1e-4, atol=1e-5
    )


def _four(kind, inputs):
    node = helper.make_node(kind, [f"x{i}" for i in range(len(inputs))], ["y", "", "", "sum"], domain="com.microsoft")
    from fuser.frontends.onnx import load
    from tests.onnx_build import info, model

    declared = [info(f"x{i}", x.dtype, x.shape) for i, x in enumerate(inputs)]
    program = load(model([node], declared, [info("y", np.float32, None), info("sum", np.float32, None)]))
    results = program(**program.prepare({f"x{i}": x for i, x in enumerate(inputs)}))
    return np.array(results["y"]), None, None, np.array(results["sum"])


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("Conv", {"strides": [2, 1, 2], "pads": [1, 0, 2, 2, 1, 0], "dilations": [2, 1, 1]}),
        ("ConvTranspose", {"strides": [3, 1, 2], "pads": [1, 0, 1, 0, 1, 0], "output_padding": [2, 0, 1]}),
    ],
)
def test_grouped_convolutions_over_three_axes_are_one_for_each_group(kind, options):
    x, weight = floats(2, 6, 7, 4, 5), floats(6, 2, 3, 2, 3)
    parts = zip(np.split(x, 3, axis=1), np.split(weight, 3, axis=0), strict=True)
    expected = np.concatenate([run_node(kind, list(part), **options)[0] for part in parts], axis=1)
    (y,) = run_node(kind, [x, weight], group=3, **options)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_other_microsoft_operators():
    x, bias = floats(2, 3, 8), floats(8)
    erf = np.vectorize(math.erf)
    gelu = lambda value: value * 0.5 * (1 + erf(value / math.sqrt(2)))  # noqa: E731
    np.testing.assert_allclose(run_node("BiasGelu", [x, bias], **MS)[0], gelu(x + bias), rtol=1e-4, atol=1e-5)
    left, right = np.split(x + bias, 2, axis=-1)
    np.testing.assert_allclose(run_node("BiasSplitGelu", [x, bias], **MS)[0], left * gelu(right), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(run_node("QuickGelu", [x], **MS)[0], x / (1 + np.exp(-1.702 * x)), rtol=1e-4, atol=1e-5)
    (y,) = run_node("FusedMatMul", [x, floats(2, 5, 8)], transB=1, alpha=0.5, **MS)
    assert y.shape == (2, 3, 5)
    image, weight = floats(1, 4, 5, 3), floats(2, 3, 3, 3)
    (nhwc,) = run_node("NhwcConv", [image, weight.transpose(0, 2, 3, 1).copy()], pads=[1, 1, 1, 1], **MS)
    (nchw,) = run_node("Conv", [image.transpose(0, 3, 1, 2).copy(), weight], pads=[1, 1, 1, 1])
    np.testing.assert_allclose(nhwc.transpose(0, 3, 1, 2), nchw, rtol=1e-4, atol=1e-5)
    (y,) = run_node("GroupNorm", [floats(1, 4, 4, 8), np.ones(8, np.float32), np.zeros(8, np.float32)], groups=2, **MS)
    np.testing.assert_allclose(y.reshape(16, 2, 4).mean((0, 2)), [0, 0], atol=1e-5)
    bias_table = floats(8, 2)
    (y,) = run_node(
        "RelativePositionBias",
        [bias_table, np.array(3), np.array(3)],
        constants=(1, 2),
        max_distance=16,
        is_bidirectional=1,
        **MS,
    )
    np.testing.assert_allclose(y[0, :, 0, 0], bias_table[0])
    np.testing.assert_allclose(y[0, :, 1, 0], bias_table[1])
    np.testing.assert_allclose(y[0, :, 0, 1], bias_table[5])


def test_quantized_weights_of_four_bits():
    import ml_dtypes

    q = rng.integers(-8, 8, (4, 32)).astype(ml_dtypes.int4)
    scale = floats(4, 2)
    (y,) = run_node("DequantizeLinear", [q, scale], constants=(0, 1), axis=1, block_size=16)
    np.testing.assert_allclose(y, q.astype(np.float32) * np.repeat(scale, 16, axis=1), rtol=1e-6)


def test_a_shape_known_only_at_run_time_is_refused_in_a_trace():
    program = one_node("Reshape", [X, np.array([6, 4])])
    arguments = {"x0": X, "x1": np.array([6, 4])}
    assert program.shape_inputs == ("x1",)
    assert program(**program.prepare(arguments))["y0"].shape == (6, 4)
    with pytest.raises(TraceError, match=r"'Reshape_of_y0' .*data-dependent shape"):
        primitives(program, arguments)


def test_indices_out_of_range_never_read_outside():
    with pytest.raises(InvalidInputError, match="out of range"):
        run_node("Gather", [X, np.array([5])], constants=(1,))
    (y,) = run_node("Gather", [X[0, 0], np.array([-1, 0, 10**12, -(10**12)])])
    np.testing.assert_array_equal(y, X[0, 0][[-1, 0, -1, 0]])
    for kind, inputs in {
        "GatherElements": [X[0, 0], np.array([99, -99])],
        "GatherND": [X, np.array([[99, -99]])],
        "ScatterND": [X, np.array([[99]]), X[:1]],
        "ScatterElements": [X[0, 0], np.array([99]), X[0, 0, :1]],
    }.items():
        run_node(kind, inputs)


@pytest.mark.parametrize(
    ("kind", "inputs", "attributes", "message"),
    [
        ("Reshape", [X, np.array([5, 5])], {}, "cannot be reshaped"),
        ("Transpose", [X], {"perm": [0, 0, 1]}, "name an axis twice"),
        ("Concat", [X, X], {"axis": 7}, "out of range"),
        ("MatMul", [X, X], {}, "inputs: float32"),
        ("Split", [X], {"axis": 0, "num_outputs": 7}, "cannot split"),
        ("ConstantOfShape", [np.array([2**50])], {}, "no array has shape"),
        ("Range", [np.array(0), np.array(2**40), np.array(1)], {}, "no array has shape"),
        ("Add", [X, X.astype(np.float16)], {}, "different types"),
    ],
)
def test_broken_nodes_are_named(kind, inputs, attributes, message):
    with pytest.raises(InvalidModelError, match=message) as error:
        run_node(kind, inputs, **attributes)
    assert f"{kind}_of_y0" in str(error.value) and "\n" not in str(error.value)


def test_reductions_of_nothing():
    empty = np.zeros((2, 0, 4), np.float32)
    axes = np.array([1])
    assert run_node("ReduceSum", [empty, axes], constants=(1,))[0].tolist() == [[[0] * 4]] * 2
    assert run_node("ReduceMax", [empty, axes], constants=(1,))[0].tolist() == [[[-np.inf] * 4]] * 2


def test_random_numbers_are_refused():
    with pytest.raises(UnsupportedOperatorError, match="RandomNormal-22, as it draws random numbers"):
        one_node("RandomNormal", [], opset=22, shape=[2])


def test_coordinates_that_are_no_numbers_read_nothing_outside():
    grid = np.full((1, 2, 2, 2), np.nan, np.float32)
    image = np.ones((1, 1, 4, 4), np.float32)
    (sampled,) = run_node("GridSample", [image, grid])
    assert sampled.shape == (1, 1, 2, 2)
