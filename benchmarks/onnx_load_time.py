"""Loading, tracing and fusing ONNX models beside creating an ONNX Runtime session with all of its optimisations.

    python benchmarks/export_models.py OUT --only bert,llama,gpt2,t5,vit --layers 12 --exporters ts17,dyn18
    python benchmarks/onnx_load_time.py OUT [--repeat 7] [--markdown]

Medians over turns that the two take in one process, in milliseconds; inputs are the folder's first set.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median

import mlx.core as mx
import onnxruntime as ort
from check_exports import folders, read_sets
from rich.console import Console
from rich.table import Table

import fuser


def session(path: Path) -> float:
    """Seconds until ONNX Runtime could run it."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4
    began = time.perf_counter()
    ort.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    return time.perf_counter() - began


def ours(path: Path, inputs: dict[str, mx.array]) -> tuple[float, float, int]:
    """Seconds to load; to trace and fuse; how many attentions were fused."""
    began = time.perf_counter()
    model = fuser.load_onnx(path)
    loaded = time.perf_counter()
    report = fuser.explain(model, **inputs)
    return loaded - began, time.perf_counter() - loaded, report.counts["fused"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Times loading ONNX models.")
    parser.add_argument("roots", type=Path, nargs="+")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    head = ("model", "nodes", "MB", "fused", "load", "trace + fuse", "fuser", "session", "difference")
    rows: list[tuple[str, ...]] = []
    for folder in folders(options.roots):
        path = folder / "model.onnx"
        _, inputs, _ = next(iter(read_sets(folder)))
        arrays = {name: mx.array(array) for name, array in inputs.items()}
        session(path), ours(path, arrays)  # both warm
        sessions, loads, traces, fused = [], [], [], 0
        for _ in range(options.repeat):
            sessions.append(session(path))
            load, trace, fused = ours(path, arrays)
            loads.append(load)
            traces.append(trace)
        both = median(a + b for a, b in zip(loads, traces, strict=True))
        milliseconds = [median(loads), median(traces), both, median(sessions), both - median(sessions)]
        nodes = len(fuser.load_onnx(path).program.parts().graph.steps)
        size = f"{path.stat().st_size / 1e6:.1f}"
        rows.append((folder.name, str(nodes), size, str(fused), *(f"{1e3 * each:.0f}" for each in milliseconds)))
    if options.markdown:
        print("\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows)))
        return
    table = Table(*head, title="Milliseconds")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
