"""One attention in several ways on this machine's CPU, in float32: naive, optimized, numpy in blocks, torch's.

    python benchmarks/attention_cpu.py [--seconds 120]

One process, the ways taking turns, medians, and the peak of the process's memory over what it held. torch is measured
where it can be imported; all run on the cores that this process may use.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

import fuser
from benchmarks.attention_cases import Case, difference
from fuser.kernels import blocks, host
from fuser.kernels.bands import FAR

try:
    import torch
except ImportError:
    torch = None

F = mx.float32
CASES = (
    Case("1x8x512x64", 1, 8, 8, 512, 512, 64, F),
    Case("1x8x512x64 causal", 1, 8, 8, 512, 512, 64, F, True),
    Case("1x8x1024x64", 1, 8, 8, 1024, 1024, 64, F),
    Case("1x8x1024x128 causal", 1, 8, 8, 1024, 1024, 128, F, True),
    Case("1x16/4x1024x64 causal", 1, 16, 4, 1024, 1024, 64, F, True),
    Case("8x12x128x64 (BERT, short)", 8, 12, 12, 128, 128, 64, F),
    Case("1x16/4x1x4096x128 (decode)", 1, 16, 4, 1, 4096, 128, F),
    Case("1x8/4x1024x256 softcap, causal", 1, 8, 4, 1024, 1024, 256, F, True, 50.0),
    Case("1x4x4096x64 causal", 1, 4, 4, 4096, 4096, 64, F, True),
    Case("1x4x4096x64, window of 256", 1, 4, 4, 4096, 4096, 64, F, True, window=256),
)


def ways(case: Case, arrays: list[mx.array]) -> dict[str, Callable[[], Any]]:
    """What is measured."""
    q, k, v = (np.array(array) for array in arrays)
    fast = fuser.optimize(case.naive)
    found: dict[str, Callable[[], Any]] = {
        "naive": lambda: mx.eval(case.naive(*arrays)),
        "ours": lambda: mx.eval(fast(*arrays)),
        "numpy": lambda: blocks.attend(
            q,
            k,
            v,
            scale=case.scale,
            softcap=case.softcap,
            ahead=0 if case.causal else FAR,
            behind=case.window - 1 if case.window else FAR,
        ),
    }
    if torch is not None and not case.softcap and not case.window:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        tensors = [torch.from_numpy(each) for each in (q, k, v)]
        found["torch"] = lambda: torch.nn.functional.scaled_dot_product_attention(
            *tensors, is_causal=case.causal and case.queries > 1, scale=case.scale, enable_gqa=case.heads != case.shared
        )
    return found


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        peak(options.peak)
        return
    share = options.seconds / len(CASES)
    print(f"{host.threads()} cores, torch {torch.__version__ if torch else 'none'}, milliseconds")
    print("| case | naive | ours | numpy in blocks | torch sdpa | naive / ours | ours / torch | GFLOP/s | error |")
    print("|---|---|---|---|---|---|---|---|---|")
    for case in CASES:
        arrays = case.arrays()
        runs = ways(case, arrays)
        error = difference(fuser.optimize(case.naive)(*arrays), case.naive(*arrays))
        times: dict[str, list[float]] = {name: [] for name in runs}
        for run in runs.values():
            run()
        start = time.perf_counter()
        while time.perf_counter() - start < share or len(times["ours"]) < 3:
            for name, run in runs.items():
                # the slow way is not asked as often
                if name == "naive" and len(times[name]) >= 3 and len(times["ours"]) % 4:
                    continue
                before = time.perf_counter()
                run()
                times[name].append((time.perf_counter() - before) * 1e3)
        naive, ours, numpy, theirs = (
            statistics.median(times[name]) if name in times else float("nan")
            for name in ("naive", "ours", "numpy", "torch")
        )
        flops = case.flops / (2 if case.causal and case.queries > 1 else 1)
        print(
            f"| {case.name} | {naive:.1f} | {ours:.2f} | {numpy:.1f} | {theirs:.2f} | {naive / ours:.0f}x "
            f"| {ours / theirs:.2f} | {flops / ours / 1e6:.0f} | {error:.1e} |",
            flush=True,
        )
    for length in (4096, 8192, 16384):
        # a process of its own: a peak is never forgotten
        command = [sys.executable, __file__, "--peak", str(length)]
        print(subprocess.run(command, capture_output=True, text=True, check=True).stdout, end="")


def peak(length: int) -> None:
    """Print what one call adds to the process's peak."""
    q, k, v = (np.array(array) for array in Case("", 1, 4, 4, length, length, 64, F, True).arrays())
    host.attend(q[:, :, :64], k[:, :, :64], v[:, :, :64], scale=0.125)
    before = highest()
    host.attend(q, k, v, scale=0.125, ahead=0)
    print(f"1x4x{length}x64: {highest() - before} MiB at the peak, of scores alone {4 * length**2 * 4 >> 20}")


def highest() -> int:
    """The most memory that this process has held, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) >> 10


if __name__ == "__main__":
    main()
