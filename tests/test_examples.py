"""The real exports agree with ONNX Runtime, all their attentions fused; and the examples run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import fuser
from fuser.cli_programs import program
from tests.conftest import ROOT, read_export

BUNDLED = sorted(path.parent for path in ROOT.glob("examples/models/*/model.onnx"))
# more of the same kind, where the project is developed
MORE = [path.parent for path in sorted(ROOT.glob("../shared/corpus/*/model.onnx"))]
FOLDERS = BUNDLED + [folder for folder in MORE if folder.name not in {each.name for each in BUNDLED}]
TOLERANCE = 1e-4


def example(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=300)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_real_export_agrees_with_onnx_runtime(folder: Path) -> None:
    export = read_export(folder)
    model = fuser.load_onnx(export.path)
    assert export.sets
    for inputs, expected in export.sets:
        got = model(**inputs)
        assert set(got) == set(expected)
        for name, array in got.items():
            want = expected[name]
            finite = np.isfinite(want)
            np.testing.assert_array_equal(np.asarray(array)[~finite], want[~finite])
            np.testing.assert_allclose(
                np.asarray(array)[finite], want[finite], rtol=0, atol=TOLERANCE * np.abs(want[finite]).max()
            )
        assert len(model.report.regions) == export.truth
        assert model.report.counts["fused"] == export.truth


@pytest.mark.parametrize("folder", BUNDLED, ids=lambda folder: folder.name)
def test_unfused_it_is_the_same_program(folder: Path) -> None:
    export = read_export(folder)
    model = fuser.load_onnx(export.path, fuse=False)
    inputs, expected = export.sets[0]
    for name, array in model(**inputs).items():
        np.testing.assert_allclose(np.asarray(array), expected[name], rtol=0, atol=1e-4)
    assert model.report.regions == ()


def test_grouped_heads_stay_grouped(models: Path) -> None:
    model = fuser.load_onnx(models / "llama__eager__ts17" / "model.onnx")
    model(**read_export(models / "llama__eager__ts17").sets[0][0])
    for region in model.report.regions:
        assert (region.query_heads, region.key_heads) == (8, 2)
        assert region.k is not None and region.k.shape[1] == 2


def test_the_decoder_fuses_to_causal_attention() -> None:
    sample = program("examples.decoder:sample").fn
    tokens = mx.arange(24).reshape(2, 12)
    fast = fuser.optimize(sample)
    assert mx.allclose(fast(tokens), sample(tokens), atol=1e-4).item()
    assert [(region.mask, region.query_heads, region.key_heads) for region in fast.report.regions] == [
        ("causal", 8, 2)
    ] * 4
    assert [region.name for region in fast.report.regions] == [f"layers.{i}.self_attn" for i in range(4)]


def test_the_demo_runs() -> None:
    done = example("examples/demo.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PROBLEM" not in done.stdout and done.stderr == ""
    for folder in BUNDLED:
        assert folder.name.replace("__", " ") in done.stdout or folder.name in done.stdout
    for text in ("6 of 6", "8→2", "causal", "top-k", "mx.compile", "peak memory"):
        assert text in done.stdout


def test_the_quickstart_runs() -> None:
    done = example("examples/quickstart.py")
    assert done.returncode == 0, done.stderr
    assert "attention: 1 fused" in done.stdout and "mask causal" in done.stdout
    assert "2 fused" in done.stdout and "DIFFERS" not in done.stdout


def test_the_bundle_is_small() -> None:
    files = [path for path in (ROOT / "examples" / "models").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 5_000_000
