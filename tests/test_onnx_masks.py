"""Masks that ONNX models make of their sizes: steps of the program, however long, not arrays of each layer's own."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import onnx
import pytest
from onnx import helper

import fuser
from fuser.api import explain_with_graphs
from tests.onnx_build import info, model, run_node

LENGTH, LAYERS = 600, 3


def compared(layer: int) -> list[onnx.NodeProto]:
    """Rows and columns, compared."""
    return [
        helper.make_node("Range", ["zero", "length", "one"], [f"place{layer}"]),
        helper.make_node("Unsqueeze", [f"place{layer}", "last"], [f"row{layer}"]),
        helper.make_node("Greater", [f"place{layer}", f"row{layer}"], [f"later{layer}"]),
        helper.make_node("Where", [f"later{layer}", "lowest", "none"], [f"mask{layer}"]),
    ]


def triangle(layer: int) -> list[onnx.NodeProto]:
    """One number, but for a triangle."""
    return [
        helper.make_node("Expand", ["lowest", "square"], [f"full{layer}"]),
        helper.make_node("Trilu", [f"full{layer}", "one"], [f"mask{layer}"], upper=1),
    ]


@pytest.mark.parametrize("made", [compared, triangle])
def test_each_layers_mask_is_steps_of_the_program(made: Any) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "two"], ["length"]),
        helper.make_node("Unsqueeze", ["length", "first"], ["side"]),
        helper.make_node("Concat", ["side", "side"], ["square"], axis=0),
    ]
    for i in range(LAYERS):
        nodes += [
            *made(i),
            helper.make_node("Transpose", [f"x{i}" if i else "x"], [f"turned{i}"], perm=[0, 1, 3, 2]),
            helper.make_node("MatMul", [f"x{i}" if i else "x", f"turned{i}"], [f"scores{i}"]),
            helper.make_node("Add", [f"scores{i}", f"mask{i}"], [f"masked{i}"]),
            helper.make_node("Softmax", [f"masked{i}"], [f"weights{i}"]),
            helper.make_node("MatMul", [f"weights{i}", f"x{i}" if i else "x"], [f"x{i + 1}"]),
        ]
    shape = [1, 2, "length", 4]
    constants = {
        "zero": np.array(0),
        "one": np.array(1),
        "two": np.array(2),
        "first": np.array([0]),
        "last": np.array([1]),
        "lowest": np.float32(-np.inf).reshape(()),
        "none": np.zeros((), np.float32),
    }
    ends = [info(name, np.float32, shape) for name in ("x", f"x{LAYERS}")]
    program = fuser.load_onnx(model(nodes, ends[:1], ends[1:], constants))
    report, before, _ = explain_with_graphs(program, x=mx.zeros((1, 2, LENGTH, 4)))
    assert [region.mask for region in report.regions] == ["causal"] * LAYERS
    large = [node for node in before.nodes if node.op == "Constant" and node.outputs[0].size > LENGTH]
    assert large == []


@pytest.mark.parametrize("offset", [0, 3, -3, -601, 700])
@pytest.mark.parametrize("upper", [0, 1])
def test_large_triangles(upper: int, offset: int) -> None:
    x = np.ones((1, LENGTH, LENGTH + 20), np.float32)
    expected = np.triu(x, offset) if upper else np.tril(x, offset)
    (found,) = run_node("Trilu", [x, np.array(offset)], constants=(0, 1), upper=upper)
    assert np.array_equal(found, expected)
