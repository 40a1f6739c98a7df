"""Our own kernel on a GPU, beside the naive spelling and MLX's kernel where that can do the same.

python benchmarks/attention_own.py
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from importlib.metadata import version

import mlx.core as mx

from benchmarks.attention_cases import Case, difference, peak, timed
from fuser.kernels import flash_gpu, own
from fuser.kernels.admission import HALVES, backend
from fuser.kernels.bands import FAR

BRAIN, HALF = mx.bfloat16, mx.float16
CASES = (
    Case("BERT 32x12x512x64", 32, 12, 12, 512, 512, 64, HALF),
    Case("Llama 4096, 32/8, D 128", 1, 32, 8, 4096, 4096, 128, BRAIN, True),
    Case("decode 16, 8192, 32/8", 16, 32, 8, 1, 8192, 128, BRAIN),
    Case("fp32 4x12x512x64", 4, 12, 12, 512, 512, 64, mx.float32),
    Case("D 256, 2x8x2048", 2, 8, 8, 2048, 2048, 256, HALF),
    Case("Gemma 2 4096, 8/4, D 256, softcap", 1, 8, 4, 4096, 4096, 256, BRAIN, True, 50.0),
    Case("softcap, 8/4, D 128, 4096", 1, 8, 4, 4096, 4096, 128, BRAIN, True, 50.0),
    Case("softcap, 32x12x512x64", 32, 12, 12, 512, 512, 64, HALF, False, 50.0),
    Case("softcap decode 4, 8192, 8/4, D 256", 4, 8, 4, 1, 8192, 256, BRAIN, False, 50.0),
)


def main() -> None:
    """Measure and print a table in Markdown."""
    print(f"{mx.device_info().get('device_name', 'GPU')}, MLX {version('mlx')}")
    print("| case | naive | mx.compile | our kernel | by single warps | MLX's kernel | peak | TFLOP/s | error |")
    print("|---|---|---|---|---|---|---|---|---|")
    for case in CASES:
        arrays = case.arrays()

        def ours(q: mx.array, k: mx.array, v: mx.array, case: Case = case) -> mx.array:
            ahead = 0 if case.causal else FAR
            return own.attend(q, k, v, scale=case.scale, softcap=case.softcap, ahead=ahead)

        def warps(q: mx.array, k: mx.array, v: mx.array, case: Case = case) -> mx.array:
            ahead = 0 if case.causal else FAR
            return flash_gpu.attend(q, k, v, scale=case.scale, softcap=case.softcap, ahead=ahead, cores="mma")

        hand = None if case.softcap else case.by_hand
        half = warps if case.dtype in HALVES and backend() == "cuda" else None
        # those that write the scores leave the allocator in another state: they are measured on their own
        numbers = timed([case.naive, mx.compile(case.naive)], arrays)
        mx.clear_cache()
        numbers += timed([ours, half, hand], arrays)
        cells = " | ".join("" if math.isnan(cell) else f"{cell:.3f}" for cell in numbers)
        memory = f"{peak(case.naive, arrays) / 1e9:.2f} -> {peak(ours, arrays) / 1e9:.2f} GB"
        wanted = case.naive(*arrays)
        errors = [f"{difference(run(*arrays), wanted):.1e}" for run in (ours, half) if run is not None]
        rate = case.flops / (2 if case.causal else 1) / numbers[2] / 1e9
        print(f"| {case.name} | {cells} | {memory} | {rate:.1f} | {', '.join(errors)} |", flush=True)
    # what a call costs the processor: graph building alone
    small = Case("", 1, 2, 2, 8, 8, 64, HALF).arrays()
    q, k, v = small
    runs: dict[str, Callable[[], mx.array]] = {
        "ours": lambda: own.attend(q, k, v, scale=1.0),
        "MLX's": lambda: mx.fast.scaled_dot_product_attention(q, k, v, scale=1.0),
    }
    for name, run in runs.items():
        start = time.perf_counter()
        made = [run() for _ in range(2000)]
        print(f"a call of {name}: {(time.perf_counter() - start) / 2000 * 1e6:.1f} us before anything runs")
        mx.eval(made)


if __name__ == "__main__":
    main()
