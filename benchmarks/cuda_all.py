"""All that is measured and checked on a CUDA machine, in one command and within a given time.

    python benchmarks/cuda_all.py [--seconds 480] [--only NAME ...]

Each step is a process of its own with a limit; the exit status is 1 when one fails or runs out of time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx

ROOT = Path(__file__).resolve().parent.parent
TESTS = ("kernels_cuda", "kernels_gpu", "empty_rows", "kernels_admission", "kernels_own", "spellings")
# the seconds that a step may take, what is to be run, and its arguments
STEPS: dict[str, tuple[int, list[str]]] = {
    "admission": (80, ["benchmarks/admission.py"]),
    "rows and kernels": (150, ["-m", "pytest", "-q", *(f"tests/test_{name}.py" for name in TESTS)]),
    "attention": (130, ["benchmarks/attention_cuda.py", "--seconds", "100", "--no-torch"]),
    "models": (130, ["benchmarks/models_cuda.py", "--seconds", "90"]),
    "own": (70, ["benchmarks/attention_own.py"]),
    "calls": (40, ["benchmarks/call_cost.py", "--rounds", "100"]),
}


def main() -> int:
    """Run the steps for which there is time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS))
    options = parser.parse_args()
    start, failed = time.perf_counter(), []
    print(f"{mx.device_info().get('device_name', 'CPU')}, MLX {version('mlx')}, Python {sys.version.split()[0]}")
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
    for name in options.only:
        limit, command = STEPS[name]
        left = options.seconds - (time.perf_counter() - start)
        print(f"\n## {name}", flush=True)
        if left < 15:
            print("no time left")
            failed.append(name)
            continue
        before = time.perf_counter()
        try:
            code = subprocess.run(
                [sys.executable, *command], cwd=ROOT, env=environment, timeout=min(limit, left), check=False
            ).returncode
        except subprocess.TimeoutExpired:
            print("stopped: out of time")
            code = 1
        print(f"({time.perf_counter() - before:.0f} s)", flush=True)
        failed += [name] if code else []
    print(f"\n{', '.join(failed) + ' failed' if failed else 'all done'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
