"""What is wrong with an input is said in one line, with exit status 2, and raised typed by the library."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import fuser
from fuser import FuserError, InvalidInputError, InvalidModelError, UnsupportedOperatorError
from tests.conftest import ROOT, Run

PROGRAMS = ROOT / "tests" / "data" / "programs.py"


def save_model(path: Path, nodes: list[onnx.NodeProto], *domains: str) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    opsets = [helper.make_opsetid("", 18), *(helper.make_opsetid(domain, 1) for domain in domains)]
    onnx.save(helper.make_model(graph, opset_imports=opsets), path)


@pytest.fixture
def folder(tmp_path: Path, models: Path, llama: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder full of things that are no input, beside a model and inputs that are."""
    model = llama.read_bytes()
    (tmp_path / "good.onnx").write_bytes(model)
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "text.onnx").write_text("no model at all\n" * 20)
    (tmp_path / "noise.onnx").write_bytes(bytes(range(256)) * 8)
    for share in (1, 50, 99):
        (tmp_path / f"cut{share}.onnx").write_bytes(model[: len(model) * share // 100])
    (tmp_path / "dir.onnx").mkdir()
    save_model(
        tmp_path / "missing.onnx",
        [
            helper.make_node("Quux", ["x"], ["a"], name="first", domain="strange"),
            helper.make_node("StringNormalizer", ["x"], ["b"], name="second"),
            helper.make_node("Identity", ["x"], ["y"]),
        ],
        "strange",
    )
    save_model(tmp_path / "external.onnx", [helper.make_node("Neg", ["x"], ["y"])])
    shutil.copy(llama.parent / "inputs.npz", tmp_path / "in.npz")
    with np.load(tmp_path / "in.npz") as file:
        good = dict(file)
    ids, mask = good["input_ids"], good["attention_mask"]
    bad: dict[str, dict[str, Any]] = {
        "nokey": {"input_ids": ids},
        "extra": {**good, "token_type_ids": ids},
        "dtype": {**good, "input_ids": ids.astype(np.float32)},
        "narrow": {**good, "input_ids": ids.astype(np.int32)},
        "shape": {"input_ids": ids, "attention_mask": mask[:, :-1]},
        "rank": {**good, "input_ids": ids[0]},
        "text": {**good, "input_ids": np.full(ids.shape, "word")},
    }
    for name, arrays in bad.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
    np.savez(tmp_path / "objects.npz", input_ids=np.array([None]), attention_mask=mask)
    np.save(tmp_path / "array.npy", ids)
    (tmp_path / "notes.npz").write_text("no archive")
    (tmp_path / "none.npz").touch()
    (tmp_path / "cut.npz").write_bytes((tmp_path / "in.npz").read_bytes()[:200])
    shutil.copy(PROGRAMS, tmp_path / "programs.py")
    monkeypatch.delitem(sys.modules, "programs", raising=False)
    np.savez(tmp_path / "x.npz", x=np.zeros(3, np.float32))
    for name, text in {"broken": "1 +", "raises": "1 / 0", "leaves": "raise SystemExit(0)"}.items():
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "needs.py").write_text("import not_there_at_all")
    (tmp_path / "locked.npz").write_text("old")
    (tmp_path / "locked.npz").chmod(0o444)
    return tmp_path


RUN = ("run", "good.onnx", "--outputs", "out.npz", "--inputs")
CASES: dict[str, tuple[tuple[str, ...], str]] = {
    # MODEL
    "no such file": (("report", "nothing.onnx"), "no such file"),
    "no such path": (("report", "some/where/model.onnx"), "no such file"),
    "neither file nor function": (("report", "nothing"), "MODEL is an .onnx or .mlxfn file, or module:function"),
    "a folder": (("report", "dir.onnx"), "is a folder"),
    "the current folder": (("report", "."), "is a folder"),
    "an empty file": (("report", "empty.onnx"), "not an ONNX model"),
    "text": (("report", "text.onnx"), "text.onnx"),
    "noise": (("report", "noise.onnx"), "noise.onnx"),
    "a hundredth of a model": (("verify", "cut1.onnx"), "cut1.onnx"),
    "half a model": (("run", "cut50.onnx", "--inputs", "in.npz", "--outputs", "out.npz"), "cut50.onnx"),
    "most of a model": (("report", "cut99.onnx"), "cut99.onnx"),
    "missing operators": (("report", "missing.onnx"), "StringNormalizer"),
    "inputs for a model": (("report", "in.npz"), "in.npz"),
    # module:function
    "no such module": (("report", "no_such_module:f"), "no module 'no_such_module'"),
    "no such package": (("report", "no_such.module:f"), "no module 'no_such'"),
    "no such function": (("report", "programs:attnd"), "'programs' has no 'attnd'"),
    "no function at all": (("report", "programs:"), "module:function"),
    "a number": (("report", "programs:number"), "but of type int"),
    "a class": (("report", "programs:Block"), "is a class"),
    "a syntax error": (("report", "broken:f"), "cannot import 'broken': SyntaxError"),
    "an import that raises": (("report", "raises:f"), "cannot import 'raises': ZeroDivisionError"),
    "an import that leaves": (("report", "leaves:f"), "cannot import 'leaves': SystemExit"),
    "an import that needs another": (("report", "needs:f"), "not_there_at_all"),
    "a function that needs inputs": (("report", "programs:attend"), "needs 'q', 'k', 'v'"),
    "a parameter that is not there": (("report", "programs:plain", "--inputs", "in.npz"), "needs 'x'"),
    "a parameter too many": (("report", "programs:alone", "--inputs", "x.npz"), "has no parameter 'x'"),
    "a function that raises": (("report", "programs:fails", "--inputs", "x.npz"), "this program fails"),
    "a function that reads": (("report", "programs:reads", "--inputs", "x.npz"), "cannot trace"),
    "a function without arrays": (("run", "programs:nothing", "--outputs", "out.npz"), "gave no array"),
    # arrays
    "no such inputs": ((*RUN, "nothing.npz"), "no such file: 'nothing.npz'"),
    "inputs in a folder": ((*RUN, "dir.onnx"), "cannot read 'dir.onnx'"),
    "inputs that are text": ((*RUN, "notes.npz"), "no .npz file"),
    "inputs that are empty": ((*RUN, "none.npz"), "no .npz file"),
    "inputs cut off": ((*RUN, "cut.npz"), "no .npz file"),
    "inputs that are a model": ((*RUN, "good.onnx"), "no .npz file"),
    "one array without a name": ((*RUN, "array.npy"), "without a name"),
    "objects": ((*RUN, "objects.npz"), "no .npz file of plain arrays"),
    "words": ((*RUN, "text.npz"), "numbers only"),
    "an input is missing": ((*RUN, "nokey.npz"), "missing 'attention_mask'"),
    "an input too many": ((*RUN, "extra.npz"), "unknown 'token_type_ids'"),
    "floats for integers": ((*RUN, "dtype.npz"), "'input_ids' must be int64, but float32 came"),
    "narrow integers": ((*RUN, "narrow.npz"), "'input_ids' must be int64, but int32 came"),
    "sizes that do not fit": ((*RUN, "shape.npz"), "'attention_mask'"),
    "too few dimensions": ((*RUN, "rank.npz"), "2 dimensions"),
    "run without inputs": (("run", "good.onnx", "--outputs", "out.npz"), "--inputs"),
    # options
    "a dimension without size": (("report", "good.onnx", "--dim", "batch"), "name=size"),
    "a dimension without name": (("report", "good.onnx", "--dim", "=3"), "name=size"),
    "a size that is no number": (("report", "good.onnx", "--dim", "batch=two"), "name=size"),
    "a negative size": (("report", "good.onnx", "--dim", "batch=-2"), "name=size"),
    "a dimension that is not there": (("report", "good.onnx", "--dim", "tokens=2"), "it has batch, seq"),
    "dimensions and inputs": (("report", "good.onnx", "--dim", "seq=2", "--inputs", "in.npz"), "--dim"),
    "dimensions of a function": (("report", "programs:plain", "--dim", "n=2"), "ONNX"),
    "a tolerance that is no number": (("verify", "good.onnx", "--rtol", "small"), "--rtol"),
    "a tolerance below zero": (("verify", "good.onnx", "--rtol", "-1"), "0 or more"),
    "an option that is not there": (("report", "good.onnx", "--fast"), "--fast"),
    "a command that is not there": (("optimise", "good.onnx"), "optimise"),
    "no model": (("report",), "MODEL"),
    "no outputs": (("run", "good.onnx", "--inputs", "in.npz"), "--outputs"),
    # outputs
    "outputs in a folder that is not there": (
        ("run", "good.onnx", "--inputs", "in.npz", "--outputs", "no/where/out.npz"),
        "there is no folder 'no/where'",
    ),
    "outputs that are a folder": (
        ("run", "good.onnx", "--inputs", "in.npz", "--outputs", "dir.onnx"),
        "it is a folder",
    ),
    "outputs that are read-only": (
        ("run", "good.onnx", "--inputs", "in.npz", "--outputs", "locked.npz"),
        "read-only",
    ),
    "JSON into a folder": (("report", "good.onnx", "--json", "dir.onnx"), "it is a folder"),
    "JSON that is read-only": (("report", "good.onnx", "--json", "locked.npz"), "read-only"),
}


@pytest.mark.parametrize(("arguments", "says"), CASES.values(), ids=CASES.keys())
def test_one_line_and_status_2(run: Run, folder: Path, arguments: tuple[str, ...], says: str) -> None:
    before = sorted(folder.glob("*.*"))
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if not line.startswith("assumed ")]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ") and says in lines[0]
    assert "Traceback" not in result.stderr and "Errno" not in result.stderr
    assert sorted(folder.glob("*.*")) == before


def test_missing_operators_are_all_listed_with_their_nodes(run: Run, folder: Path) -> None:
    line = run("report", "missing.onnx").stderr
    for part in ("Quux", "first", "StringNormalizer", "second"):
        assert part in line


def test_the_traceback_is_there_for_who_wants_it(run: Run, folder: Path) -> None:
    with pytest.raises(RuntimeError, match="this program fails"):
        run("--traceback", "report", "programs:fails", "--inputs", "x.npz")


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("nothing.onnx", InvalidModelError),
        ("dir.onnx", InvalidModelError),
        ("empty.onnx", InvalidModelError),
        ("text.onnx", InvalidModelError),
        ("noise.onnx", InvalidModelError),
        ("cut1.onnx", InvalidModelError),
        ("cut50.onnx", InvalidModelError),
        ("cut99.onnx", InvalidModelError),
        ("missing.onnx", UnsupportedOperatorError),
    ],
)
def test_the_library_raises_typed(folder: Path, name: str, error: type[FuserError]) -> None:
    with pytest.raises(error) as raised:
        fuser.load_onnx(folder / name)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["nokey", "extra", "dtype", "narrow", "shape", "rank", "text"])
def test_wrong_inputs_raise_typed(folder: Path, name: str) -> None:
    model = fuser.load_onnx(folder / "good.onnx")
    with np.load(folder / f"{name}.npz") as file:
        inputs = dict(file)
    for call in (model, lambda **given: fuser.verify(model, **given), lambda **given: fuser.explain(model, **given)):
        with pytest.raises(InvalidInputError) as raised:
            call(**inputs)
        assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("share", [3, 10, 30, 70, 95])
def test_flipped_bytes_are_a_typed_error_or_a_model(folder: Path, share: int) -> None:
    """Whatever a damaged file holds, nothing but fuser's own errors comes out of loading it."""
    data = bytearray((folder / "good.onnx").read_bytes())
    random = np.random.default_rng(share)
    for place in random.integers(0, len(data), 200):
        data[place] ^= int(random.integers(1, 256))
    (folder / "damaged.onnx").write_bytes(data)
    try:
        fuser.load_onnx(folder / "damaged.onnx")
    except FuserError as error:
        assert len(str(error).splitlines()) == 1
