"""ONNX to ONNX: each attention one operator, the answers those of the old file, all else byte for byte as it was."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import fuser
from fuser.export.files import OutputError
from fuser.export.onnx import Conversion, OpsetError, export_onnx
from tests.conftest import ROOT, read_export
from tests.onnx_models import Attend, answers, operators, same

BUNDLED = sorted(path.parent.name for path in ROOT.glob("examples/models/*/model.onnx"))
LOWEST = float(np.finfo(np.float32).min)


def converted(model: ModelProto, tmp_path: Path, **options: Any) -> tuple[ModelProto, Conversion]:
    """A model written out, converted and read again; checked by ONNX's checker."""
    source, target = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(model, source)
    done = export_onnx(source, target, force=True, **options)
    result = onnx.load(target)
    onnx.checker.check_model(result, full_check=True)
    return result, done


def one(model: ModelProto, op: str = "Attention") -> dict[str, Any]:
    """The attributes of a model's only attention."""
    (node,) = [node for node in model.graph.node if node.op_type == op]
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}


# -- real exports ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [None, 18])
@pytest.mark.parametrize("name", BUNDLED)
def test_a_real_export(name: str, opset: int | None, models: Path, tmp_path: Path) -> None:
    export = read_export(models / name)
    old = onnx.load(export.path)
    if opset is not None and name.startswith("gemma2"):
        pytest.skip("a softcap needs the standard operator")
    out = tmp_path / "out.onnx"
    done = export_onnx(export.path, out, opset=opset)
    new = onnx.load(out)
    onnx.checker.check_model(new)
    assert (len(done.fused), done.already, done.kept) == (export.truth, (), ())
    fused = [node for node in new.graph.node if "Attention" in node.op_type]
    assert len(fused) == export.truth and not any(node.op_type == "Softmax" for node in new.graph.node)
    assert {node.domain for node in fused} == ({""} if opset is None else {"com.microsoft"})
    untouched(old, new)
    for inputs, expected in export.sets:
        for was, now in zip(answers(old, inputs), answers(new, inputs), strict=True):
            same(was, now)
            same(dict(zip(expected, now.values(), strict=True)), expected, 1e-4)
    # read again, it holds the same attentions
    model = fuser.load_onnx(out)
    model(**export.sets[0][0])
    assert model.report.counts["fused"] == export.truth
    assert len(model.report.regions) == export.truth


def untouched(old: ModelProto, new: ModelProto) -> None:
    """Inputs and outputs, nodes that are left and initializers are what they were, byte for byte."""
    assert list(new.graph.input) == list(old.graph.input) and list(new.graph.output) == list(old.graph.output)
    before = {node.name: node.SerializeToString() for node in old.graph.node}
    for node in new.graph.node:
        if node.name in before and node.op_type not in ("ReduceMean", "Split"):  # the opset changes these
            assert node.SerializeToString() == before[node.name]
    tensors = {tensor.name: tensor.SerializeToString() for tensor in old.graph.initializer}
    for tensor in new.graph.initializer:
        if tensor.name in tensors:
            assert tensor.SerializeToString() == tensors[tensor.name]
    weights = [tensor.name for tensor in old.graph.initializer if math.prod(tensor.dims) > 64]
    assert set(weights) <= {tensor.name for tensor in new.graph.initializer}


def test_what_is_fused_already_stays_as_it_is(models: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a.onnx", tmp_path / "b.onnx"
    export_onnx(models / "bert__sdpa__dyn18" / "model.onnx", first)
    done = export_onnx(first, second)
    assert (done.fused, len(done.already), done.kept) == ((), 2, ())
    assert second.read_bytes() == first.read_bytes()


def test_grouped_heads_are_not_repeated(llama: Path, tmp_path: Path) -> None:
    export_onnx(llama, tmp_path / "out.onnx")
    new = onnx.load(tmp_path / "out.onnx")
    made = {name: node for node in new.graph.node for name in node.output}
    for node in new.graph.node:
        if node.op_type == "Attention":
            assert made[node.input[1]].op_type != "Expand" and made[node.input[2]].op_type != "Expand"
    ops = operators(new)
    # one for the rows of the mask that all layers share, none for keys and values
    assert ops["Expand"] < operators(onnx.load(llama))["Expand"]


def test_heads_stay_merged_where_the_model_has_them_merged(models: Path, tmp_path: Path) -> None:
    export_onnx(models / "bert__sdpa__dyn18" / "model.onnx", tmp_path / "out.onnx")
    ops = operators(onnx.load(tmp_path / "out.onnx"))
    assert ops["Transpose"] == 0


# -- masks -----------------------------------------------------------------------------------------------------

MASKS: dict[str, Attend] = {
    "none": Attend(),
    "additive -inf": Attend(mask=["add"], fills=[-math.inf]),
    "additive -inf with a guard": Attend(mask=["add"], fills=[-math.inf], guard=True),
    "the lowest number": Attend(mask=["add"], fills=[LOWEST]),
    "-1e4": Attend(mask=["add"], fills=[-1e4]),
    "-1e9": Attend(mask=["add"], fills=[-1e9]),
    "filled with -inf": Attend(mask=["where"], fills=[-math.inf]),
    "filled with -inf, guarded": Attend(mask=["where"], fills=[-math.inf], guard=True),
    "filled with -1e9": Attend(mask=["where"], fills=[-1e9]),
    "filled with the lowest number": Attend(mask=["where"], fills=[LOWEST]),
    "filled, turned": Attend(mask=["where not"], fills=[-1e9]),
    "two lowest numbers": Attend(mask=["add", "add"], fills=[LOWEST, LOWEST]),
    "filled, then added": Attend(mask=["where", "add"], fills=[LOWEST, LOWEST]),
    "added, then filled": Attend(mask=["add", "where"], fills=[-1e4, LOWEST]),
    "bias": Attend(mask=["bias"]),
    "bias and mask": Attend(mask=["bias", "add"], fills=[0, -math.inf], guard=True),
    "scaled after the mask": Attend(mask=["add"], fills=[-1e9], late_scale=True),
    "of keys alone": Attend(mask=["add"], fills=[-1e9], rows=False),
    "of keys alone, guarded": Attend(mask=["add"], fills=[-math.inf], rows=False, guard=True),
    "grouped heads": Attend(mask=["add"], fills=[LOWEST], key_heads=2),
    "merged heads": Attend(mask=["add"], fills=[LOWEST], merged=True),
    "merged heads, guarded": Attend(mask=["add"], fills=[-math.inf], merged=True, guard=True),
    "negative scale": Attend(scale=-0.3, mask=["add"], fills=[-1e4]),
    "softcap": Attend(mask=["add"], fills=[LOWEST], cap=5.0),
    "half precision": Attend(mask=["add"], fills=[-65504.0], half=True),
    "half precision, -inf": Attend(mask=["where"], fills=[-math.inf], half=True),
}


@pytest.mark.parametrize("opset", [None, 18])
@pytest.mark.parametrize("name", MASKS)
def test_hidden_rows_get_the_model_s_own_answer(name: str, opset: int | None, tmp_path: Path) -> None:
    case = MASKS[name]
    old = case.model()
    new, done = converted(old, tmp_path, opset=opset)
    if opset is not None and case.cap:
        assert "softcap" in done.kept[0][1]
        return
    assert len(done.fused) == 1, done
    assert operators(new)["Softmax"] == 0
    for sizes in ((2, 5, 5), (1, 3, 7), (3, 7, 4)):
        inputs = case.inputs(*sizes)
        for engine, (was, now) in enumerate(zip(answers(old, inputs), answers(new, inputs), strict=True)):
            if case.half and engine and math.isfinite(case.fills[0]):
                # on a CPU, ONNX Runtime computes the old model in single precision, in which -65504 swallows nothing
                was["y"][0, :, 0] = now["y"][0, :, 0]
            same(was, now, 2e-2 if case.half else 1e-5)


@pytest.mark.parametrize("buffer", [False, True])
def test_causal_by_its_attribute(tmp_path: Path, buffer: bool) -> None:
    case = Attend(mask=["causal"], fills=[LOWEST], square=True, window=64 if buffer else 0, buffer=buffer)
    old = case.model()
    new, done = converted(old, tmp_path)
    assert len(done.fused) == 1
    assert one(new)["is_causal"] == 1
    assert operators(new)["Where"] == 0
    for length in (1, 4, 40):
        inputs = case.inputs(2, length, length)
        for was, now in zip(answers(old, inputs), answers(new, inputs), strict=True):
            same(was, now)


@pytest.mark.parametrize("window", [3, 12, 30, 4096])
def test_a_window_is_not_causal_however_wide(tmp_path: Path, window: int) -> None:
    case = Attend(mask=["causal"], fills=[LOWEST], square=True, window=window)
    old = case.model()
    new, done = converted(old, tmp_path)
    assert len(done.fused) == 1 and "is_causal" not in one(new)
    for length in (4, 40):
        inputs = case.inputs(2, length, length)
        for was, now in zip(answers(old, inputs), answers(new, inputs), strict=True):
            same(was, now)


def test_causal_with_grouped_heads_below_opset_23(tmp_path: Path) -> None:
    case = Attend(mask=["causal"], fills=[LOWEST], square=True, key_heads=2)
    old = case.model()
    new, done = converted(old, tmp_path, opset=17)
    assert done.opset == 17
    assert one(new, "GroupQueryAttention")["kv_num_heads"] == 2
    for length in (1, 9):
        inputs = case.inputs(2, length, length)
        for was, now in zip(answers(old, inputs), answers(new, inputs), strict=True):
            same(was, now)


# -- what stays ------------------------------------------------------------------------------------------------


def test_weights_that_are_wanted_stay(tmp_path: Path) -> None:
    model = Attend().model()
    model.graph.output.append(helper.make_tensor_value_info("weights", TensorProto.FLOAT, [None] * 4))
    new, done = converted(model, tmp_path)
    assert done.fused == () and "used elsewhere" in done.kept[0][1]
    assert new == model


def test_dimensions_stay_dynamic(tmp_path: Path) -> None:
    new, _ = converted(Attend(mask=["add"], fills=[-1e9], rows=False, merged=True).model(), tmp_path)
    dims = [[dim.dim_param or dim.dim_value for dim in each.type.tensor_type.shape.dim] for each in new.graph.input]
    assert dims[:3] == [["batch", "length", 32], ["batch", "keys", 32], ["batch", "keys", 32]]


def test_nodes_that_were_dead_before_are_none_of_ours(tmp_path: Path) -> None:
    model = Attend().model()
    model.graph.node.append(helper.make_node("Neg", ["q"], ["nowhere"]))
    new, _ = converted(model, tmp_path)
    assert operators(new)["Neg"] == 1


def test_no_opset_goes_down(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(OpsetError, match="cannot be lowered"):
        export_onnx(llama, tmp_path / "out.onnx", opset=11)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("opset", [11, 13, 17])
def test_operators_that_changed_are_changed(tmp_path: Path, opset: int) -> None:
    model = Attend(opset=opset).model()
    (softmax,) = [node for node in model.graph.node if node.op_type == "Softmax"]
    assert softmax.attribute[0].i == -1
    nodes = [
        helper.make_node("ReduceMean", ["y"], ["mean"], axes=[-1], keepdims=1),
        helper.make_node("Split", ["y"], ["left", "right"], axis=1),
        helper.make_node("Sub", ["left", "right"], ["difference"]),
        helper.make_node("Sub", ["y", "mean"], ["z"]),
    ]
    model.graph.node.extend(nodes)
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4) for name in ("z", "difference")
    )
    new, done = converted(model, tmp_path)
    assert len(done.fused) == 1 and done.opset == 23
    inputs = Attend().inputs(2, 3, 4)
    for was, now in zip(answers(model, inputs), answers(new, inputs), strict=True):
        same(was, now)


def test_grid_sample_calls_its_modes_by_other_names(tmp_path: Path) -> None:
    model = Attend(opset=18).model()
    model.graph.input.append(helper.make_tensor_value_info("grid", TensorProto.FLOAT, ["batch", 2, 2, 2]))
    model.graph.node.append(helper.make_node("GridSample", ["y", "grid"], ["z"], "sampler", mode="bicubic"))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [None] * 4))
    new, done = converted(model, tmp_path)
    assert len(done.fused) == 1
    inputs = Attend().inputs(2, 3, 4) | {"grid": np.linspace(-1, 1, 16, dtype=np.float32).reshape(2, 2, 2, 2)}
    for was, now in zip(answers(model, inputs), answers(new, inputs), strict=True):
        same(was, now)


def test_operators_that_mean_something_else_are_named(tmp_path: Path) -> None:
    model = Attend(opset=18).model()
    node = helper.make_node("AveragePool", ["y"], ["z"], "pool", kernel_shape=[2, 2], ceil_mode=1)
    model.graph.node.append(node)
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [None] * 4))
    with pytest.raises(OpsetError, match=r"AveragePool changed at opset 19 \('pool'\)"):
        converted(model, tmp_path)
    _, done = converted(model, tmp_path, opset=18)
    assert len(done.fused) == 1


# -- files -----------------------------------------------------------------------------------------------------


def test_data_beside_the_model_comes_along(tmp_path: Path, models: Path) -> None:
    source, target = tmp_path / "from", tmp_path / "to"
    source.mkdir()
    target.mkdir()
    export = read_export(models / "bert__sdpa__dyn18")
    proto = onnx.load(export.path)
    onnx.save(
        onnx.load(export.path), source / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=64
    )
    export_onnx(source / "m.onnx", target / "m.onnx")
    assert sorted(path.name for path in target.iterdir()) == ["m.onnx", "m.onnx.data"]
    new = onnx.load(target / "m.onnx")
    old = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    for tensor in new.graph.initializer:
        if tensor.name in old:
            np.testing.assert_array_equal(numpy_helper.to_array(tensor), old[tensor.name])
    inputs, _ = export.sets[0]
    for was, now in zip(answers(proto, inputs), answers(new, inputs), strict=True):
        same(was, now)


def test_what_is_there_stays(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.onnx"
    out.write_bytes(b"old")
    with pytest.raises(OutputError, match="there already"):
        export_onnx(llama, out)

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        export_onnx(llama, out, force=True)
    assert out.read_bytes() == b"old" and [path.name for path in tmp_path.iterdir()] == ["out.onnx"]
