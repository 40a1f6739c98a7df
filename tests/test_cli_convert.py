"""`mlx-fuser convert`: what it writes, says and refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import mlx.core as mx
import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

from fuser.cli_convert import convert, signatures
from fuser.cli_errors import Commands
from tests.conftest import read_export


@click.group(cls=Commands)
@click.option("--traceback", is_flag=True)
def main(traceback: bool) -> None:
    """The command alone."""


main.add_command(convert)


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(main, ["convert", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def loaded(path: Path) -> Any:
    return mx.import_function(str(path))


def test_to_onnx(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    result = run(llama, out)
    assert result.exit_code == 0 and result.stdout == ""
    assert result.stderr == f"{out}: 2 attentions fused, 0 left, opset 23\n"
    assert sum(node.op_type == "Attention" for node in onnx.load(out).graph.node) == 2
    result = run(out, tmp_path / "again.onnx")
    assert "0 attentions fused, 2 fused already" in result.stderr and "unchanged" in result.stderr
    result = run(llama, tmp_path / "lower.onnx", "--opset", 18)
    assert "2 attentions fused, 0 left, opset 18" in result.stderr


def test_to_mlxfn_with_several_signatures(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mlxfn"
    result = run(llama, out, "--dim", "batch=1", "--dim", "seq=1", "--dim", "seq=6")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count(f"{out}: 2 fused") == 2
    inputs, _ = read_export(llama.parent).sets[0]
    one = {name: mx.array(array[:1, :1]) for name, array in inputs.items()}
    assert loaded(out)(**one)[0].shape[:2] == (1, 1)
    with pytest.raises(ValueError, match="No imported function found"):
        loaded(out)(**{name: mx.array(array[:1, :3]) for name, array in inputs.items()})


def test_to_mlxfn_with_inputs(llama: Path, tmp_path: Path) -> None:
    inputs, expected = read_export(llama.parent).sets[0]
    np.savez(tmp_path / "in.npz", **inputs)  # type: ignore[arg-type]
    out = tmp_path / "out.mlxfn"
    assert run(llama, out, "--inputs", tmp_path / "in.npz").exit_code == 0
    result = loaded(out)(**{name: mx.array(array) for name, array in inputs.items()})[0]
    np.testing.assert_allclose(np.asarray(result), next(iter(expected.values())), atol=1e-4)


def test_to_python(models: Path, tmp_path: Path) -> None:
    result = run(models / "bert__sdpa__dyn18" / "model.onnx", tmp_path / "bert.py")
    assert result.exit_code == 0, result.stderr
    assert "scaled_dot_product_attention" in (tmp_path / "bert.py").read_text()
    assert (tmp_path / "bert.safetensors").exists()


def test_what_is_there_needs_force(llama: Path, tmp_path: Path) -> None:
    for name in ("out.onnx", "out.mlxfn", "out.py"):
        out = tmp_path / name
        out.write_bytes(b"old")
        result = run(llama, out)
        assert result.exit_code == 2 and "use --force" in result.stderr
        assert out.read_bytes() == b"old"
        assert run(llama, out, "--force").exit_code == 0
        assert out.read_bytes() != b"old"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["OUT.txt"], "convert writes .mlxfn, .py, .onnx"),
        (["OUT"], "ends in nothing"),
        (["none/OUT.onnx"], "there is no folder"),
        (["OUT.mlxfn", "--opset", "18"], "--opset is for .onnx"),
        (["OUT.onnx", "--opset", "9"], "cannot be lowered to 9"),
        (["OUT.onnx", "--inputs", "in.npz"], "--inputs is not for .onnx"),
        (["OUT.onnx", "--dim", "seq"], "name=size"),
        (["OUT.mlxfn", "--dim", "none=3"], "no dimension 'none'"),
    ],
)
def test_refusals(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(llama, *arguments)
    assert result.exit_code == 2 and says in result.stderr and result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_only_onnx_becomes_onnx(tmp_path: Path) -> None:
    result = run("math:sqrt", tmp_path / "out.onnx")
    assert result.exit_code == 2 and "is no .onnx file" in result.stderr
    result = run(tmp_path / "none.onnx", tmp_path / "out.onnx")
    assert result.exit_code == 2 and "no such file" in result.stderr


def test_signatures_are_all_combinations() -> None:
    assert signatures([]) == [{}]
    assert signatures(["b=2", "s=1", "s=8", "s=1"]) == [{"b": 2, "s": 1}, {"b": 2, "s": 8}]
