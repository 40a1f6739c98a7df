"""Runs exported models through fuser: do the answers agree with the stored ones, is every attention fused?

    python benchmarks/check_exports.py [ROOT ...] [--only bert,llama] [--json FILE] [--no-fuse] [--no-compile]

Every folder under the roots that has `model.onnx`, `io.npz` and `meta.json` (as `export_models.py` writes
them) is loaded, run on each of its sets of inputs, and compared: NaN where NaN is stored, and elsewhere an
error of at most 1e-4 (2e-2 for float16 models) of the output's largest value. By default the root is `examples`.
`--no-fuse` runs the ONNX frontend alone. The exit status is 1 when any model disagrees or does not run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import TimeoutError as Late
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from rich.console import Console
from rich.table import Table

TOLERANCE = {"float32": 1e-4, "float16": 2e-2}  # by what the model computes in
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
Arrays = dict[str, np.ndarray]
LOAD: dict[str, Callable[[str], Callable[..., Mapping[str, mx.array]]]] = {}  # how a worker loads models


@dataclass
class Row:
    """What came of one model."""

    model: str
    nodes: int
    truth: int
    sets: int = 0
    agreed: int = 0
    error: float = 0.0  # the largest of all sets, relative to the largest output
    found: int | None = None  # attentions in the fused kernel, in the set with the fewest
    counts: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    failure: str = ""
    seconds: float = 0.0
    slowest: float = 0.0  # the first call of the slowest set

    @property
    def good(self) -> bool:
        """Whether every set ran and agreed."""
        return not self.failure and self.agreed == self.sets


def folders(roots: list[Path]) -> Iterator[Path]:
    for root in roots:
        for meta in sorted(root.rglob("meta.json")):
            if (meta.parent / "model.onnx").exists() and (meta.parent / "io.npz").exists():
                yield meta.parent


def prepare(fuse: bool, compile: bool) -> None:
    """Makes a worker ready: `fuser.load_onnx`, or the frontend alone."""
    import fuser
    from fuser.frontends.onnx import load

    if not compile:
        mx.disable_compile()
    LOAD["load"] = fuser.load_onnx if fuse else load


def read_sets(folder: Path) -> Iterator[tuple[str, Arrays, Arrays]]:
    """The label, inputs and expected outputs of each set."""
    meta = json.loads((folder / "meta.json").read_text())
    with np.load(folder / "io.npz") as arrays:
        for entry in meta["sets"]:
            inputs, outputs = (
                {name.removeprefix(start): arrays[name] for name in arrays if name.startswith(start)}
                for start in (f"set{entry['set']}/in/", f"set{entry['set']}/out/")
            )
            yield entry["label"], inputs, outputs


def difference(got: np.ndarray, expected: np.ndarray, tolerance: float) -> tuple[float, str]:
    """The relative error, and what else is wrong."""
    if got.shape != expected.shape:
        return float("inf"), f"shape {got.shape}, not {expected.shape}"
    if got.dtype != expected.dtype:
        return float("inf"), f"type {got.dtype}, not {expected.dtype}"
    if expected.dtype.kind not in "fc":
        wrong = int((got != expected).sum())
        return (float("inf"), f"{wrong} of {got.size} differ") if wrong else (0.0, "")
    if not np.array_equal(np.isnan(got), np.isnan(expected)):
        return float("inf"), f"{np.isnan(got).sum()} NaN, not {np.isnan(expected).sum()}"
    finite = np.isfinite(expected)
    if not np.array_equal(got[~finite], expected[~finite], equal_nan=True):
        return float("inf"), "infinities differ"
    if not finite.any():
        return 0.0, ""
    largest = float(np.abs(expected[finite]).max()) or 1.0
    error = float(np.abs(got[finite].astype(np.float64) - expected[finite]).max()) / largest
    return error, "" if error <= tolerance else f"error {error:.1e}"


def blank(folder: Path) -> Row:
    meta = json.loads((folder / "meta.json").read_text())
    return Row(meta["name"], meta["nodes"], meta["truth"], sets=len(meta["sets"]))


def check(folder: Path) -> Row:
    row = blank(folder)
    tolerance = TOLERANCE[json.loads((folder / "meta.json").read_text()).get("dtype", "float32")]
    began = time.perf_counter()
    try:
        model = LOAD["load"](str(folder / "model.onnx"))
        for label, inputs, expected in read_sets(folder):
            started = time.perf_counter()
            outputs = model(**{name: mx.array(array) for name, array in inputs.items()})
            mx.eval(outputs)
            row.slowest = max(row.slowest, time.perf_counter() - started)
            wrong = []
            for name, array in expected.items():
                error, what = difference(np.array(outputs[name]), array, tolerance)
                row.error = max(row.error, error)
                wrong += [f"{label}: {name}: {what}"] if what else []
            row.agreed += not wrong
            row.failure = row.failure or (wrong[0] if wrong else "")
            if report := getattr(model, "report", None):
                account(row, report)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        row.failure = f"{type(error).__name__}: {lines[0]}"[:300]
    row.seconds = time.perf_counter() - began
    mx.clear_cache()
    return row


def account(row: Row, report: Any) -> None:
    """Keeps the report of the set in which the fewest attentions are in the fused kernel."""
    counts = dict(report.counts)
    found = counts.get("fused", 0) + counts.get("already fused", 0)
    if row.found is not None and found >= row.found:
        return
    row.found, row.counts = found, counts
    verdicts = ["refused"]
    if found + counts.get("refused", 0) < row.truth:
        verdicts.append("not attention")  # an attention must be among them
    said = Counter(
        f"{r.reason} (at {r.at})" if r.at else str(r.reason) for r in report.regions if r.verdict in verdicts
    )
    row.reasons = dict(said)


def shown(rows: list[Row]) -> Table:
    table = Table("model", "nodes", "sets", "error", "fused", "why not", "seconds", title="Exported models")
    for row in rows:
        colour = "green" if row.good else "red"
        fused = "" if row.found is None else f"{row.found}/{row.truth}"
        if row.found is not None and row.found != row.truth:
            fused = f"[yellow]{fused}[/]"
        reasons = [f"{count} x {reason}" for reason, count in row.reasons.items()]
        why = "\n".join(text.replace("[", "\\[") for text in [row.failure, *reasons] if text)
        agreed = f"[{colour}]{row.agreed}/{row.sets}[/]"
        table.add_row(row.model, str(row.nodes), agreed, f"{row.error:.0e}", fused, why, f"{row.seconds:.1f}")
    return table


def summary(rows: list[Row]) -> str:
    good = sum(row.good for row in rows)
    text = f"{good} of {len(rows)} models agree"
    known = [row for row in rows if row.found is not None]
    if known:
        found, truth = sum(row.found or 0 for row in known), sum(row.truth for row in known)
        whole = sum(row.found == row.truth for row in known)
        text += f"; {found} of {truth} attentions are fused, all of them in {whole} of {len(known)} models"
    return text + f"; {sum(row.seconds for row in rows):.0f} s"


class Worker:
    """Another process, one model at a time: what crashes or hangs there is a row, too."""

    def __init__(self, fuse: bool, compile: bool, seconds: float) -> None:
        self.given, self.seconds = (fuse, compile), seconds
        prepare(*self.given)  # what cannot be imported is seen here
        self.pool: ProcessPoolExecutor | None = None

    def check(self, folder: Path) -> Row:
        """The row of a folder."""
        self.pool = self.pool or ProcessPoolExecutor(1, get_context("spawn"), prepare, self.given)
        try:
            return self.pool.submit(check, folder).result(self.seconds)
        except (BrokenProcessPool, Late) as error:
            self.close(kill=True)
            row = blank(folder)
            row.failure = "crashed" if isinstance(error, BrokenProcessPool) else f"longer than {self.seconds:g} s"
            return row

    def close(self, kill: bool = False) -> None:
        """Ends the process."""
        if self.pool:
            for process in list((self.pool._processes or {}).values()) if kill else ():
                process.kill()
            self.pool.shutdown(cancel_futures=True)
        self.pool = None


def main() -> int:
    parser = argparse.ArgumentParser(description="Checks exported models against their stored outputs.")
    parser.add_argument("roots", type=Path, nargs="*", default=[EXAMPLES])
    parser.add_argument("--only", default="", help="architectures or whole names, with commas")
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--no-fuse", action="store_true", help="the ONNX frontend alone")
    parser.add_argument("--no-compile", action="store_true", help="without mx.compile, which is slow on a CPU")
    parser.add_argument("--bad", action="store_true", help="show only what disagrees or is not wholly fused")
    parser.add_argument("--seconds", type=float, default=120, help="limit for one model")
    parser.add_argument("--width", type=int, help="of the table, in characters")
    options = parser.parse_args()
    only = set(filter(None, options.only.split(",")))
    worker = Worker(not options.no_fuse, not options.no_compile, options.seconds)
    rows: list[Row] = []
    errors = Console(stderr=True)
    for folder in folders(options.roots):
        if only and not only & {folder.name, folder.name.split("__")[0]}:
            continue
        row = worker.check(folder)
        rows.append(row)
        if not row.good:
            errors.print(f"{row.model}: {row.failure}", markup=False, highlight=False)
    worker.close()
    chosen = [row for row in rows if not options.bad or not row.good or row.found not in (None, row.truth)]
    console = Console(width=options.width)
    console.print(shown(chosen))
    console.print(summary(rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    if not rows:
        errors.print("no exported models there")
    return 0 if rows and all(row.good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
