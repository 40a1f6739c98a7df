"""Exported MLX functions: what comes back from the file gives the program's answers, in Python and in C++."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import fuser
from fuser.errors import InvalidInputError, TraceError
from fuser.export.files import OutputError
from fuser.export.mlxfn import MlxfnExporter, export_mlxfn
from tests.conftest import ROOT, Run, read_export

Q = mx.random.normal((2, 4, 6, 8), key=mx.random.key(0))


def attention(q: mx.array, k: mx.array, v: mx.array, scale: float = 0.5) -> mx.array:
    return mx.softmax(q @ k.swapaxes(-1, -2) * scale, axis=-1) @ v


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)

    def __call__(self, x: mx.array) -> mx.array:
        q, k, v = (f(x).reshape(*x.shape[:2], 2, 8).swapaxes(1, 2) for f in (self.q, self.k, self.v))
        return attention(q, k, v).swapaxes(1, 2).reshape(x.shape)


def imported(path: Path) -> Any:
    return mx.import_function(str(path))


def about(path: Path) -> Any:
    """What a file says of itself."""
    found: Any = mx.import_function(str(path), return_metadata=True)
    return json.loads(found[1])


def close(left: mx.array, right: mx.array) -> bool:
    return bool(mx.allclose(left, right, atol=1e-5).item())


def test_a_function(tmp_path: Path) -> None:
    path = tmp_path / "f.mlxfn"
    report = export_mlxfn(attention, path, Q, Q, Q, scale=0.25)
    assert report.counts["fused"] == 1
    assert close(imported(path)(Q, Q, Q)[0], attention(Q, Q, Q, 0.25))


def test_a_module_takes_its_weights_along(tmp_path: Path) -> None:
    block, x = Block(), mx.random.normal((2, 5, 16))
    want = block(x)
    assert export_mlxfn(block, tmp_path / "f.mlxfn", x).counts["fused"] == 1
    block.q.weight = mx.zeros((16, 16))
    assert close(imported(tmp_path / "f.mlxfn")(x)[0], want)


def test_keywords_and_trees(tmp_path: Path) -> None:
    def program(q: mx.array, *, cache: dict[str, mx.array]) -> dict[str, mx.array]:
        return {"out": attention(q, cache["k"], cache["v"]), "k": cache["k"] + 1}

    cache = {"k": Q, "v": Q * 2}
    export_mlxfn(program, tmp_path / "f.mlxfn", Q, cache=cache)
    loaded, says = imported(tmp_path / "f.mlxfn"), about(tmp_path / "f.mlxfn")
    assert (says["positional"], says["keywords"], says["outputs"]) == (1, ["cache.k", "cache.v"], ["out", "k"])
    out, k = loaded(Q, **{"cache.k": Q, "cache.v": Q * 2})
    want = program(Q, cache=cache)
    assert close(out, want["out"]) and close(k, want["k"])


def test_several_signatures_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "f.mlxfn"
    with MlxfnExporter(attention, path) as export:
        for length in (1, 6):
            export(Q[:, :, :length], Q, Q)
        with pytest.raises(InvalidInputError, match="already"):
            export(Q, Q, Q)
        assert not path.exists()
    assert [report.counts["fused"] for report in export.reports] == [1, 1]
    loaded = imported(path)
    for length in (1, 6):
        assert close(loaded(Q[:, :, :length], Q, Q)[0], attention(Q[:, :, :length], Q, Q))


def test_an_onnx_model(tmp_path: Path, llama: Path) -> None:
    model, path = fuser.load_onnx(llama), tmp_path / "llama.mlxfn"
    sets = read_export(llama.parent).sets
    with MlxfnExporter(model, path) as export:
        for inputs, _ in sets:
            export(**inputs)
    loaded, names = imported(path), about(path)["outputs"]
    for inputs, expected in sets:
        results = loaded(**{name: mx.array(array) for name, array in inputs.items()})
        for name, array in zip(names, results, strict=True):
            np.testing.assert_allclose(np.asarray(array), expected[name], atol=1e-4)


def test_the_attentions_are_there_still(tmp_path: Path) -> None:
    export_mlxfn(attention, tmp_path / "f.mlxfn", Q, Q, Q)
    loaded = imported(tmp_path / "f.mlxfn")
    mx.eval(loaded(Q, Q, Q))  # its constants are read from the file when they are first used
    counts = fuser.explain(loaded, Q, Q, Q).counts
    # on a CPU, MLX exports what the kernel is made of there
    assert counts["fused" if mx.default_device() == mx.Device(mx.cpu) else "already fused"] == 1
    assert sum(counts.values()) == 1


def test_an_exported_function_has_no_state(tmp_path: Path) -> None:
    def cached(x: mx.array, cache: list[mx.array]) -> mx.array:
        cache[0] = cache[0] + x
        return cache[0]

    def random(x: mx.array) -> mx.array:
        return x + mx.random.normal(x.shape)

    with pytest.raises(TraceError, match="in place"):
        export_mlxfn(cached, tmp_path / "f.mlxfn", Q, [Q])
    with pytest.raises(TraceError, match="random"):
        export_mlxfn(random, tmp_path / "f.mlxfn", Q)
    assert list(tmp_path.iterdir()) == []


def test_calls_that_mlx_cannot_export_are_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"MLX cannot export mx.linalg.solve \(test_export_mlxfn.py:\d+\)"):
        export_mlxfn(lambda x: mx.linalg.solve(x, x, stream=mx.cpu), tmp_path / "f.mlxfn", mx.eye(3))
    checkpoint: Any = mx.checkpoint
    assert export_mlxfn(checkpoint(attention), tmp_path / "f.mlxfn", Q, Q, Q).counts["fused"] == 1


def test_what_is_there_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "f.mlxfn"
    path.write_bytes(b"old")

    def broken(x: mx.array) -> mx.array:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError):
        export_mlxfn(broken, path, Q)
    with pytest.raises(OutputError, match="there already"), MlxfnExporter(attention, path, force=False) as export:
        export(Q, Q, Q)
    assert path.read_bytes() == b"old"
    export_mlxfn(attention, path, Q, Q, Q)
    assert path.read_bytes() != b"old" and [each.name for each in tmp_path.iterdir()] == ["f.mlxfn"]
    with pytest.raises(InvalidInputError, match="no signature"):
        MlxfnExporter(attention, path).write()


def test_the_cpp_of_the_docs_runs(tmp_path: Path) -> None:
    package: Any = __import__("mlx.core").__path__[0]
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None or not (Path(package) / "include" / "mlx" / "mlx.h").exists():
        pytest.skip("no C++ compiler, or a wheel of MLX without headers")
    source = re.search(r"```cpp\n(.*?)```", (ROOT / "docs" / "convert.md").read_text(), re.DOTALL)
    assert source is not None
    (tmp_path / "run.cpp").write_text(source[1])
    export_mlxfn(attention, tmp_path / "attention.mlxfn", *[mx.zeros((1, 2, 4, 8))] * 3)
    library = f"{package}/lib"
    command = [compiler, "-std=c++20", "run.cpp", f"-I{package}/include", f"-L{library}", "-lmlx", "-o", "run"]
    built = subprocess.run(
        [*command, f"-Wl,-rpath,{library}"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    done = subprocess.run(["./run"], cwd=tmp_path, capture_output=True, text=True, check=True)
    x = (mx.arange(64, dtype=mx.float32) / 64).reshape(1, 2, 4, 8)
    assert float(done.stdout) == pytest.approx(attention(x, x, x).sum().item(), rel=1e-4)


def test_the_command_line_reads_what_it_wrote(run: Run, models: Path, tmp_path: Path) -> None:
    assert run("convert", models / "llama__sdpa__dyn18" / "model.onnx", "llama.mlxfn").exit_code == 0
    result = run("report", "llama.mlxfn", "--json", "-")
    found = json.loads(result.stdout)
    assert found["counts"] == {"fused": 0, "already fused": 2, "refused": 0, "not attention": 0}
    assert [(region["query_heads"], region["key_heads"]) for region in found["regions"]] == [(8, 2)] * 2
    assert run("verify", "llama.mlxfn").exit_code == 0


def masked(q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None = None) -> mx.array:
    scores = q @ k.swapaxes(-1, -2) * 0.5
    return mx.softmax(scores if mask is None else scores + mask, axis=-1) @ v


def test_functions_that_mlx_has_exported(run: Run, tmp_path: Path) -> None:
    with mx.exporter(str(tmp_path / "other.mlxfn"), masked) as export:
        export(Q, Q, Q)
        export(Q[:, :, :3], Q, Q)
        export(Q, Q, Q, mask=mx.zeros((6, 6)))
        export(*[Q.astype(mx.bfloat16)] * 3)
    found = json.loads(run("report", "other.mlxfn", "--json", "-", "--html", "page.html").stdout)
    assert found["counts"]["fused"] == 4
    assert {region["name"].partition(":")[0] for region in found["regions"]} == {f"signature {n}" for n in range(1, 5)}
    assert sorted(region["mask"] for region in found["regions"]) == ["additive", "none", "none", "none"]
    assert run("verify", "other.mlxfn").exit_code == 0
    q = np.array(Q, np.float32)
    mask = np.triu(np.full((6, 6), -1e9, np.float32), 1)
    short = q[:, :, :3]
    np.savez(tmp_path / "in.npz", short, q, q)
    np.savez(tmp_path / "mask.npz", q, q, q, mask=mask)
    for name, wanted in (("in", masked(*map(mx.array, (short, q, q)))), ("mask", masked(Q, Q, Q, mx.array(mask)))):
        assert run("run", "other.mlxfn", "--inputs", f"{name}.npz", "--outputs", "out.npz").exit_code == 0
        with np.load(tmp_path / "out.npz") as found:
            assert close(mx.array(found["output_0"]), wanted)
    np.savez(tmp_path / "wrong.npz", q[0], q, q)
    result = run("run", "other.mlxfn", "--inputs", "wrong.npz", "--outputs", "out.npz")
    assert result.exit_code == 2 and "it takes" in result.stderr and "arr_0: float32[2, 4, 3, 8]" in result.stderr


def test_functions_exported_for_any_shape_or_by_keyword(run: Run, tmp_path: Path) -> None:
    mx.export_function(str(tmp_path / "any.mlxfn"), masked, Q, Q, Q, shapeless=True)
    mx.export_function(str(tmp_path / "named.mlxfn"), masked, q=Q, k=Q, v=Q, mask=mx.ones((6, 6), mx.bool_) * 1.0)
    mx.export_function(str(tmp_path / "none.mlxfn"), lambda: mx.arange(3))
    for name, fused in (("any", 1), ("named", 1), ("none", 0)):
        found = json.loads(run("report", f"{name}.mlxfn", "--json", "-").stdout)
        assert (found["counts"]["fused"], len(found["regions"])) == (fused, fused)
    assert run("verify", "named.mlxfn").exit_code == 0


def test_arrays_that_lie_in_memory_in_another_order(tmp_path: Path) -> None:
    held = mx.random.normal((8, 6))
    others = [mx.random.normal((6, 8)).T, mx.random.normal((16, 12))[::2, 1::2], mx.broadcast_to(held[:1], (8, 6))]
    module = nn.Linear(6, 8)
    module.weight = mx.random.normal((6, 8)).T
    mx.eval(held, others, module.parameters())

    def program(x: mx.array) -> mx.array:
        return module(x) @ (others[0] + others[1] + others[2] + held)

    x = mx.random.normal((3, 6))
    fuser.export_mlxfn(program, tmp_path / "rows.mlxfn", x)
    again: Any = mx.import_function(str(tmp_path / "rows.mlxfn"))
    assert mx.allclose(again(x)[0], program(x), atol=1e-5)
