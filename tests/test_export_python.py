"""ONNX models written as Python programs: run, read, formatted, type-checked, and refused where they would be wrong."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import fuser
from fuser.export import python
from fuser.export.files import OutputError
from fuser.export.python import export_python, python_source
from fuser.export.python_ir import ConvertError
from tests.conftest import ROOT, Export, read_export

MODELS = sorted(path.name for path in (ROOT / "examples" / "models").iterdir() if (path / "model.onnx").exists())
# the attentions that are written: one for each kind of layer, however often the layer is repeated
KINDS = dict.fromkeys(MODELS, 1) | {"t5__eager__ts17": 2}
# scores that are capped are nothing that the kernel computes
CAPPED = "gemma2__eager__ts17"
FUSED = [name for name in MODELS if name != CAPPED]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Export, Path]]:
    """Each bundled model with the program written from it, once."""
    folder = tmp_path_factory.mktemp("written")

    def write(name: str) -> tuple[Export, Path]:
        export = read_export(ROOT / "examples" / "models" / name)
        path = folder / f"{name.split('__')[0]}_{name.split('__')[-1]}.py"
        if not path.exists():
            write_python(export, path)
        return export, path

    return write


def write_python(export: Export, path: Path, **options: Any) -> str:
    inputs: dict[str, Any] = export.sets[0][0]
    return export_python(fuser.load_onnx(export.path), path, **options, **inputs)


def loaded(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load()


def error(found: mx.array, right: Any) -> float:
    a, b = np.asarray(found), np.asarray(right)
    assert a.shape == b.shape and a.dtype == b.dtype
    return float(np.abs(a - b).max() / np.abs(b).max())


Written = Callable[[str], tuple[Export, Path]]


@pytest.mark.parametrize("name", MODELS)
def test_the_program_answers_as_the_model_at_every_shape(name: str, written: Written) -> None:
    export, path = written(name)
    model = loaded(path)
    for inputs, outputs in export.sets:
        found = model(**{key: mx.array(array) for key, array in inputs.items()})
        assert list(found) == list(outputs)
        for key, right in outputs.items():
            assert error(found[key], right) < 1e-5


@pytest.mark.parametrize("name", FUSED)
def test_the_program_is_short_and_has_the_layers_once(name: str, written: Written) -> None:
    text = written(name)[1].read_text()
    assert len(text.splitlines()) < 250
    assert text.count("scaled_dot_product_attention(") == KINDS[name]
    assert "for layer" in text and "in range(2)" in text
    assert "%" not in text and "holds for these sizes only" not in text
    for spelled_out in ("mx.erf", "mx.rsqrt", "mx.sigmoid", "mx.softmax", "mx.square", "@ self."):
        assert spelled_out not in text, spelled_out


@pytest.mark.parametrize("name", FUSED)
def test_the_program_is_fused_already(name: str, written: Written) -> None:
    export, path = written(name)
    inputs = {key: mx.array(array) for key, array in export.sets[0][0].items()}
    report = fuser.explain(loaded(path), **inputs)
    assert report.counts["already fused"] == export.truth
    assert sum(report.counts.values()) == export.truth


def test_the_programs_are_formatted_and_typed(written: Written, tmp_path: Path) -> None:
    paths = [str(written(name)[1]) for name in MODELS]
    empty = tmp_path / "mypy.ini"
    empty.write_text("[mypy]\n")
    rules = "E,F,W,I,B,UP,SIM,RUF,C4,RET"
    for command in (
        ["ruff", "format", "--isolated", "--check", *paths],
        ["ruff", "check", "--isolated", "--select", rules, *paths],
        ["mypy", "--config-file", str(empty), "--cache-dir", str(tmp_path), *paths],
    ):
        found = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
        assert found.returncode == 0, found.stdout + found.stderr


def test_the_program_runs_without_fuser(written: Written) -> None:
    _, path = written("llama__sdpa__dyn18")
    code = (
        f"import sys; sys.path.insert(0, {str(path.parent)!r}); from {path.stem} import load; import mlx.core as mx\n"
        "ids = mx.array([[1, 2, 3]]); out = load()(input_ids=ids, attention_mask=mx.ones_like(ids))\n"
        "print(out['logits'].shape, [name for name in sys.modules if name in ('fuser', 'numpy', 'onnx')])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=path.parent)
    assert found.stdout.strip() == "(1, 3, 128) []", found.stderr


def test_the_llama_reads_as_a_person_would_write_it(written: Written) -> None:
    text = written("llama__sdpa__dyn18")[1].read_text()
    for line in (
        "self.q_proj = nn.Linear(64, 64, bias=False)",
        "batch, seq, _ = x.shape",
        "q = self.q_proj(x).reshape(batch, seq, 8, 8).transpose(0, 2, 1, 3)",
        "q = q * cos + rotate_half(q) * sin  # [batch, 8, seq, 8]",
        "x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)",
        "return self.down_proj(nn.silu(self.gate_proj(x)) * self.up_proj(x))",
        "self.input_layernorm = nn.RMSNorm(64, eps=1e-6)",
        "mask = mx.where(mx.tri(seq, dtype=mx.bool_)[None, None] & keep, 0.0, -2e38)",
        "self.layers = [LlamaDyn18Layer() for _ in range(2)]",
        "x = layer(x, cos, sin, mask)",
    ):
        assert f"        {line}\n" in text, line


def test_weights_have_the_names_of_their_modules(written: Written) -> None:
    _, path = written("bert__eager__ts14")
    names = set(mx.load(str(path.with_suffix(".safetensors"))))
    assert "encoder.layer.1.attention.self.query.weight" in names
    assert "embeddings.layer_norm.bias" in names


# -- small models ----------------------------------------------------------------------------------------------------


def small(
    nodes: list[onnx.NodeProto], shape: list[Any], out: list[Any] | None, tensors: dict[str, Any], path: Path
) -> fuser.Model:
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return fuser.load_onnx(path)


def test_a_size_that_the_model_holds_fast_is_said_and_checked(tmp_path: Path) -> None:
    model = small(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        ["n", 4],
        [3, 8],
        {"shape": np.array([3, 8], np.int64)},
        tmp_path / "m.onnx",
    )
    said = export_python(model, tmp_path / "out.py", x=np.zeros((6, 4), np.float32))
    assert "some sizes only" in said
    assert "    n = 6\n" in (tmp_path / "out.py").read_text()
    assert not (tmp_path / "out.safetensors").exists()
    program = loaded(tmp_path / "out.py")
    assert program(x=mx.ones((6, 4)))["y"].shape == (3, 8)
    with pytest.raises(ValueError, match="size 6 on axis 0"):
        program(x=mx.ones((5, 4)))


def test_a_norm_whose_weights_are_ones_keeps_them(tmp_path: Path) -> None:
    ones = np.ones(8, np.float32)
    model = small(
        [helper.make_node("LayerNormalization", ["x", "w", "b"], ["y"], name="/norm/LayerNorm")],
        ["n", 8],
        ["n", 8],
        {"w": ones, "b": 0 * ones},
        tmp_path / "m.onnx",
    )
    text, weights = python_source(model, {"x": np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)})
    assert "self.norm = nn.LayerNorm(8)" in text
    assert set(weights) == {"norm.weight", "norm.bias"}


@pytest.mark.parametrize(
    ("form", "layer"), [("none", "nn.gelu(x)"), ("tanh", "nn.gelu_approx(x)")], ids=["erf", "tanh"]
)
def test_activations_are_recognised(form: str, layer: str, tmp_path: Path) -> None:
    node = helper.make_node("Gelu", ["x"], ["y"], approximate=form)
    graph = helper.make_graph(
        [node],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), tmp_path / "m.onnx")
    model = fuser.load_onnx(tmp_path / "m.onnx")
    text, _ = python_source(model, {"x": np.linspace(-3, 3, 24, dtype=np.float32).reshape(3, 8)})
    assert layer in text


NODES: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], str]] = {
    "a mean over a dynamic axis": (
        [helper.make_node("ReduceMean", ["x", "a"], ["y"], keepdims=0)],
        {"a": np.array([0])},
        '{"y": mx.mean(x, axis=0)}',
    ),
    "an axis from its end": (
        [helper.make_node("Slice", ["x", "a", "b", "c", "d"], ["y"])],
        {"a": np.array([-1]), "b": np.array([-99]), "c": np.array([0]), "d": np.array([-1])},
        '{"y": x[::-1]}',
    ),
    "the last rows": (
        [helper.make_node("Slice", ["x", "a", "b", "c"], ["y"])],
        {"a": np.array([-2]), "b": np.array([99]), "c": np.array([0])},
        '{"y": x[-2:]}',
    ),
    "a linear layer": (
        [helper.make_node("Gemm", ["x", "w", "c"], ["y"], transB=1, name="/fc/Gemm")],
        {"w": np.ones((5, 8), np.float32), "c": np.ones(5, np.float32)},
        '{"y": self.fc(x)}',
    ),
    "sizes in arithmetic": (
        [
            helper.make_node("Shape", ["x"], ["s"]),
            helper.make_node("Cast", ["s"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("ReduceProd", ["f"], ["p"], keepdims=0),
            helper.make_node("Sqrt", ["p"], ["r"]),
            helper.make_node("Div", ["x", "r"], ["y"]),
        ],
        {},
        '{"y": x / mx.sqrt(n * 8)}',
    ),
}


@pytest.mark.parametrize("name", NODES)
def test_nodes_are_written_plainly(name: str, tmp_path: Path) -> None:
    nodes, tensors, line = NODES[name]
    model = small(nodes, ["n", 8], None, tensors, tmp_path / "m.onnx")
    text, _ = python_source(model, {"x": np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)})
    assert f"return {line}\n" in text and "these sizes only" not in text


def test_names_that_python_does_not_have(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Neg", ["in.0"], ["y"])],
        "small",
        [helper.make_tensor_value_info("in.0", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "m.onnx")
    inputs: dict[str, Any] = {"in.0": np.ones(3, np.float32)}
    export_python(fuser.load_onnx(tmp_path / "m.onnx"), tmp_path / "out.py", **inputs)
    assert loaded(tmp_path / "out.py")(**{"in.0": mx.ones(5)})["y"].tolist() == [-1.0] * 5


def test_what_a_model_calls_things_is_never_code(tmp_path: Path) -> None:
    name = 'x"""\nraise SystemExit(1)\n"""'
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", [name, "w"], ["h"], name='/path/zip/lambda"""/MatMul'),
            helper.make_node("Softmax", ["h"], [name + "y"], name="/self/None/S"),
        ],
        "small",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["range", 'd"""', 4])],
        [helper.make_tensor_value_info(name + "y", TensorProto.FLOAT, ["range", 'd"""', 4])],
        [numpy_helper.from_array(np.eye(4, dtype=np.float32), "import os; w")],
    )
    graph.node[0].input[1] = "import os; w"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "m.onnx")
    inputs: dict[str, Any] = {name: np.ones((2, 3, 4), np.float32)}
    export_python(fuser.load_onnx(tmp_path / "m.onnx"), tmp_path / "path.py", **inputs)
    found = loaded(tmp_path / "path.py")(**{name: mx.ones((1, 2, 4))})
    assert list(found) == [name + "y"]
    assert np.allclose(np.array(found[name + "y"]), 0.25)


# -- refused -----------------------------------------------------------------------------------------------------------


def test_a_wrong_program_is_not_written(written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export, _ = written("vit__sdpa__dyn18")
    plain = python._written

    def wrong(*arguments: Any) -> tuple[str, dict[str, mx.array]]:
        text, weights = plain(*arguments)
        return text.replace("nn.gelu(", "nn.relu("), weights

    monkeypatch.setattr(python, "_written", wrong)
    with pytest.raises(ConvertError, match="last_hidden_state"):
        write_python(export, tmp_path / "out.py")
    assert list(tmp_path.iterdir()) == []


def test_existing_files_are_kept(written: Written, tmp_path: Path) -> None:
    export = written("vit__sdpa__dyn18")[0]
    (tmp_path / "out.safetensors").write_text("mine")
    with pytest.raises(OutputError, match="force"):
        write_python(export, tmp_path / "out.py")
    assert not (tmp_path / "out.py").exists() and (tmp_path / "out.safetensors").read_text() == "mine"
    write_python(export, tmp_path / "out.py", force=True)
    assert loaded(tmp_path / "out.py") is not None


def test_only_onnx_models_are_taken(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="ONNX"):
        export_python(mx.exp, tmp_path / "out.py")
