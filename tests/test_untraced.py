"""A model that cannot be traced at once runs in pieces, and its softmaxes are in the report all the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

import fuser


def model(path: Path) -> Path:
    """A softmax of as many numbers as are not zero."""
    nodes = [
        helper.make_node("NonZero", ["x"], ["places"], "places"),
        helper.make_node("Transpose", ["places"], ["turned"], "turned", perm=[1, 0]),
        helper.make_node("GatherND", ["x", "turned"], ["chosen"], "chosen"),
        helper.make_node("Softmax", ["chosen"], ["y"], "weights"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m"])
    graph = helper.make_graph(nodes, "choice", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


def test_its_softmaxes_are_reported_with_the_reason(tmp_path: Path) -> None:
    loaded = fuser.load_onnx(model(tmp_path / "choice.onnx"))
    x = np.array([1.0, 0.0, 2.0, 0.0], np.float32)
    for report in (fuser.explain(loaded, x=x), None):
        if report is None:
            got = np.array(loaded(x=x)["y"])
            assert np.allclose(got, np.exp([1.0, 2.0]) / np.exp([1.0, 2.0]).sum())
            report = loaded.report
        (region,) = report.regions
        assert (region.verdict, region.name) == ("not attention", "weights")
        assert any("known only when the program runs" in note for note in report.notes)
