"""Loading ONNX models: names, values known on the host, control flow, functions, weights beside the file, bad files."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fuser.errors import FuserError, InvalidInputError, InvalidModelError, TraceError, UnsupportedOperatorError
from fuser.frontends.marks import collect
from fuser.frontends.onnx import load
from fuser.frontends.onnx_run import Pool
from fuser.model import Model
from tests.onnx_build import info, model, one_node, primitives

F = np.float32
node = helper.make_node


def merge_heads_model() -> onnx.ModelProto:
    """Reshape `[batch, length, 8]` to `[batch, length, 2, 4]` as exporters write it: by arithmetic with shapes."""
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "zero"], ["batch"]),
        node("Gather", ["shape", "one"], ["length"]),
        node("Unsqueeze", ["batch", "axis"], ["batch1"]),
        node("Unsqueeze", ["length", "axis"], ["length1"]),
        node("Concat", ["batch1", "length1", "rest"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["split"], name="split_heads"),
        node("Range", ["zero", "length", "one"], ["steps"]),
        node("Cast", ["steps"], ["mask"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["mask", "axes"], ["mask4"]),
        node("Add", ["split", "mask4"], ["y"]),
    ]
    constants = {
        "zero": np.array(0),
        "one": np.array(1),
        "axis": np.array([0]),
        "axes": np.array([0, 2, 3]),
        "rest": np.array([2, 4]),
    }
    return model(nodes, [info("x", F, ["batch", "length", 8])], [info("y", F, ["batch", "length", 2, 4])], constants)


@pytest.mark.parametrize(("batch", "length"), [(1, 3), (2, 5), (4, 1)])
def test_shape_arithmetic_leaves_nothing_in_the_trace(batch, length):
    program = load(merge_heads_model())
    x = np.ones((batch, length, 8), F)
    y = np.array(program(**program.prepare({"x": x}))["y"])
    np.testing.assert_array_equal(y, 1 + np.arange(length).reshape(1, -1, 1, 1) * np.ones((batch, length, 2, 4)))
    names = primitives(program, {"x": x})
    assert sorted(set(names) - {"Broadcast"}) in (["Add", "Reshape"], ["Add", "Unflatten"])


def test_inputs_and_outputs_are_described():
    program = load(merge_heads_model())
    assert program.name == "test" and program.shape_inputs == ()
    assert program.inputs[0].name == "x" and program.inputs[0].dtype == mx.float32
    assert program.inputs[0].shape == ("batch", "length", 8)
    assert repr(program) == "OnnxProgram('test': x: float32[batch, length, 8] -> y: float32[batch, length, 2, 4])"


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "missing 'x'; it takes x: float32"),
        ({"x": np.ones((1, 2, 8), F), "z": np.ones(1)}, "unknown 'z'"),
        ({"x": np.ones((1, 2, 8))}, r"must be float32, but float64 came: pass x.astype\('float32'\)"),
        ({"x": mx.ones((1, 2, 8), dtype=mx.float16)}, r"pass x.astype\(mx.float32\)"),
        ({"x": np.ones((2, 8), F)}, "must have 3 dimensions"),
        ({"x": np.ones((1, 2, 9), F)}, r"axis 2 of \[1, 2, 9\] is 9"),
        ({"x": np.array([["a"]])}, "must be float32"),
    ],
)
def test_prepare_says_what_is_wrong_with_an_input(inputs, message):
    with pytest.raises(InvalidInputError, match=message):
        load(merge_heads_model()).prepare(inputs)


def test_one_symbolic_dimension_has_one_size():
    program = load(
        model([node("Add", ["a", "b"], ["y"])], [info("a", F, ["n"]), info("b", F, ["n"])], [info("y", F, ["n"])])
    )
    with pytest.raises(InvalidInputError, match="'n' is 2 in 'a' and 3 here"):
        program.prepare({"a": np.ones(2, F), "b": np.ones(3, F)})


def test_a_host_value_is_one_array():
    pool, value = Pool(), np.arange(3)
    assert pool.get(value) is pool.get(value)
    inner = Pool(pool)
    inner.own([value])
    assert inner.get(value) is Pool(pool).get(value)


def test_nodes_keep_their_names():
    scoped = node("Relu", ["x"], ["a"], name="node_relu_1")
    scoped.metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'layers.0', 'layers.0.act', 'relu_1']")
    nodes = [scoped, node("Exp", ["a"], ["b"]), node("Neg", ["b"], ["y"], name="/encoder/Neg")]
    program = load(model(nodes, [info("x", F, [2])], [info("y", F, [2])]))
    with collect() as marks:
        x = mx.array([1.0, 2.0])
        y = program(x=x)["y"]
    assert [mark.name for mark in marks] == ["layers.0.act/node_relu_1", "Exp_of_b", "/encoder/Neg"]
    assert marks[0].inputs[0].tolist() == x.tolist() and marks[-1].outputs[0].tolist() == y.tolist()


def branch(value: str, name: str) -> onnx.GraphProto:
    return helper.make_graph([node(value, ["x"], [name])], value, [], [info(name, F, None)])


def if_model() -> onnx.ModelProto:
    chosen = node("If", ["flag"], ["y"], then_branch=branch("Exp", "a"), else_branch=branch("Neg", "b"))
    return model([chosen], [info("x", F, [2]), info("flag", bool, [])], [info("y", F, [2])])


def test_if_takes_a_branch_or_selects():
    program = load(if_model())
    x = mx.array([0.0, 1.0])
    assert program(x=x, flag=np.array(False))["y"].tolist() == [0, -1]
    names = primitives(program, {"x": np.ones(2, F), "flag": np.array(True)})
    assert {"Exp", "Negative", "Select"} <= set(names)
    assert program.shape_inputs == ("flag",)


def loop_model() -> onnx.ModelProto:
    body = helper.make_graph(
        [
            node("Add", ["sum", "x"], ["next"]),
            node("Identity", ["go"], ["going"]),
            node("Identity", ["next"], ["seen"]),
        ],
        "body",
        [info("i", np.int64, []), info("go", bool, []), info("sum", F, [2])],
        [info("going", bool, []), info("next", F, [2]), info("seen", F, [2])],
    )
    repeated = node("Loop", ["count", "", "x"], ["total", "steps"], body=body)
    return model(
        [repeated], [info("x", F, [2]), info("count", np.int64, [])], [info("total", F, [2]), info("steps", F, None)]
    )


def test_loops_are_written_out_where_the_count_is_known():
    program = load(loop_model())
    results = program(x=mx.array([1.0, 2.0]), count=np.array(3))
    assert results["total"].tolist() == [4, 8] and results["steps"].tolist() == [[2, 4], [3, 6], [4, 8]]
    assert program(x=mx.array([1.0, 2.0]), count=np.array(0))["steps"].shape == (0, 2)
    with pytest.raises(TraceError, match="'Loop_of_total'"):
        primitives(program, {"x": np.ones(2, F), "count": np.array(3)})


def sequence_map_model(second: list[str]) -> onnx.ModelProto:
    """The squares of `x` and `z`, plus `second`; `body` is what torch's exporter writes for `torch.hstack`."""
    body = helper.make_graph(
        [node("Mul", ["item", "item"], ["square"]), node("Add", ["square", "other"], ["sum"])],
        "body",
        [info("item", F, None), info("other", F, None)],
        [info("sum", F, None), info("square", F, None)],
    )
    nodes = [
        node("SequenceConstruct", ["x", "z"], ["items"]),
        node("SequenceConstruct", second, ["more"]),
        node("SequenceMap", ["items", "more" if len(second) > 1 else second[0]], ["sums", "squares"], body=body),
        node("ConcatFromSequence", ["sums"], ["y"], axis=0),
        node("SequenceAt", ["squares", "one"], ["last"]),
    ]
    one = {"one": np.array(1)}
    return model(nodes, [info("x", F, [2]), info("z", F, [1])], [info("y", F, None), info("last", F, None)], one)


def test_a_graph_is_applied_to_each_array_of_a_sequence():
    arrays = {"x": mx.array([1.0, 2.0]), "z": mx.array([3.0])}
    results = load(sequence_map_model(["z"]))(**arrays)
    assert results["y"].tolist() == [4, 7, 12] and results["last"].tolist() == [9]
    results = load(sequence_map_model(["x", "z"]))(**arrays)
    assert results["y"].tolist() == [2, 6, 12] and results["last"].tolist() == [9]
    with pytest.raises(InvalidModelError, match="different lengths"):
        load(sequence_map_model(["x", "z", "z"]))(**arrays)


def test_functions_call_functions_with_attributes():
    leaky = node("LeakyRelu", ["v"], ["w"])
    leaky.attribute.append(onnx.AttributeProto(name="alpha", type=onnx.AttributeProto.FLOAT, ref_attr_name="slope"))
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
    inner = helper.make_function("local", "Inner", ["v"], ["w"], [leaky], opsets, ["slope"])
    call = node("Inner", ["a"], ["b"], domain="local", name="inner", slope=0.5)
    outer = helper.make_function("local", "Outer", ["a"], ["c"], [call, node("Neg", ["b"], ["c"])], opsets)
    parts = [node("Outer", ["x"], ["y"], domain="local", name="outer")]
    built = model(parts, [info("x", F, [2])], [info("y", F, [2])], functions=[inner, outer], domains=["local"])
    with collect() as marks:
        assert load(built)(x=mx.array([-2.0, 2.0]))["y"].tolist() == [1, -2]
    assert [mark.name for mark in marks] == ["outer/inner/LeakyRelu_of_w", "outer/inner", "outer/Neg_of_c", "outer"]


def test_functions_may_not_call_themselves():
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
    endless = helper.make_function("local", "F", ["a"], ["b"], [node("F", ["a"], ["b"], domain="local")], opsets)
    parts = [node("F", ["x"], ["y"], domain="local")]
    with pytest.raises(InvalidModelError):
        load(model(parts, [info("x", F, [2])], [info("y", F, [2])], functions=[endless], domains=["local"]))


def test_everything_that_is_missing_is_listed():
    inside = helper.make_graph([node("StringSplit", ["x"], ["s", "n"], name="deep")], "g", [], [info("s", F, None)])
    nodes = [
        node("Magic", ["x"], ["a"], domain="com.example", name="first"),
        node("If", ["flag"], ["y"], then_branch=inside, else_branch=branch("Neg", "b")),
    ]
    built = model(nodes, [info("x", F, [2]), info("flag", bool, [])], [info("y", F, None)], domains=["com.example"])
    with pytest.raises(UnsupportedOperatorError) as error:
        load(built)
    assert "StringSplit-21, as MLX has no strings (node" in str(error.value) and "deep" in str(error.value)
    assert "com.example.Magic-1 (node 'first')" in str(error.value)


def test_an_input_may_have_any_name():
    loaded = Model(load(model([node("Neg", ["self"], ["y"])], [info("self", F, [2])], [info("y", F, [2])])))
    assert loaded(self=mx.array([1.0, 2.0]))["y"].tolist() == [-1, -2] and loaded.report.notes == ()


def test_initializers_may_be_given_instead():
    built = model([node("Add", ["x", "w"], ["y"])], [info("x", F, [2]), info("w", F, [2])], [info("y", F, [2])])
    built.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 2], F), "w"))
    program = load(built)
    assert [value.name for value in program.inputs] == ["x"]
    assert program(x=mx.zeros(2))["y"].tolist() == [1, 2]
    assert program(**program.prepare({"x": np.zeros(2, F), "w": np.array([5, 5], F)}))["y"].tolist() == [5, 5]


@pytest.mark.parametrize("domain", ["", "com.microsoft"])
def test_operators_of_the_runtime_whose_domain_is_not_named(domain):
    built = model([node("SimplifiedLayerNormalization", ["x", "w"], ["y"], domain=domain, axis=-1, epsilon=0.0)],
                  [info("x", F, [1, 2]), info("w", F, [2])], [info("y", F, [1, 2])], domains=())  # fmt: skip
    before = built.SerializeToString()
    y = load(built)(x=mx.array([[3.0, 4.0]]), w=mx.ones(2))["y"]
    np.testing.assert_allclose(np.array(y), np.array([[3, 4]]) / np.sqrt(12.5), rtol=1e-6)
    assert built.SerializeToString() == before


def external_model(folder: Path, **entries: str) -> Path:
    """A model whose weight of two floats lies at the end of `weights.bin`, or where `entries` say."""
    (folder / "weights.bin").write_bytes(b"1234" + np.array([3, 4], "<f4").tobytes())
    built = model([node("Add", ["x", "w"], ["y"])], [info("x", F, [2])], [info("y", F, [2])])
    tensor = built.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[2])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "weights.bin", "offset": "4", "length": "8", **entries}.items():
        tensor.external_data.add(key=key, value=value)
    path = folder / "model.onnx"
    path.write_bytes(built.SerializeToString())
    return path


def test_weights_beside_the_model(tmp_path):
    assert load(external_model(tmp_path))(x=mx.zeros(2))["y"].tolist() == [3, 4]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "../weights.bin"}, "inside the model's folder"),
        ({"location": "/etc/hostname"}, "inside the model's folder"),
        ({"location": "link.bin"}, "inside the model's folder"),
        ({"location": "absent.bin"}, "'w'"),
        ({"location": ""}, "inside the model's folder"),
        ({"offset": "8"}, "bytes 8 to 16 lie outside"),
        ({"offset": "-4"}, "lie outside"),
        ({"length": "4"}, "takes 8 bytes, but 4 are stored"),
        ({"length": "x"}, "external data"),
    ],
)
def test_weights_elsewhere_are_refused(tmp_path, entries, message):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "weights.bin").write_bytes(b"1234" * 3)
    (folder / "link.bin").symlink_to(tmp_path / "weights.bin")
    with pytest.raises(InvalidModelError, match=message) as error:
        load(external_model(folder, **entries))
    assert "\n" not in str(error.value)


def test_bad_files_give_one_line(tmp_path):
    whole = merge_heads_model().SerializeToString()
    path = tmp_path / "model.onnx"
    for content in (b"", b"not a model", whole[: len(whole) // 2], whole[:-3], bytes(1000), json.dumps({}).encode()):
        path.write_bytes(content)
        with pytest.raises(InvalidModelError) as error:
            load(path)
        assert "\n" not in str(error.value)
    with pytest.raises(InvalidModelError, match=r"absent\.onnx"):
        load(tmp_path / "absent.onnx")
    with pytest.raises(InvalidModelError):
        load(tmp_path)


def test_cycles_and_dangling_names_are_refused():
    cycle = [node("Add", ["x", "b"], ["a"]), node("Neg", ["a"], ["b"])]
    with pytest.raises(InvalidModelError):
        load(model(cycle, [info("x", F, [2])], [info("b", F, [2])]))
    with pytest.raises(InvalidModelError):
        load(model([node("Neg", ["nothing"], ["y"])], [], [info("y", F, [2])]))


def test_nodes_in_another_order_are_sorted():
    nodes = [
        node("If", ["flag"], ["z"], then_branch=branch("Exp", "a"), else_branch=branch("Neg", "b")),
        node("Add", ["w", "w"], ["x"]),
        node("Mul", ["z", "x"], ["y"]),
    ]
    built = model([nodes[2], nodes[0], nodes[1]], [info("w", F, [2]), info("flag", bool, [])], [info("y", F, [2])])
    before = built.SerializeToString()
    assert load(built)(w=mx.array([0.5, 1.0]), flag=np.array(False))["y"].tolist() == [-1, -4]
    assert built.SerializeToString() == before


def test_declared_sizes_are_not_believed():
    built = model([node("Add", ["x", "w"], ["y"])], [info("x", F, [2**40])], [info("y", F, [2**40])])
    tensor = built.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[2**40])
    tensor.raw_data = b"1234"
    with pytest.raises(InvalidModelError, match=r"[Tt]ensor"):
        load(built)
    tensor.dims[0] = -1
    with pytest.raises(InvalidModelError):
        load(built)


def test_large_constants_of_one_value_are_not_written_out():
    fill = onnx.numpy_helper.from_array(np.array([2], F))
    nodes = [
        node("ConstantOfShape", ["shape"], ["big"], value=fill),
        node("Concat", ["big", "big"], ["bigger"], axis=0),
        node("Slice", ["bigger", "from", "to"], ["y"]),
    ]
    constants = {"shape": np.array([2**29]), "from": np.array([2**29 - 1]), "to": np.array([2**29 + 1])}
    program = load(model(nodes, [info("x", F, [1])], [info("y", F, [2])], constants))
    assert program(x=mx.zeros(1))["y"].shape == (2,)


def test_what_mlx_has_no_values_for_is_refused():
    text = helper.make_tensor_value_info("x", TensorProto.STRING, [1])
    with pytest.raises(UnsupportedOperatorError, match="'x': MLX has no arrays of ONNX type string"):
        load(model([node("Identity", ["x"], ["y"])], [text], [info("y", F, [1])]))
    items = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, None)
    with pytest.raises(UnsupportedOperatorError, match="'x' is a sequence"):
        load(model([node("SequenceLength", ["x"], ["y"])], [items], [info("y", np.int64, [])]))


def test_float64_is_computed_in_float64():
    x = np.array([1 / 3])
    program = load(model([node("Exp", ["x"], ["y"])], [info("x", np.float64, [1])], [info("y", np.float64, [1])]))
    y = program(**program.prepare({"x": x}))["y"]
    assert y.dtype == mx.float64
    np.testing.assert_allclose(np.array(y), np.exp(x), rtol=1e-7)


def test_cut_and_flipped_files_never_give_another_error(tmp_path):
    rng = np.random.default_rng(3)
    path = tmp_path / "model.onnx"
    x = {"x": np.ones((2, 3, 8), F)}
    for source in (merge_heads_model(), if_model(), loop_model()):
        whole = source.SerializeToString()
        for _ in range(60):
            content = bytearray(whole)
            for place in rng.integers(0, len(content), 3):
                content[place] = rng.integers(0, 256)
            path.write_bytes(content)
            try:
                program = load(path)
                mx.eval(program(**program.prepare(x)))
            except FuserError as error:
                assert "\n" not in str(error)


def test_the_operator_in_a_message_is_the_models():
    with pytest.raises(UnsupportedOperatorError, match=r"use onnx\.version_converter"):
        one_node("Upsample", [np.ones((1, 1, 2, 2), F)], opset=1, width_scale=2.0, height_scale=2.0)
