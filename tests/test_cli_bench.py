"""`mlx-fuser bench`: what it compares, times and tells; never how long anything took."""

from __future__ import annotations

import json
import re
import shutil
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from fuser import cli_measure
from fuser.cli_measure import Run as Timed
from fuser.cli_measure import measure
from tests.conftest import ROOT, Run

VERSION = version("mlx")
WAYS = ["naive", "compiled", "fused"]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run in that holds `programs.py` and `in.npz`."""
    shutil.copy(ROOT / "tests" / "data" / "programs.py", tmp_path)
    monkeypatch.delitem(sys.modules, "programs", raising=False)
    random = np.random.default_rng(0)
    arrays = {name: random.standard_normal((1, 2, 6, 8)).astype(np.float32) for name in "qkv"}
    np.savez(tmp_path / "in.npz", **arrays)  # type: ignore[arg-type]
    return tmp_path


def figures(result: Any) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["format"], found["version"]) == ("mlx-fuser-bench", 1)
    return dict(found)


def test_three_ways_side_by_side(run: Run, llama: Path) -> None:
    result = run("bench", llama, "--repeat", 3, "--dim", "batch=1", "--dim", "seq=5")
    assert result.exit_code == 0 and result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0] == str(llama) and lines[1].startswith("2 of 2 attentions fused")
    assert f"MLX {VERSION}" in lines[2] and lines[2].endswith("; 3 repetitions, taking turns")
    assert re.search(r"on .+ \((cpu|gpu)\)", lines[2])
    rows = [line.split() for line in lines if line.split(" ")[0] in WAYS]
    assert [row[0] for row in rows] == [*WAYS, "fused"]
    assert all(row[2] == "ms" and row[-1].endswith("x") for row in rows[:3])
    assert re.fullmatch(r"fused is \S+ times as fast as naive, \S+ times as fast as compiled", lines[-1])


def test_json_on_stdout_is_all_there_is(run: Run, programs: Path) -> None:
    found = figures(run("bench", "programs:attend", "--inputs", "in.npz", "--repeat", 4, "--json", "-"))
    assert found["program"] == "programs:attend" and found["repetitions"] == 4 and found["counts"]["fused"] == 1
    assert list(found["runs"]) == WAYS and list(found["speedup"]) == WAYS[:2]
    for timed in found["runs"].values():
        low, median, high = timed["seconds"].values()
        assert 0 < low <= median <= high
        assert timed["peak_memory"] is None or timed["peak_memory"] > 0
    assert [check["ok"] for way in ("compiled", "fused") for check in found["checks"][way]] == [True, True]
    assert found["ran_on"]["mlx"] == VERSION and found["ran_on"]["type"] in ("cpu", "gpu")


def test_json_into_a_file_beside_the_table(run: Run, programs: Path) -> None:
    result = run("bench", "programs:alone", "--repeat", 1, "--json", "bench.json")
    assert "fused is" in result.stdout and "computing" in result.stderr
    assert json.loads((programs / "bench.json").read_text())["repetitions"] == 1


def test_fused_answers_that_differ_are_not_timed(run: Run, llama: Path) -> None:
    result = run("bench", llama, "--rtol", 0, "--quiet")
    assert result.exit_code == 1 and result.stderr == ""
    assert "fused: 1 of 1 output DIFFER" in result.stdout and "median" not in result.stdout


def test_a_random_program_is_compared_on_the_same_numbers() -> None:
    def draws(x: mx.array) -> mx.array:
        return x + mx.random.normal(x.shape)

    found = measure("draws", draws, [mx.zeros((4, 4))], {}, repeat=1)
    assert found.ok and all(check.error == 0 for check in found.checks["compiled"])


def test_a_program_that_cannot_be_compiled_is_timed_without(run: Run, programs: Path) -> None:
    np.savez(programs / "x.npz", x=np.ones(3, np.float32))
    found = figures(run("bench", "programs:reads", "--inputs", "x.npz", "--repeat", 2, "--json", "-"))
    if cli_measure._compiles():
        assert list(found["runs"]) == ["naive", "fused"]
        assert any(note.startswith("mx.compile cannot run it: ") for note in found["notes"])
    assert any("the original program runs" in note for note in found["notes"])


def test_compiling_switched_off_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    mx.disable_compile()
    try:
        found = measure("f", lambda x: x + 1, [mx.zeros(2)], {}, repeat=1)
    finally:
        mx.enable_compile()
    assert any("compiling is switched off" in note for note in found.notes)


def test_every_way_has_each_turn() -> None:
    calls: list[str] = []

    def called(way: str) -> mx.array:
        calls.append(way)
        return mx.zeros(1)

    ways = {way: partial(called, way) for way in WAYS}
    cli_measure._timed("f", ways, [], {}, 3)
    assert calls[: 3 * cli_measure.WARM_UP] == WAYS * cli_measure.WARM_UP
    rest = calls[3 * cli_measure.WARM_UP :]
    assert [sorted(rest[turn : turn + 3]) for turn in (0, 3, 6)] == [sorted(WAYS)] * 3
    assert rest[::3] == WAYS


def test_quartiles() -> None:
    assert Timed((2.0,), None).quartiles == (2.0, 2.0, 2.0)
    assert Timed((5.0, 1.0, 2.0, 4.0, 3.0), None).quartiles == (2.0, 3.0, 4.0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("programs:fails", "--inputs", "x.npz"), "this program fails"),
        (("programs:nothing",), "gave no array"),
        (("programs:attend",), "needs 'q', 'k', 'v'"),
        (("programs:plain", "--inputs", "x.npz", "--repeat", "0"), "--repeat"),
        (("programs:plain", "--inputs", "x.npz", "--rtol", "-1"), "0 or more"),
        (("programs:plain", "--inputs", "x.npz", "--json", "no/where.json"), "no folder"),
    ],
)
def test_errors_are_one_line(run: Run, programs: Path, arguments: tuple[str, ...], says: str) -> None:
    np.savez(programs / "x.npz", x=np.ones(3, np.float32))
    result = run("bench", *arguments)
    assert result.exit_code == 2 and result.stdout == ""
    assert len(result.stderr.splitlines()) == 1 and says in result.stderr
