"""One attention in five ways on a CUDA GPU: naive, compiled, optimized, called by hand (compiled too), torch's.

    python benchmarks/attention_cuda.py [--seconds 240]

One process, medians, peak memory; the cases are those of `attention_cases.py`. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx

import fuser
from benchmarks.attention_cases import CASES, Case, difference, peak, timed

try:
    import torch
except ImportError:
    torch = None


def by_torch(case: Case) -> list[float]:
    """Milliseconds of torch's fused attention, of the naive spelling, and of that compiled (nan: not run)."""
    if torch is None or not torch.cuda.is_available():
        return [math.nan] * 3
    dtype = {mx.float16: torch.float16, mx.bfloat16: torch.bfloat16, mx.float32: torch.float32}[case.dtype]
    q, k, v = (
        torch.randn(case.batch, heads, length, case.depth, device="cuda", dtype=dtype)
        for heads, length in ((case.heads, case.queries), (case.shared, case.keys), (case.shared, case.keys))
    )
    grouped = case.heads != case.shared
    simple = not case.window and not case.padded
    place = torch.arange(case.queries, device="cuda")[:, None] + (case.keys - case.queries)
    column = torch.arange(case.keys, device="cuda")
    there = column < (case.keys - case.keys // 32 * torch.arange(case.batch, device="cuda"))[:, None, None, None]
    keep = (column <= place) & (column > place - (case.window or case.keys)) if case.causal else place < case.keys
    keep = keep & there if case.padded else keep

    def fused() -> Any:
        mask = {"is_causal": case.causal} if simple else {"attn_mask": keep}
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=case.scale, enable_gqa=grouped, **mask)

    def naive(q: Any, k: Any, v: Any) -> Any:
        if grouped:
            k, v = (each.repeat_interleave(case.heads // case.shared, 1) for each in (k, v))
        scores = q @ k.transpose(-1, -2) * case.scale
        if case.softcap:
            scores = torch.tanh(scores / case.softcap) * case.softcap
        if case.causal or case.padded:
            scores = scores.masked_fill(~keep, -math.inf)
        return torch.softmax(scores.float(), -1).to(q.dtype) @ v

    found = [math.nan if case.softcap else clock(fused), clock(lambda: naive(q, k, v))]
    try:
        torch._dynamo.reset()
        compiled = torch.compile(naive)
        found.append(clock(lambda: compiled(q, k, v)))
    except Exception:  # no C++ compiler, or no Triton
        found.append(math.nan)
    torch.cuda.empty_cache()
    return found


def clock(run: Callable[[], Any]) -> float:
    """The median time of a call of torch's, in milliseconds."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    times = []
    for _ in range(20):
        before = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - before)
    return statistics.median(times) * 1e3


def main() -> None:
    """Measure all cases for which there is time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--no-torch", action="store_true")
    options = parser.parse_args()
    start = time.perf_counter()
    print(f"{mx.device_info().get('device_name', 'GPU')}, torch {torch.__version__ if torch else 'none'}")
    ways = "naive | mx.compile | ours | by hand | ours, 20 calls at once | by hand, likewise"
    print(f"| case | {ways} | torch sdpa | torch naive | torch.compile(naive) | peak | mask, kernel | error |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|")
    for case in CASES:
        if time.perf_counter() - start > options.seconds:
            print(f"({case.name}: no time left)")
            continue
        arrays = case.arrays()
        # float32 is measured fused, so that the rule that leaves it alone can be judged
        fast = fuser.optimize(case.naive, when="profitable" if case.softcap else "always")
        compiled = mx.compile(case.naive)
        # those that write the scores leave the allocator in another state: they are measured on their own
        numbers = timed([case.naive, compiled], arrays, 1.0)
        mx.clear_cache()
        both = [fast, None if case.softcap else mx.compile(case.by_hand)]
        numbers += timed(both, arrays, 1.0, 200)
        numbers += timed(both, arrays, 1.0, 20, calls=20)
        most, least = peak(case.naive, arrays), peak(fast, arrays)
        error = difference(fast(*arrays), case.naive(*arrays))
        (region,) = fast.report.regions
        del arrays
        mx.clear_cache()
        numbers += [math.nan] * 3 if options.no_torch else by_torch(case)
        cells = " | ".join("" if math.isnan(cell) else f"{cell:.3f}" for cell in numbers)
        memory = f"{most / 1e9:.2f} -> {least / 1e9:.2f} GB"
        kernel = region.kernel if region.verdict == "fused" else region.reason
        mask = f"{region.mask}; {kernel}"
        print(f"| {case.name} | {cells} | {memory} | {mask} | {error:.1e} |", flush=True)


if __name__ == "__main__":
    main()
