"""Operators of ONNX Runtime beside ONNX Runtime; those that it has on GPUs only, beside NumPy."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import onnx
import pytest
from onnx import helper

import fuser
from fuser.errors import UnsupportedOperatorError
from fuser.frontends.onnx import load
from fuser.frontends.onnx_types import to_host
from fuser.model import Model
from tests.onnx_build import info, model, run_node
from tests.onnx_models import RUNTIME
from tests.onnx_runtime_cases import CASES, Array, Case, F, below, f

MS = "com.microsoft"


def node_model(case: Case) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A model of one node, and what it is given."""
    present = {f"x{place}": value for place, value in enumerate(case.inputs) if value is not None}
    constants = {f"x{place}": case.inputs[place] for place in case.constants}
    given = {name: value for name, value in present.items() if name not in constants}
    names = ["" if value is None else f"x{place}" for place, value in enumerate(case.inputs)]
    outputs = [f"y{place}" for place in range(len(case.types))]
    node = helper.make_node(case.kind, names, outputs, domain=MS, **case.options)
    built = model(
        [node],
        [info(name, value.dtype, value.shape) for name, value in given.items()],
        [info(name, dtype, None) for name, dtype in zip(outputs, case.types, strict=True)],
        constants,
    )
    return built, given


@pytest.mark.skipif(RUNTIME < (1, 32), reason="ONNX Runtime 1.32 or newer has all of these operators")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_operators_beside_onnx_runtime(case: Case) -> None:
    import onnxruntime

    built, given = node_model(case)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(built.SerializeToString(), options, ["CPUExecutionProvider"])
    program = load(built)
    outputs = program(**program.prepare(given))
    for place, expected in enumerate(session.run(None, given)):
        got = to_host(outputs[f"y{place}"])
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
        counted: Any = case.queries if place == 0 else case.rows if place in (1, 2) else None
        pairs = [(got, expected)]
        if counted is not None:  # what follows in a cache, or a padded query, may be anything
            axis = 0 if place == 0 else 1
            pairs = [
                (got[row].take(range(count), axis), expected[row].take(range(count), axis))
                for row, count in enumerate(counted)
            ]
        for ours, theirs in pairs:
            if case.step:
                assert np.abs(ours.astype(int) - theirs).max() <= case.step
            else:
                largest = np.abs(theirs[np.isfinite(theirs)]).max(initial=0)
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * largest)


def weights(scores: Array) -> Array:
    parts = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(parts / parts.sum(-1, keepdims=True))


def test_a_softmax_with_a_bias_is_an_attention() -> None:
    q, k, v, bias = f(1, 2, 5, 8), f(1, 2, 8, 5), f(1, 2, 5, 8), f(1, 1, 1, 5)
    nodes = [
        helper.make_node("MatMul", ["q", "k"], ["s"]),
        helper.make_node("BiasSoftmax", ["s", "b"], ["w"], domain=MS, axis=3, is_inner_broadcast=1),
        helper.make_node("MatMul", ["w", "v"], ["a"]),
        helper.make_node("BiasDropout", ["a", "c", "q"], ["y", "m"], domain=MS),
    ]
    inputs = {"q": q, "k": k, "v": v, "b": bias, "c": f(8)}
    built = model(nodes, [info(name, F, x.shape) for name, x in inputs.items()], [info("y", F, None)])
    fused = Model(load(built))
    expected = weights(q @ k + bias) @ v + inputs["c"] + q
    np.testing.assert_allclose(np.array(fused(**inputs)["y"]), expected, rtol=1e-4, atol=1e-5)
    assert fused.report.counts["fused"] == 1


@pytest.mark.parametrize(("narrow", "fused"), [(onnx.TensorProto.FLOAT16, 1), (onnx.TensorProto.INT32, 0)])
def test_weights_are_asked_for_nan_in_another_type(narrow: int, fused: int) -> None:
    # so the runtime saves models in float16; whole numbers are never NaN
    q, k, v, mask = f(1, 2, 5, 8), f(1, 2, 8, 5), f(1, 2, 5, 8), np.tri(5, 5, -1, dtype=np.bool_)
    nodes = [
        helper.make_node("MatMul", ["q", "k"], ["s"]),
        helper.make_node("Where", ["m", "s", "low"], ["t"]),
        helper.make_node("Softmax", ["t"], ["w"]),
        helper.make_node("Cast", ["w"], ["c"], to=narrow),
        helper.make_node("Equal", ["c", "c"], ["e"]),
        helper.make_node("Where", ["e", "w", "zero"], ["g"]),
        helper.make_node("MatMul", ["g", "v"], ["y"]),
    ]
    inputs = {"q": q, "k": k, "v": v}
    constants = {"m": mask, "low": np.array(-np.inf, F), "zero": np.array(0, F)}
    built = model(nodes, [info(name, F, x.shape) for name, x in inputs.items()], [info("y", F, None)], constants)
    program = load(built)
    model_of_it = Model(program)
    got = np.array(model_of_it(**inputs)["y"])
    np.testing.assert_allclose(got, np.array(program(**program.prepare(inputs))["y"]), rtol=1e-4, atol=1e-5)
    assert model_of_it.report.counts["fused"] == fused


def test_an_attention_of_constants_is_in_the_report() -> None:
    nodes = [
        helper.make_node("MatMul", ["q", "k"], ["s"]),
        helper.make_node("Softmax", ["s"], ["w"], name="ahead"),
        helper.make_node("MatMul", ["w", "v"], ["a"]),
        helper.make_node("Add", ["x", "a"], ["y"]),
    ]
    constants = {"q": f(1, 2, 3, 4), "k": f(1, 2, 4, 3), "v": f(1, 2, 3, 4)}
    fused = Model(load(model(nodes, [info("x", F, [4])], [info("y", F, None)], constants)))
    x = f(4)
    y = np.array(fused(x=x)["y"])
    expected = weights(constants["q"] @ constants["k"]) @ constants["v"] + x
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    for report in (fused.report, fuser.explain(fused, x=x)):
        (region,) = report.regions
        assert (region.verdict, region.name) == ("refused", "ahead")
        assert "while the model is traced" in str(region.reason)
        assert "costs no time" in str(region.remedy)


def test_packed_attention_is_attention_of_each_sequence() -> None:
    x, counts, heads = f(3, 4, 16), np.array([1, 2, 4], np.int32), 2
    q, k, v = (f(16, 16) for _ in range(3))
    relative = f(1, heads, 4, 4)
    nodes = [helper.make_node("RemovePadding", ["x", "n"], ["t", "o", "c", "m"], domain=MS)]
    nodes += [helper.make_node("MatMul", ["t", name], [f"{name}t"]) for name in "qkv"]
    nodes += [
        helper.make_node(
            "PackedMultiHeadAttention", ["qt", "kt", "vt", "", "o", "c", "r"], ["a"], domain=MS, num_heads=heads
        ),
        helper.make_node("RestorePadding", ["a", "o"], ["y"], domain=MS),
    ]
    constants = {"q": q, "k": k, "v": v, "r": relative}
    built = model(nodes, [info("x", F, x.shape), info("n", np.int32, [3])], [info("y", F, None)], constants)
    fused = Model(load(built))
    got = np.array(fused(x=x, n=counts)["y"])
    for row, count in enumerate(counts):
        parts = [(x[row, :count] @ side).reshape(count, heads, -1).transpose(1, 0, 2) for side in (q, k, v)]
        scores = parts[0] @ parts[1].swapaxes(1, 2) / 8**0.5 + relative[0, :, :count, :count]
        expected = (weights(scores) @ parts[2]).transpose(1, 0, 2).reshape(count, 16)
        np.testing.assert_allclose(got[row, :count], expected, rtol=1e-3, atol=1e-4)
        assert not got[row, count:].any()
    assert fused.report.counts["fused"] == 1


def test_gates_of_a_relative_position_bias() -> None:
    heads, width, length = 2, 8, 5
    query, query_bias, distances = f(1, length, heads * width), f(heads * width), f(1, heads, length, length)
    weight, bias, eco = f(width, 6), f(6), f(1, heads, 1, 1)
    inputs = [query, query_bias, distances, weight, bias, eco]
    (got,) = run_node("GatedRelativePositionBias", inputs, domain=MS, num_heads=heads)
    q = (query + query_bias).reshape(1, length, heads, width).transpose(0, 2, 1, 3)
    gates = 1 / (1 + np.exp(-(q @ weight + bias).reshape(1, heads, length, 2, 3).sum(-1)))
    expected = (gates[..., :1] * (gates[..., 1:] * eco - 1) + 2) * distances
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_a_product_with_gelu_and_turned_halves() -> None:
    x, weight, bias = f(2, 3, 4), f(4, 5), f(5)
    (got,) = run_node("GemmFastGelu", [x, weight, bias], domain=MS)
    y = x @ weight + bias
    expected = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    angles, *halves = f(2, 3, 8), *(f(2, 2, 3, 8) for _ in range(4))
    turned = run_node("GemmaRotaryEmbedding", [angles, *halves], 2, domain=MS)
    for place, result in enumerate(turned):
        plain, other = halves[2 * place : 2 * place + 2]
        np.testing.assert_allclose(
            result, plain * np.cos(angles)[:, None] + other * np.sin(angles)[:, None], rtol=1e-4, atol=1e-5
        )


def test_a_layer_norm_that_the_runtime_writes_into_an_old_opset() -> None:
    nodes = [helper.make_node("LayerNormalization", ["x", "w", "b"], ["y"], axis=-1, epsilon=0.1)]
    x, weight, bias = f(2, 3, 4), f(4), f(4)
    built = model(nodes, [info("x", F, x.shape)], [info("y", F, None)], {"w": weight, "b": bias}, 14, domains=())
    (y,) = load(built)(x=mx.array(x)).values()
    centered = x - x.mean(-1, keepdims=True)
    expected = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 0.1) * weight + bias
    np.testing.assert_allclose(np.array(y), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "inputs", "options", "message"),
    [
        ("Attention", [f(1, 2, 4), f(4, 12), f(12)], {"num_heads": 2, "do_rotary": 1}, "MultiHeadAttention and Rotary"),
        ("Conv", [f(1, 8, 4, 4), f(8, 8, 1, 1)], {"domain": "com.microsoft.nchwc"}, "ORT_ENABLE_EXTENDED"),
        ("BeamSearch", [below(9, 1, 4)], {}, "runs a whole generation"),
        ("PagedAttention", [f(2, 4)], {}, "on GPUs only"),
        ("MatMulBnb4", [f(2, 16)], {"K": 16, "N": 2, "block_size": 16, "quant_type": 0, "transB": 0}, "transB"),
    ],
)
def test_what_is_refused_says_why_in_one_line(kind: str, inputs: list[Any], options: Any, message: str) -> None:
    codes = [np.zeros(16, np.uint8), np.ones(2, F)] if kind == "MatMulBnb4" else []
    with pytest.raises(UnsupportedOperatorError, match=message) as error:
        run_node(kind, [*inputs, *codes], **{"domain": MS, **options})
    assert "\n" not in str(error.value)
