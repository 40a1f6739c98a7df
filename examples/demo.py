"""The main job on real models: find every attention, fuse it, run, and compare. `make demo` runs this.

Real exports first (see `examples/models/README.md`), against ONNX Runtime's stored outputs; then a decoder
written for MLX the plain way, against itself, with what fusing is worth on this machine. The exit status is 1
when an attention of these is not fused or an answer differs.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
from decoder import Config, Decoder
from rich import box
from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

import fuser
from fuser.cli_report import console
from fuser.report_text import amount, heads_of

MODELS = Path(__file__).parent / "models"
# Gemma 2 caps its scores with tanh, which MLX's kernel cannot do: our own does it, on CPUs
CAPPED = "gemma2__eager__ts17"
SHOWN = "llama__sdpa__dyn18"
# of the largest output
TOLERANCE = 1e-4


def main() -> int:
    out = console()
    problems = exports(out) + decoder(out)
    for problem in problems:
        out.print(Text(f"PROBLEM: {problem}", "bold red"))
    return 1 if problems else 0


# -- real exports --------------------------------------------------------------------------------------------


def exports(out: Console) -> list[str]:
    """Every bundled model against ONNX Runtime."""
    heading(out, "Real exports of torch, against ONNX Runtime's outputs")
    table = plain_table("model", "exporter", "inputs", "fused", "mask", "heads", "max error", "ms")
    problems, reports = [], {}
    folders = sorted(path for path in MODELS.iterdir() if path.is_dir())
    for folder in folders:
        meta = json.loads((folder / "meta.json").read_text())
        start = time.perf_counter()
        model = fuser.load_onnx(folder / "model.onnx")
        seconds = time.perf_counter() - start
        error, sets = 0.0, stored(folder)
        for inputs, expected in sets:
            got = model(**inputs)
            seconds += sum(model.report.seconds.values())
            error = max([error, *(difference(expected[name], np.asarray(array)) for name, array in got.items())])
        report = reports[folder.name] = model.report
        if error > TOLERANCE:
            problems.append(f"{folder.name}: differs by {error:.1e} from ONNX Runtime")
        fused, excused = report.counts["fused"], folder.name == CAPPED and mx.default_device() != mx.Device(mx.cpu)
        if (fused != meta["truth"] and not excused) or len(report.regions) != meta["truth"]:
            problems.append(f"{folder.name}: {fused} of {meta['truth']} attentions fused")
        table.add_row(
            folder.name.split("__")[0],
            f"{meta['exporter'].removeprefix('torch.onnx ')} {meta['want_opset']}",
            ", ".join(each["label"] for each in meta["sets"]),
            Text(f"{fused} of {meta['truth']}", "green" if fused == meta["truth"] else "yellow"),
            listed(region.mask for region in report.regions),
            listed(heads_of(region) for region in report.regions if region.query_heads),
            f"{error:.1e}",
            f"{1000 * seconds / len(sets):.0f}",
        )
    out.print(table)
    out.print(
        "max error: relative to the largest output; ms: to load, and to trace and fuse each shape",
        style="dim",
    )
    heading(out, "Every softmax of these models")
    out.print(every(reports))
    heading(out, "One report in full")
    out.print(replace(reports[SHOWN], program=f"examples/models/{SHOWN}/model.onnx"))
    heading(out, "What cannot be fused says why")
    x = mx.random.normal((1, 8, 128, 64))
    out.print(fuser.explain(top_k, x, x, x))
    return problems


def top_k(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    """Attention to the best sixteen keys: which they are is known only when all scores are written."""
    scores = q @ k.swapaxes(-1, -2)
    best = mx.topk(scores, 16, axis=-1).min(axis=-1, keepdims=True)
    return mx.softmax(mx.where(scores >= best, scores, -1e9), axis=-1) @ v


def every(reports: dict[str, fuser.Report]) -> Table:
    """A line for each softmax of all models."""
    table = plain_table("softmax", "verdict", "mask", "heads", "lengths", "scale")
    for name, report in reports.items():
        table.add_row(Text(name.replace("__", " "), "bold"))
        for region in report.regions:
            at = Text(f"  {region.name}")
            if region.q is None or region.k is None:
                table.add_row(at, Text(region.verdict, "yellow"))
                continue
            lengths, scale = f"{region.q.shape[2]}×{region.k.shape[2]}", f"{region.scale or 0:.4g}"
            table.add_row(at, Text(region.verdict, "green"), region.mask, heads_of(region), lengths, scale)
    return table


def stored(folder: Path) -> list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """The stored inputs and outputs of a model, a pair for each set."""
    sets: dict[str, tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = {}
    with np.load(folder / "io.npz") as file:
        for key in file.files:
            number, way, name = key.split("/", 2)
            sets.setdefault(number, ({}, {}))[way == "out"][name] = file[key]
    return list(sets.values())


def difference(expected: np.ndarray, got: np.ndarray) -> float:
    """The largest difference relative to the largest value; infinite where only one answer is finite."""
    finite = np.isfinite(expected)
    if not np.array_equal(expected[~finite], got[~finite], equal_nan=True) or not finite.any():
        return float("inf")
    return float(np.abs(expected[finite] - got[finite]).max() / max(np.abs(expected[finite]).max(), 1e-30))


# -- an MLX program ------------------------------------------------------------------------------------------


def decoder(out: Console) -> list[str]:
    """The plain decoder of `decoder.py`, fused."""
    heading(out, "An MLX program: examples/decoder.py, ported from PyTorch with its attention spelled out")
    gpu = mx.default_device().type == mx.gpu
    mx.random.seed(0)
    model = Decoder(Config(vocabulary=8192, hidden=2048, heads=32, kv_heads=8) if gpu else Config())
    if gpu:
        model.set_dtype(mx.bfloat16)
    tokens = mx.random.randint(0, model.config.vocabulary, (1, 4096 if gpu else 256))
    mx.eval(model.parameters(), tokens)

    fast = fuser.optimize(model)
    verification = fuser.verify(model, tokens)
    fast(tokens)
    out.print(fast.report)

    programs: dict[str, Callable[[mx.array], mx.array]] = {
        "as written": model,
        "mx.compile": mx.compile(lambda tokens: model(tokens)),
        "fuser": fast,
    }
    times, peaks = measured(programs, tokens)
    table = plain_table("", "ms", "against as written", "peak memory")
    for name in programs:
        ratio = times["as written"] / times[name]
        table.add_row(name, f"{1000 * times[name]:.1f}", f"{ratio:.2f}x", amount(peaks[name], "B"))
    out.print()
    out.print(table)
    saved = amount(sum(region.bytes_saved for region in fast.report.regions), "B")
    smaller = peaks["as written"] / max(peaks["fuser"], 1)
    faster = times["as written"] / times["fuser"]
    worst = max((check.error for check in verification.outputs), default=0.0)
    if gpu:
        out.print(f"{faster:.1f} times as fast, peak memory {smaller:.1f} times smaller, max error {worst:.1e}")
    else:
        kernel = listed(region.kernel for region in fast.report.regions)
        out.print(
            f"{faster:.2f} times as fast, peak memory {smaller:.1f} times smaller, max error {worst:.1e}. MLX has no "
            f"fused kernel for CPUs; what ran is: {kernel}. On a GPU MLX's kernel leaves {saved} unwritten in each "
            "run: scores, weights, repeated keys and values."
        )
    problems = [] if verification else [f"decoder: {verification}"]
    if fast.report.counts["fused"] != model.config.layers:
        problems.append(f"decoder: {fast.report}")
    return problems


def measured(
    programs: dict[str, Callable[[mx.array], mx.array]], tokens: mx.array, runs: int = 5
) -> tuple[dict[str, float], dict[str, int]]:
    """Median seconds, and peak bytes above what is held anyway; the programs take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    peaks = dict.fromkeys(programs, 0)
    for fn in programs.values():
        mx.eval(fn(tokens))
    for _ in range(runs):
        for name, fn in programs.items():
            held = mx.get_active_memory()
            mx.reset_peak_memory()
            start = time.perf_counter()
            mx.eval(fn(tokens))
            seconds[name].append(time.perf_counter() - start)
            peaks[name] = max(peaks[name], mx.get_peak_memory() - held)
    return {name: statistics.median(each) for name, each in seconds.items()}, peaks


# -- printing ------------------------------------------------------------------------------------------------


def heading(out: Console, title: str) -> None:
    out.print()
    out.print(Rule(Text(title, "bold cyan"), align="left", style="cyan"))


def plain_table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, header_style="bold")
    for column in columns:
        number = column in (
            "fused",
            "max error",
            "ms",
            "against as written",
            "peak memory",
            "lengths",
            "scale",
        )
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    return table


def listed(items: object) -> str:
    return ", ".join(dict.fromkeys(str(item) for item in items if item)) or "-"  # type: ignore[attr-defined]


if __name__ == "__main__":
    sys.exit(main())
