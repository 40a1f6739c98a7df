"""Compares fusers of attention for ONNX: fuser, onnxscript's rewriter and ONNX Runtime's Python optimizer.

    python benchmarks/peers.py [ROOT ...] [--python PATH] [--only bert,llama] [--markdown] [--json FILE]

Every folder under the roots with `model.onnx`, `io.npz` and `meta.json` (as `export_models.py` writes them; by default
`examples/models`) is converted by each. For each result: how many attentions became one operator (of those that the
model has), whether it is valid (for ONNX's checker and ONNX Runtime), and whether ONNX Runtime's answers are right:
those stored for every set of inputs, NaN where NaN is stored, else within 1e-4 (2e-2 in half precision) of the largest
value. Times are those of loading, converting and writing.

Needs: pip install onnxruntime onnxscript torch (in the Python that `--python` names, if not in this one).
onnxscript's rewriter is run for its standard `Attention` (`onnx_fusions.fuse`) and for ONNX Runtime's operators
(`ort_fusions.optimize_for_ort`). ONNX Runtime's optimizer wants to be told the type of model: it is given every type
that it has, and the one that fuses most counts.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import io
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

EXAMPLES = Path(__file__).resolve().parent.parent / "examples" / "models"
OPERATORS = ("Attention", "MultiHeadAttention", "GroupQueryAttention", "PackedAttention", "PackedMultiHeadAttention")
TYPES = ("bert", "bart", "gpt2", "t5", "vit", "clip", "unet", "phi", "qwen3", "gpt_neox", "conformer", "swin")
TOLERANCE = {"float16": 2e-2}  # other types: 1e-4
LIMIT = 600  # seconds for one conversion
NAMES = {
    "fuser": "fuser",
    "fuser-18": "fuser --opset 18",
    "script": "onnxscript, Attention",
    "script-ort": "onnxscript, ort_fusions",
    "ort": "ONNX Runtime optimizer",
}


@dataclass
class Row:
    """What one converter made of one model."""

    sites: int = 0
    seconds: float = 0.0
    valid: bool = False
    right: bool = False
    note: str = ""


@dataclass
class Score:
    """What one converter made of all models."""

    fused: int = 0
    seconds: float = 0.0
    valid: int = 0
    right: int = 0
    models: int = 0
    kept: int = 0
    """Attentions that became operators in models that are right."""
    wrong: list[str] = field(default_factory=list)


# -- what runs in a process of its own -------------------------------------------------------------------------------


def by_fuser(source: Path, target: Path, opset: int | None = None) -> None:
    from fuser.export.onnx import OpsetError, export_onnx

    try:
        export_onnx(source, target, opset=opset, force=True)
    except OpsetError:  # the model is of a higher opset already
        export_onnx(source, target, force=True)


def by_script(source: Path, target: Path) -> None:
    ir = importlib.import_module("onnx_ir")
    model = ir.load(source)
    importlib.import_module("onnxscript.optimizer").optimize(model)
    model = importlib.import_module("onnxscript.version_converter").convert_version(model, 23, fallback=True) or model
    importlib.import_module("onnxscript.rewriter.onnx_fusions").fuse(model)
    ir.save(model, target)


def by_script_for_ort(source: Path, target: Path) -> None:
    ir = importlib.import_module("onnx_ir")
    model = ir.load(source)
    importlib.import_module("onnxscript.optimizer").optimize(model)
    fused, _ = importlib.import_module("onnxscript.rewriter.ort_fusions").optimize_for_ort(model)
    ir.save(fused, target)


def by_optimizer(source: Path, target: Path) -> list[dict[str, Any]]:
    """One file for each type of model; their numbers of operators and seconds, most operators first."""
    optimizer = importlib.import_module("onnxruntime.transformers.optimizer")
    found = []
    for kind in TYPES:
        path = target.with_name(f"{kind}.onnx")
        start = time.perf_counter()
        try:
            made = optimizer.optimize_model(str(source), kind)
            made.save_model_to_file(str(path))
        except Exception:
            continue
        sites = sum(node.op_type in OPERATORS for node in made.nodes())
        found.append({"path": str(path), "sites": sites, "seconds": time.perf_counter() - start})
    return sorted(found, key=lambda each: -int(each["sites"]))


def convert(who: str, source: Path, target: Path) -> float:
    """Convert a model; the seconds that it took, imports aside."""
    calls: dict[str, Callable[[], None]] = {
        "fuser": lambda: by_fuser(source, target),
        "fuser-18": lambda: by_fuser(source, target, 18),
        "script": lambda: by_script(source, target),
        "script-ort": lambda: by_script_for_ort(source, target),
    }
    importlib.import_module("fuser.export.onnx" if who.startswith("fuser") else "onnxscript.rewriter.ort_fusions")
    start = time.perf_counter()
    calls[who]()
    return time.perf_counter() - start


def check(folder: Path, path: Path) -> dict[str, Any]:
    """Whether a converted model is valid and right, and how many operators it has."""
    onnx = importlib.import_module("onnx")
    runtime = importlib.import_module("onnxruntime")
    model = onnx.load(path)
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    found: dict[str, Any] = {"sites": sum(node.op_type in OPERATORS for node in nodes), "valid": False, "right": False}
    note = ""
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # ONNX Runtime may run it still: its tools put operators of its own into ONNX's domain
        note = f"invalid: {str(error).strip().splitlines()[0][:120]}"
    try:
        options = runtime.SessionOptions()
        options.log_severity_level = 4
        session = runtime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    except Exception as error:
        return found | {"note": note or f"no session: {str(error).strip().splitlines()[0][:120]}"}
    sets: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
    with np.load(folder / "io.npz") as arrays:
        for key in arrays.files:
            number, way, name = key.split("/", 2)
            sets.setdefault(number, ({}, {}))[way == "out"][name] = arrays[key]
    worst = 0.0
    for inputs, outputs in sets.values():
        try:
            results = session.run(list(outputs), inputs)
        except Exception as error:
            return found | {"note": f"does not run: {str(error).strip().splitlines()[0][:120]}"}
        worst = max([worst, *map(error_of, results, outputs.values())])
    note = note or ("" if worst <= 1 else f"wrong by {worst:.1g} tolerances")
    return found | {"valid": not note.startswith("invalid"), "right": worst <= 1, "note": note}


def error_of(got: Any, want: Any) -> float:
    """The largest error in tolerances."""
    if got.shape != want.shape:
        return float("inf")
    if want.dtype.kind != "f":
        return 0.0 if np.array_equal(got, want) else float("inf")
    finite = np.isfinite(want)
    if not np.array_equal(np.isfinite(got), finite) or not np.array_equal(got[~finite], want[~finite], equal_nan=True):
        return float("inf")
    if not finite.any():
        return 0.0
    largest = float(np.abs(want[finite]).max()) or 1.0
    error = float(np.abs(got[finite].astype(np.float64) - want[finite]).max())
    return error / largest / TOLERANCE.get(str(want.dtype), 1e-4)


def work(arguments: Sequence[str]) -> None:
    """What a process is started for: one line of JSON on stdout."""
    with contextlib.redirect_stdout(io.StringIO()):
        if arguments[0] == "check":
            answer: dict[str, Any] = check(Path(arguments[1]), Path(arguments[2]))
        elif arguments[0] == "versions":
            answer = {}
            for name in arguments[1:]:
                with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                    answer[name] = importlib.metadata.version(name)
        else:
            source, target = Path(arguments[1]), Path(arguments[2])
            try:
                made = by_optimizer(source, target) if arguments[0] == "ort" else convert(arguments[0], source, target)
                answer = {"made": made}
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:120]}"}
    print(json.dumps(answer))


# -- the comparison --------------------------------------------------------------------------------------------------


def ask(python: str, *arguments: object) -> dict[str, Any]:
    command = [python, str(Path(__file__).resolve()), "--work", *map(str, arguments)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return {"error": f"it took more than {LIMIT} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return {"error": last[:160]}
    return dict(json.loads(lines[-1]))


def row(who: str, python: str, checker: str, folder: Path, out: Path) -> Row:
    out.unlink(missing_ok=True)
    answer = ask(python, who, folder / "model.onnx", out)
    if "error" in answer:
        return Row(note=str(answer["error"]))
    return checked(checker, folder, out, answer["made"])


def checked(checker: str, folder: Path, out: Path, seconds: float) -> Row:
    found = ask(checker, "check", folder, out)
    if "error" in found:
        return Row(seconds=seconds, note=str(found["error"]))
    return Row(found["sites"], seconds, found["valid"], found["right"], found.get("note", ""))


def best(folder: Path, python: str, out: Path) -> Row:
    """ONNX Runtime's optimizer with the type that fuses most; of several such, with one that is right."""
    answer = ask(python, "ort", folder / "model.onnx", out)
    made = answer.get("made") or []
    if not made:
        return Row(note=str(answer.get("error", "no type of model worked")))
    rows: list[Row] = []
    for each in made:
        if each["sites"] == made[0]["sites"] and not any(found.right for found in rows):
            rows.append(checked(python, folder, Path(each["path"]), each["seconds"]))
    return next((each for each in rows if each.right), rows[0])


def compare(folders: Sequence[Path], python: str) -> dict[str, dict[str, Row]]:
    rows: dict[str, dict[str, Row]] = {}
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "out.onnx"
        for folder in folders:
            rows[folder.name] = {
                who: best(folder, python, out)
                if who == "ort"
                else row(who, sys.executable if who.startswith("fuser") else python, python, folder, out)
                for who in NAMES
            }
            print(
                f"{folder.name}: " + ", ".join(f"{w} {r.sites}" for w, r in rows[folder.name].items()), file=sys.stderr
            )
    return rows


def scores(rows: dict[str, dict[str, Row]], truths: dict[str, int]) -> dict[str, Score]:
    table = {who: Score() for who in NAMES}
    for model, found in rows.items():
        for who, each in found.items():
            score = table[who]
            score.models += 1
            score.fused += min(each.sites, truths[model])
            score.kept += min(each.sites, truths[model]) if each.right else 0
            score.seconds += each.seconds
            score.valid += each.valid
            score.right += each.right
            if not (each.right and each.valid):
                score.wrong.append(f"{model} ({each.note})")
    return table


def show(table: dict[str, Score], rows: dict[str, dict[str, Row]], truths: dict[str, int], markdown: bool) -> None:
    total = sum(truths.values())
    head = ["", "fused", "of these in right models", "valid", "right", "seconds"]
    lines = [
        [NAMES[who], f"{s.fused} of {total}", str(s.kept), f"{s.valid} of {s.models}", f"{s.right} of {s.models}",
         f"{s.seconds:.1f}"]
        for who, s in table.items()
    ]  # fmt: skip
    if markdown:
        print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
        print("\n".join("| " + " | ".join(line) + " |" for line in lines))
    else:
        from rich.console import Console
        from rich.table import Table

        console = Console()
        console.width = max(console.width, 132)
        for title, names, body in (
            (
                "each model: attentions fused, of those it has",
                ["model", "has", *NAMES.values()],
                each_model(rows, truths),
            ),
            ("all models", head, lines),
        ):
            made = Table(title=title)
            for place, name in enumerate(names):
                made.add_column(name, justify="right" if place else "left")
            for line in body:
                made.add_row(*line)
            console.print(made)
    for who, score in table.items():
        for text in score.wrong:
            print(f"{NAMES[who]}: {text}", file=sys.stderr)


def each_model(rows: dict[str, dict[str, Row]], truths: dict[str, int]) -> list[list[str]]:
    def cell(each: Row) -> str:
        return f"{each.sites}{'' if each.valid else ' invalid'}{'' if each.right else ' wrong'}"

    return [[name, str(truths[name]), *(cell(each) for each in found.values())] for name, found in rows.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", nargs="*", type=Path, default=[EXAMPLES])
    parser.add_argument("--python", default=sys.executable, help="the Python with onnxruntime and onnxscript")
    parser.add_argument("--only", default="", help="models whose names contain one of these")
    parser.add_argument("--markdown", action="store_true", help="print the table of totals as Markdown")
    parser.add_argument("--json", type=Path, help="write all results")
    options = parser.parse_args()
    wanted = [word for word in options.only.split(",") if word]
    folders = sorted(path.parent for root in options.roots for path in root.rglob("meta.json"))
    folders = [each for each in folders if not wanted or any(word in each.name for word in wanted)]
    theirs = ask(options.python, "versions", "onnx", "onnxruntime", "onnxscript", "onnx-ir", "torch")
    missing = [name for name in ("onnxruntime", "onnxscript", "torch") if name not in theirs]
    if missing:
        sys.exit(f"{options.python} lacks {', '.join(missing)}: pip install onnxruntime onnxscript torch")
    ours = ask(sys.executable, "versions", "mlx-fuser", "mlx", "onnx")
    rows = compare(folders, options.python)
    truths = {each.name: int(json.loads((each / "meta.json").read_text())["truth"]) for each in folders}
    table = scores(rows, truths)
    show(table, rows, truths, options.markdown)
    versions = ", ".join(f"{name} {version}" for name, version in {**theirs, **ours}.items())
    print(f"{len(folders)} models, {sum(truths.values())} attentions; {versions}; Python {platform.python_version()}")
    if options.json is not None:
        found = {name: {who: vars(each) for who, each in found.items()} for name, found in rows.items()}
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2:])
    else:
        main()
