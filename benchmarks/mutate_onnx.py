"""Damages ONNX models in many ways: each must give a right answer or one typed error, soon and in little memory.

    python benchmarks/mutate_onnx.py [COUNT] [--seed 0] [--first 0] [--only cycle,bytes] [--large 64] [--keep FOLDER]

Every mutant is loaded and run in a process of its own, with 10 s and 1 GB more than the interpreter and its libraries
take, and so is the answer of ONNX Runtime that it is compared with; where that refuses a model that fuser runs, the
fused program is compared with the unfused one. Models come from `examples/models` and from `tests/onnx_mutants.py`,
where the mutations are. Prints what came of each kind; exit status 1 when there was a crash, a hang, an error without
type, or an answer that differs. `--large` is the size from which weights are read where they are in the file, and
`--keep` writes those models into a folder.
"""

from __future__ import annotations

import argparse
import os
import pickle
import resource
import select
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlx.core as mx
import numpy as np
import onnx
import onnxruntime as ort

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import fuser  # noqa: E402
from fuser.frontends.onnx import load  # noqa: E402
from fuser.frontends.onnx_file import LARGE  # noqa: E402
from fuser.model import Model  # noqa: E402
from tests.onnx_mutants import KINDS, SOURCES, mutant, sources  # noqa: E402

SECONDS, BYTES = 10, 1 << 30
Arrays = dict[str, Any]
BAD = ("crash", "hang", "untyped", "differs")


def isolated(work: Callable[[], Any]) -> tuple[str, Any]:
    """What `work` gives in a child with limits: `("done", result)`, `("crash", signal)` or `("hang", None)`."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (taken + BYTES, taken + BYTES))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            said = pickle.dumps(work())
            with os.fdopen(write, "wb") as pipe:
                pipe.write(said)
        finally:
            os._exit(0)
    os.close(write)
    until, said = time.monotonic() + SECONDS, b""
    while (left := until - time.monotonic()) > 0 and select.select([read], [], [], left)[0]:
        part = os.read(read, 1 << 20)
        if not part:
            break
        said += part
    else:
        os.kill(child, signal.SIGKILL)
    os.close(read)
    _, status = os.waitpid(child, 0)
    if left <= 0:
        return "hang", None
    if not said:
        return "crash", os.WTERMSIG(status) if os.WIFSIGNALED(status) else "no answer"
    return "done", pickle.loads(said)


def ours(path: Path, inputs: Arrays, large: int) -> tuple[str, Any]:
    """The fused answer and the unfused one, or the error."""
    try:
        model = Model(load(path, large=large))
        outputs = model(**inputs)
        mx.eval(outputs)
        got = {name: _host(array) for name, array in outputs.items()}
        program = load(path, large=large)
        plain = program(**program.prepare(inputs))
        return "answer", (got, {name: _host(array) for name, array in plain.items()})
    except fuser.FuserError as error:
        return ("untyped" if "\n" in str(error) else "typed"), f"{type(error).__name__}: {error}"
    except BaseException as error:
        return "untyped", f"{type(error).__name__}: {error}"


def _host(array: mx.array) -> np.ndarray:
    return np.array(array.astype(mx.float32) if array.dtype == mx.bfloat16 else array)


def runtime(path: Path, inputs: Arrays) -> tuple[str, Any]:
    """ONNX Runtime's answer, or its error."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        session = ort.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        names = [value.name for value in session.get_outputs()]
        return "answer", dict(zip(names, session.run(names, inputs), strict=True))
    except Exception as error:
        return "refused", str(error)


def close(got: np.ndarray, expected: np.ndarray) -> bool:
    """Whether two answers are the same but for rounding."""
    if got.shape != expected.shape:
        return False
    if expected.dtype.kind not in "fc":
        return bool((got == expected).all())
    finite = np.isfinite(expected) & np.isfinite(got)
    if not finite.any():
        return True
    largest = float(np.abs(expected[finite]).max())
    error = float(np.abs(got[finite].astype(np.float64) - expected[finite]).max())
    return error <= 1e-3 * largest + 1e-6 and bool((np.isnan(got) == np.isnan(expected)).all())


def overflows(path: Path) -> bool:
    """Whether a weight was flipped to be so large that products overflow, which depends on their order."""
    for tensor in onnx.load(path).graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype.kind == "f" and not (np.abs(values) < 1e15).all():
            return True
    return False


def judge(path: Path, inputs: Arrays, large: int) -> tuple[str, str]:
    """What came of one model: a verdict, and more words."""
    how, result = isolated(lambda: ours(path, inputs, large))
    if how != "done":
        return how, str(result)
    verdict, found = result
    if verdict != "answer":
        return verdict, found
    got, plain = found
    how, result = isolated(lambda: runtime(path, inputs))
    if how == "done" and result[0] == "answer":
        wrong = [name for name, array in result[1].items() if not close(got[name], array)]
        if wrong and overflows(path):
            return "right", "not compared: weights of 1e15 and more"
        return ("differs", f"from ONNX Runtime in {wrong}") if wrong else ("right", "as ONNX Runtime")
    wrong = [name for name in plain if not close(got[name], plain[name])]
    said = "refuses" if how == "done" else "crashes" if how == "crash" else "hangs"
    return ("differs", f"from unfused in {wrong}") if wrong else ("right", f"as unfused; ONNX Runtime {said}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs damaged ONNX models.")
    parser.add_argument("count", type=int, nargs="?", default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first mutant")
    parser.add_argument("--only", default="", help="kinds, with commas, of " + ", ".join(KINDS))
    parser.add_argument("--large", type=int, default=LARGE, help="bytes from which weights stay in the file")
    parser.add_argument("--keep", type=Path, help="write bad ones into this folder")
    options = parser.parse_args()
    only = [kind for kind in KINDS if kind in options.only.split(",")] or list(KINDS)
    mx.disable_compile()
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    models = sources(SOURCES)
    bad = 0
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        for number in range(options.first, options.first + options.count):
            kind = only[number % len(only)]
            name, content, inputs = mutant(models, kind, options.seed, number)
            path.write_bytes(content)
            verdict, said = judge(path, inputs, options.large)
            counts[kind][said if verdict == "right" else verdict] += 1
            if verdict in BAD:
                bad += 1
                print(f"{number} {kind} of {name}: {verdict}: {said[:200]}", flush=True)
                if options.keep:
                    options.keep.mkdir(parents=True, exist_ok=True)
                    (options.keep / f"{number}_{kind}_{name}.onnx").write_bytes(content)
    for kind, found in sorted(counts.items()):
        print(f"{kind:12}" + ", ".join(f"{count} {verdict}" for verdict, count in found.most_common()))
    total = sum(counts.values(), Counter())
    print(f"{total.total()} mutants: " + ", ".join(f"{count} {verdict}" for verdict, count in total.most_common()))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
