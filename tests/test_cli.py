"""The command line on real exports and on functions: what it prints, writes and returns."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import onnx
import pytest

import fuser
from fuser.cli_inputs import dimensions, made
from fuser.frontends.onnx import ValueInfo
from tests.conftest import ROOT, Run

PROGRAMS = ROOT / "tests" / "data" / "programs.py"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run in that holds `programs.py` and `in.npz`."""
    shutil.copy(PROGRAMS, tmp_path / "programs.py")
    monkeypatch.delitem(sys.modules, "programs", raising=False)
    random = np.random.default_rng(0)
    arrays = {name: random.standard_normal((1, 2, 6, 8)).astype(np.float32) for name in "qkv"}
    np.savez(tmp_path / "in.npz", **arrays)  # type: ignore[arg-type]
    return tmp_path


def stored(model: Path, key: str) -> dict[str, Any]:
    with np.load(model.parent / "io.npz") as file:
        return {name.removeprefix(key): file[name] for name in file.files if name.startswith(key)}


# -- report --------------------------------------------------------------------------------------------------


def test_report_of_a_real_export(run: Run, llama: Path) -> None:
    result = run("report", llama)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == str(llama)
    assert lines[1].startswith("2 of 2 attentions fused")
    assert sum(line.startswith("m.model.layers.") for line in lines) == 2
    rows = [line.split() for line in lines if "8→2" in line]
    assert len(rows) == 2
    assert all(row[:6] == ["8→2", "16×16", "8", "additive", "0.3536", "float32"] for row in rows)
    assert "batch=2" in result.stderr and "seq=16" in result.stderr


def test_report_takes_sizes(run: Run, llama: Path) -> None:
    result = run("report", llama, "--dim", "batch=1", "--dim", "seq=5")
    assert "5×5" in result.stdout and result.stderr == ""


def test_report_takes_inputs(run: Run, llama: Path) -> None:
    result = run("report", llama, "--inputs", llama.parent / "inputs.npz")
    assert result.exit_code == 0 and "7×7" in result.stdout and result.stderr == ""


def test_report_says_why_not_and_where(run: Run, tmp_path: Path) -> None:
    (tmp_path / "chosen.py").write_text(
        "import mlx.core as mx\n\n\n"
        "def attend(q=mx.ones((1, 2, 8, 8)), k=mx.ones((1, 2, 8, 8))):\n"
        "    scores = q @ k.swapaxes(-1, -2)\n"
        "    best = mx.topk(scores, 4, axis=-1).min(axis=-1, keepdims=True)\n"
        "    return mx.softmax(mx.where(scores >= best, scores, -1e9), axis=-1) @ k\n"
    )
    result = run("report", "chosen:attend")
    assert result.exit_code == 0, result.stderr
    assert "0 of 1 attention fused" in result.stdout
    assert "top-k" in result.stdout and "attend (chosen.py:7)/GreaterEqual" in result.stdout


def test_json_on_stdout_is_all_there_is(run: Run, llama: Path) -> None:
    result = run("report", llama, "--json", "-")
    found = json.loads(result.stdout)
    assert found["format"] == "mlx-fuser-report" and found["version"] == 1
    assert found["program"] == str(llama) and found["counts"]["fused"] == 2


def test_json_into_a_file_beside_the_table(run: Run, llama: Path, tmp_path: Path) -> None:
    result = run("report", llama, "--json", "report.json")
    assert "2 of 2 attentions fused" in result.stdout
    assert json.loads((tmp_path / "report.json").read_text())["counts"]["fused"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json"]


def test_a_page_beside_the_table(run: Run, llama: Path, tmp_path: Path) -> None:
    result = run("report", llama, "--html", "report.html")
    assert result.exit_code == 0 and "2 of 2 attentions fused" in result.stdout
    page = (tmp_path / "report.html").read_text()
    assert page.startswith("<!doctype html>") and "2 of 2 attentions fused" in page


def test_what_a_program_prints_stays_out_of_the_json(run: Run, programs: Path) -> None:
    result = run("report", "programs:alone", "--json", "-")
    assert json.loads(result.stdout)["counts"]["fused"] == 1
    assert "computing" in result.stderr


@pytest.mark.parametrize("name", sorted(path.parent.name for path in ROOT.glob("examples/models/*/model.onnx")))
def test_every_bundled_model_reports_and_verifies(run: Run, models: Path, name: str) -> None:
    model = models / name / "model.onnx"
    assert run("report", model).exit_code == 0
    result = run("verify", model)
    assert result.exit_code == 0, result.output
    assert "agree with the unfused program" in result.stdout


# -- run -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--no-fuse",)], ids=["fused", "unfused"])
def test_run_writes_what_onnx_runtime_gave(run: Run, llama: Path, tmp_path: Path, options: Any) -> None:
    result = run("run", llama, "--inputs", llama.parent / "inputs.npz", "--outputs", "out.npz", *options)
    assert result.exit_code == 0 and result.stdout == ""
    assert "logits: float32[" in result.stderr
    assert ("2 of 2 attentions fused" in result.stderr) == (not options)
    expected = stored(llama, "set0/out/")
    with np.load(tmp_path / "out.npz") as file:
        assert set(file.files) == set(expected)
        np.testing.assert_allclose(file["logits"], expected["logits"], rtol=0, atol=1e-4)


def test_run_replaces_a_file_and_keeps_its_mode(run: Run, llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    out.write_text("old")
    out.chmod(0o640)
    assert run("run", llama, "--inputs", llama.parent / "inputs.npz", "--outputs", out).exit_code == 0
    assert out.stat().st_mode & 0o777 == 0o640 and np.load(out).files == ["logits"]
    assert [path.name for path in tmp_path.iterdir()] == ["out.npz"]


def test_a_failed_run_leaves_the_old_file(run: Run, programs: Path) -> None:
    (programs / "out.npz").write_text("old")
    np.savez(programs / "x.npz", x=np.zeros(2, np.float32))
    assert run("run", "programs:fails", "--inputs", "x.npz", "--outputs", "out.npz").exit_code == 2
    assert (programs / "out.npz").read_text() == "old"


def test_run_into_a_device(run: Run, llama: Path) -> None:
    result = run("run", llama, "--inputs", llama.parent / "inputs.npz", "--outputs", os.devnull)
    assert result.exit_code == 0 and not Path(os.devnull).is_file()


# -- functions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["attend", "positional"])
def test_functions_take_arrays_by_parameter_name(run: Run, programs: Path, function: str) -> None:
    result = run("run", f"programs:{function}", "--inputs", "in.npz", "--outputs", "out.npz")
    assert result.exit_code == 0, result.output
    assert "1 of 1 attention fused" in result.stderr
    with np.load("in.npz") as given, np.load("out.npz") as got:
        q, k, v = (mx.array(given[name]) for name in "qkv")
        expected = mx.fast.scaled_dot_product_attention(q, k, v, scale=8**-0.5)
        assert got.files == ["output"]
        np.testing.assert_allclose(got["output"], np.asarray(expected), rtol=0, atol=1e-5)


def test_a_function_without_parameters_needs_no_inputs(run: Run, programs: Path) -> None:
    assert run("run", "programs:alone", "--outputs", "out.npz").exit_code == 0
    assert sorted(np.load("out.npz").files) == ["out", "sum"]


def test_results_that_are_no_dictionary_are_numbered(run: Run, programs: Path) -> None:
    np.savez("q.npz", q=np.ones((1, 2, 6, 8), np.float32))
    result = run("run", "programs:pair", "--inputs", "q.npz", "--outputs", "out.npz")
    assert "output.1.0: bfloat16[1, 2, 6, 8] (saved as float32)" in result.stderr
    with np.load("out.npz") as file:
        assert file.files == ["output.0", "output.1.0"] and file["output.1.0"].dtype == np.float32


def test_a_module_instance_is_a_program(run: Run, programs: Path) -> None:
    np.savez("x.npz", x=np.ones((1, 6, 16), np.float32))
    result = run("report", "programs:block", "--inputs", "x.npz")
    assert result.exit_code == 0 and "1 of 1 attention fused" in result.stdout


def test_a_program_without_softmax(run: Run, programs: Path) -> None:
    np.savez("x.npz", x=np.ones(3, np.float32))
    assert "no softmax" in run("report", "programs:plain", "--inputs", "x.npz").stdout


def test_bfloat16_comes_in_as_mlx_and_numpy_save_it(run: Run, programs: Path) -> None:
    mx.savez("x.npz", x=mx.array([1.5, -2.0], mx.bfloat16))
    result = run("run", "programs:plain", "--inputs", "x.npz", "--outputs", "out.npz")
    assert "bfloat16[2]" in result.stderr
    assert np.load("out.npz")["output"].tolist() == [3.0, -4.0]


def test_a_program_that_cannot_be_traced_runs_all_the_same(run: Run, programs: Path) -> None:
    np.savez("x.npz", x=np.ones(3, np.float32))
    result = run("run", "programs:reads", "--inputs", "x.npz", "--outputs", "out.npz")
    assert result.exit_code == 0 and "note: the original program runs" in result.stderr
    assert np.load("out.npz")["output"].tolist() == [2.0, 2.0, 2.0]


# -- verify --------------------------------------------------------------------------------------------------


def test_verify_compares_outputs_and_regions(run: Run, llama: Path) -> None:
    result = run("verify", llama, "--dim", "batch=1", "--dim", "seq=7")
    assert result.exit_code == 0 and result.stderr == ""
    assert "1 output and 2 fused attentions agree" in result.stdout
    assert result.stdout.count(" ok") == 3


def test_verify_fails_when_answers_differ(run: Run, llama: Path) -> None:
    result = run("verify", llama, "--rtol", "0")
    assert result.exit_code == 1
    assert "DIFFER" in result.stdout and "error:" not in result.stderr


# -- made inputs ---------------------------------------------------------------------------------------------


def info(name: str, dtype: mx.Dtype, *shape: int | str | None) -> ValueInfo:
    return ValueInfo(name, dtype, shape)


def test_one_name_is_one_size_and_totals_are_sums(capsys: pytest.CaptureFixture[str]) -> None:
    arrays = made(
        [
            info("input_ids", mx.int64, "batch_size", "sequence_length"),
            info("attention_mask", mx.int64, "batch_size", "past_sequence_length + sequence_length"),
            info("past_key_values.0.key", mx.float16, "batch_size", 4, "past_sequence_length", 8),
        ],
        {"past_sequence_length": 3},
    )
    assert [array.shape for array in arrays.values()] == [(2, 16), (2, 19), (2, 4, 3, 8)]
    assert mx.all(arrays["attention_mask"] == 1).item()
    assert arrays["past_key_values.0.key"].dtype == mx.float16
    assert "past" in (told := capsys.readouterr().err) and "past_sequence_length=3" not in told


def test_a_total_length_is_what_is_cached_and_what_is_new() -> None:
    inputs = [
        info("input_ids", mx.int64, "batch", 1),
        info("attention_mask", mx.int64, "batch", "total"),
        info("past_key", mx.float32, "batch", 2, "past", 8),
    ]
    assert made(inputs, {})["attention_mask"].shape == (2, 9)


def test_made_values_fit_their_names() -> None:
    arrays = made(
        [
            info("token_type_ids", mx.int64, "b", "s"),
            info("position_ids", mx.int32, "b", "s"),
            info("decoder_input_ids", mx.int64, "b", "s"),
            info("pixel_values", mx.float32, None, None, None, None),
            info("flag", mx.bool_),
        ],
        {"pixel_values[0]": 1},
    )
    assert mx.all(arrays["token_type_ids"] == 0).item()
    assert arrays["position_ids"][1].tolist() == list(range(16))
    ids = np.asarray(arrays["decoder_input_ids"])
    assert ids.min() >= 0 and ids.max() < 10
    assert arrays["pixel_values"].shape == (1, 3, 32, 32)
    assert arrays["flag"].item() is True


def test_made_inputs_are_the_same_in_every_run() -> None:
    inputs = [info("x", mx.float32, 2, 3), info("ids", mx.int64, 4)]
    first, second = made(inputs, {}), made(inputs, {})
    assert all(mx.array_equal(first[name], second[name]).item() for name in first)


def test_sizes_are_read() -> None:
    assert dimensions(["batch=2", " past + 1 = 9"]) == {"batch": 2, "past + 1": 9}


# -- the program itself --------------------------------------------------------------------------------------


def test_help_has_examples(run: Run) -> None:
    result = run("--help")
    assert result.exit_code == 0
    for text in ("Examples:", "mlx-fuser run", "module:function", "report", "verify"):
        assert text in result.stdout
    for command in ("report", "run", "verify"):
        assert run(command, "--help").exit_code == 0


def test_nothing_gets_the_help(run: Run) -> None:
    assert "Examples:" in run().output


def test_version(run: Run) -> None:
    result = run("--version")
    assert result.exit_code == 0 and result.stdout.startswith("mlx-fuser ")


def test_as_a_process(llama: Path, tmp_path: Path) -> None:
    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fuser", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)

    done = call("report", llama, "--json", "-")
    assert done.returncode == 0 and json.loads(done.stdout)["counts"]["fused"] == 2
    failed = call("report", "nothing.onnx")
    assert failed.returncode == 2 and failed.stdout == ""
    assert failed.stderr == "error: no such file: 'nothing.onnx'\n"


def test_a_reader_that_leaves_is_no_error(llama: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fuser", "report", str(llama), "--json", "-"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
    process.wait()


def test_an_optimized_function_and_a_loaded_model_are_programs(run: Run, llama: Path, tmp_path: Path) -> None:
    (tmp_path / "held.py").write_text(f"import fuser\nmodel = fuser.load_onnx({str(llama)!r})\n")
    result = run("report", "held:model", "--inputs", llama.parent / "inputs.npz")
    assert result.exit_code == 0 and "2 of 2" in result.stdout
    sys.modules.pop("held", None)


def test_bfloat16_inputs_of_an_onnx_model(run: Run, tmp_path: Path) -> None:
    kind = onnx.TensorProto.BFLOAT16
    values = [onnx.helper.make_tensor_value_info(name, kind, ["n"]) for name in ("x", "y")]
    node = onnx.helper.make_node("Neg", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]), "m.onnx")
    np.savez("x.npz", x=np.array([1.5, 2], np.float32))
    result = run("run", "m.onnx", "--inputs", "x.npz", "--outputs", "y.npz")
    assert result.exit_code == 0, result.output
    assert np.load("y.npz")["y"].tolist() == [-1.5, -2.0]


def test_the_library_and_the_command_line_agree(run: Run, llama: Path) -> None:
    inputs = stored(llama, "set0/in/")
    report = fuser.explain(fuser.load_onnx(llama), **inputs)
    found = json.loads(run("report", llama, "--inputs", llama.parent / "inputs.npz", "--json", "-").stdout)
    assert found["regions"] == report.to_dict()["regions"]


def test_names_have_lines_of_their_own_where_there_is_no_room(
    run: Run, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = {}
    for width in (60, 80, 160):
        monkeypatch.setattr("fuser.cli_report.WIDTH", width)
        lines = run("report", llama, "--dim", "batch=1", "--dim", "seq=5").stdout.splitlines()
        (place,) = (number for number, line in enumerate(lines) if "layers.0" in line)
        shown[width] = [" ".join(line.split()) for line in lines[place : place + 2]]
    name, row = "m.model.layers.0.self_attn/node_Softmax_228", "8→2 5×5 8 additive 0.3536 float32"
    assert shown[160][0].startswith(f"{name} {row}")
    assert shown[80][0] == name and shown[80][1].startswith(row)
    assert shown[60][0] == name and shown[60][1].startswith("heads 8→2, lengths 5×5, depth 8, mask additive")


def test_a_locale_without_arrows(llama: Path) -> None:
    command = [sys.executable, "-m", "fuser", "report", str(llama)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0 and "2 of 2 attentions fused" in done.stdout
