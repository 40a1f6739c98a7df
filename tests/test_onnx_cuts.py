"""Models that only a run can decide: cut at the step that reads a value, fused on both sides of it and inside of it."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import onnx
import pytest
from onnx import parser
from onnx.reference import ReferenceEvaluator

import fuser
from fuser.errors import UnsupportedOperatorError
from fuser.frontends.onnx import load
from fuser.frontends.onnx_run import Interpreter
from fuser.model import Model

Arrays = dict[str, Any]


def text(signature: str, body: str, more: str = "") -> onnx.ModelProto:
    """A model from ONNX's own text."""
    imports = '"" : 18' + (', "local" : 1' if more else "")
    return parser.parse_model(f"<ir_version: 8, opset_import: [{imports}]> test {signature} {{ {body} }} {more}")


def attend(name: str, x: str, y: str) -> str:
    """Attention of `x` to itself."""
    return f"""
        {name}_t = Transpose <perm = [0, 1, 3, 2]> ({x})
        {name}_s = MatMul ({x}, {name}_t)
        {name}_h = Constant <value_float = 0.5> ()
        {name}_c = Mul ({name}_s, {name}_h)
        [{name}] {name}_w = Softmax <axis = -1> ({name}_c)
        {y} = MatMul ({name}_w, {x})
    """


def checked(built: onnx.ModelProto, *calls: Arrays) -> Model:
    """The model after these calls, each of which gives the answer of ONNX's reference."""
    loaded, reference = Model(load(built)), ReferenceEvaluator(built)
    for inputs in calls:
        got, expected = loaded(**inputs), reference.run(None, inputs)
        for name, array in zip(reference.output_names, expected, strict=True):
            # the reference joins what a loop is to stack
            np.testing.assert_allclose(np.array(got[name]).reshape(array.shape), array, rtol=1e-4, atol=1e-5)
    return loaded


def fused(loaded: Model) -> list[str]:
    return sorted(region.name for region in loaded.report.regions if region.verdict == "fused")


def heads(length: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal((1, 2, length, 4)).astype(np.float32)


CHOSEN = text(
    "(float[1,2,n,4] x, bool[n] keep) => (float[1,2,m,4] z)",
    attend("first", "x", "y")
    + "places = NonZero (keep) minus = Constant <value_ints = [-1]> () flat = Reshape (places, minus)"
    + " some = Gather <axis = 2> (y, flat)"
    + attend("second", "some", "z"),
)


def test_both_sides_of_a_cut_are_fused():
    calls: list[Arrays] = [
        {"x": heads(4), "keep": np.array(keep)} for keep in ([True, False, True, True], [False, True] * 2)
    ]
    loaded = checked(CHOSEN, *calls)
    assert fused(loaded) == ["first", "second"]
    (note,) = loaded.report.notes
    assert "(NonZero): data-dependent shape" in note and note.endswith("runs on the host, and the graph is cut there")
    report = fuser.explain(Model(load(CHOSEN)), **calls[0])
    assert report.counts["fused"] == 2 and report.notes == loaded.report.notes
    verification = fuser.verify(loaded, **calls[0])
    assert verification and [check.name for check in verification.outputs] == ["output z"]


def test_an_attention_whose_values_wait_for_the_host_is_not_torn():
    built = text(
        "(float[1,2,n,4] x, bool[n] keep) => (float[1,2,n,4] z)",
        "places = NonZero (keep) minus = Constant <value_ints = [-1]> () flat = Reshape (places, minus)"
        " values = Gather <axis = 2> (x, flat)" + attend("whole", "x", "z").replace("_w, x)", "_w, values)"),
    )
    loaded = checked(built, {"x": heads(4), "keep": np.ones(4, bool)})
    assert fused(loaded) == ["whole"] and len(loaded.report.notes) == 1


def test_a_softmax_of_constants_is_said_to_be_one_beside_a_cut():
    built = text(
        "(float[1,2,n,4] x, bool[n] keep) => (float[1,2,m,4] z)",
        "row = Constant <value_floats = [1.0, 2.0, 0.0, 3.0]> () [fixed] shares = Softmax (row) y = Add (x, shares)"
        " places = NonZero (keep) minus = Constant <value_ints = [-1]> () flat = Reshape (places, minus)"
        " some = Gather <axis = 2> (y, flat)" + attend("second", "some", "z"),
    )
    loaded = checked(built, {"x": heads(4), "keep": np.array([True, False, True, True])})
    (region,) = (region for region in loaded.report.regions if region.name == "fixed")
    assert fused(loaded) == ["second"] and "while the model is traced" in str(region.reason)


def test_a_cut_model_can_be_left_unfused():
    inputs = {"x": heads(4), "keep": np.array([True, False, True, True])}
    left = Model(load(CHOSEN), fuse=False)
    program = load(CHOSEN)
    assert mx.array_equal(left(**inputs)["z"], program(**program.prepare(inputs))["z"])
    assert left.report.counts["fused"] == 0


LOOP = text(
    "(float[1,2,n,4] x, float limit, int64 most) => (float[1,2,n,4] z, float[k,1,2,n,4] all)",
    """
        yes = Constant <value = bool {1}> ()
        y, all = Loop (most, yes, x) <body = inner (int64 i, bool go, float[1,2,n,4] h) => (bool on, float[1,2,n,4] g,
            float[1,2,n,4] seen) {"""
    + attend("within", "h", "a")
    + """
            g = Add (a, x)
            seen = Identity (g)
            size = ReduceMax <keepdims = 0> (g)
            on = Less (size, limit)
        }>"""
    + attend("after", "y", "z"),
)


def test_a_loop_of_unknown_length_runs_on_the_host_with_its_body_fused():
    inputs = {"x": heads(3), "most": np.array(9)}
    loaded = checked(LOOP, *({**inputs, "limit": np.array(limit, np.float32)} for limit in (2.5, 8.0)))
    assert sorted(name.rpartition("/")[2] for name in fused(loaded)) == ["after", "within"]
    assert any("(Loop)" in note for note in loaded.report.notes)
    checked(LOOP, {**inputs, "limit": np.array(1.0, np.float32), "most": np.array(1)})


def test_the_body_of_a_loop_is_traced_once(monkeypatch):
    steps: list[str] = []
    plain = Interpreter.step

    def counted(self: Interpreter, step: Any, scope: Any) -> None:
        steps.append(step.name)
        plain(self, step, scope)

    monkeypatch.setattr(Interpreter, "step", counted)
    inputs: Arrays = {"x": heads(3) / 8, "limit": np.array(1e9, np.float32)}
    checked(LOOP, {**inputs, "most": np.array(4)})
    assert sum(name.endswith("/within") for name in steps) == 1


def test_loops_inside_of_loops_and_branches():
    built = text(
        "(float[1,2,n,4] x, float low) => (float[1,2,n,4] z)",
        """
            top = ReduceMax <keepdims = 0> (x)
            large = Greater (top, low)
            z = If (large) <then_branch = yes () => (float[1,2,n,4] p) {
                two = Constant <value_int = 2> () t = Constant <value = bool {1}> ()
                p = Loop (two, t, x) <body = outer (int64 i, bool go, float[1,2,n,4] h) => (bool on, float[1,2,n,4] g) {
                    on = Identity (go)
                    three = Constant <value_int = 3> ()
                    more = Add (i, three)
                    g = Loop (more, go, h) <body = inner (int64 j, bool going, float[1,2,n,4] f) =>
                        (bool still, float[1,2,n,4] e) {"""
        + attend("deep", "f", "d")
        + """           e = Add (d, x) m = ReduceMax <keepdims = 0> (e) still = Less (m, low) }>
                }>
            }, else_branch = no () => (float[1,2,k,4] q) {
                one = Constant <value_ints = [1]> () zero = Constant <value_ints = [0]> ()
                cut = Slice (x, zero, one, one)"""
        + attend("small", "cut", "q")
        + "}>",
    )
    loaded = checked(built, {"x": heads(3), "low": np.array(0.5, np.float32)})
    assert [name.rpartition("/")[2] for name in fused(loaded)] == ["deep"]
    (left,) = [region for region in loaded.report.regions if region.verdict != "fused"]
    assert left.name.endswith("small") and "branch that was not taken" in str(left.reason)
    loaded = checked(built, {"x": heads(3), "low": np.array(99, np.float32)})
    assert [name.rpartition("/")[2] for name in fused(loaded)] == ["small"]


def test_a_flag_that_is_an_input_chooses_the_branch_before_the_trace():
    def branch(name: str, x: str) -> str:
        return f"{name} () => (float[1,2,k,4] {name}_y) {{ {attend(name + '_a', x, name + '_y')} }}"

    built = text(
        "(float[1,2,n,4] x, float[1,2,m,4] past, bool[1] use_past) => (float[1,2,k,4] z)",
        "both = Concat <axis = 2> (past, x)"
        f"z = If (use_past) <then_branch = {branch('cached', 'both')}, else_branch = {branch('fresh', 'x')}>",
    )
    inputs: Arrays = {"x": heads(2), "past": heads(3, 1)}
    loaded = Model(load(built))
    for flag, name, length in ((True, "cached_a", 5), (False, "fresh_a", 2), (True, "cached_a", 5)):
        got = loaded(**inputs, use_past=np.array([flag]))["z"]
        assert got.shape == (1, 2, length, 4)
        assert [name] == [each.rpartition("/")[2] for each in fused(loaded)] and loaded.report.notes == ()
    assert fuser.explain(loaded, **inputs, use_past=np.array([True])).counts["fused"] == 1
    assert fuser.verify(loaded, **inputs, use_past=np.array([False]))


def test_a_function_with_a_step_on_the_host_is_fused_too():
    function = (
        '<domain: "local", opset_import: ["" : 18]> Pick (x, keep) => (z) {'
        "places = NonZero (keep) minus = Constant <value_ints = [-1]> () flat = Reshape (places, minus)"
        " some = Gather <axis = 2> (x, flat)" + attend("inside", "some", "z") + "}"
    )
    built = text("(float[1,2,n,4] x, bool[n] keep) => (float[1,2,m,4] z)", "z = local.Pick (x, keep)", function)
    loaded = checked(built, {"x": heads(3), "keep": np.array([True, False, True])})
    assert [name.rpartition("/")[2] for name in fused(loaded)] == ["inside"]


def test_a_loop_that_never_ends_is_stopped(monkeypatch):
    monkeypatch.setattr("fuser.frontends.onnx_run._MOST_STEPS", 200)
    built = text(
        "(float[1,2,n,4] x) => (float[1,2,n,4] z)",
        """
            top = ReduceMax <keepdims = 0> (x)
            same = Equal (top, top)
            z = Loop (, same, x) <body = b (int64 i, bool go, float[1,2,n,4] h) => (bool on, float[1,2,n,4] g) {"""
        + attend("w", "h", "g")
        + "on = Equal (top, top) }>",
    )
    with pytest.raises(UnsupportedOperatorError, match="take more than 200 steps"):
        Model(load(built))(x=heads(2))


def test_a_model_that_is_cut_cannot_be_part_of_a_trace():
    loaded = Model(load(CHOSEN))
    with pytest.raises(fuser.TraceError, match="NonZero"):
        fuser.trace(lambda x, keep: loaded(x=x, keep=keep)["z"], mx.array(heads(2)), mx.array([True, False]))
