"""The peak of memory while an ONNX model is loaded, beside the size of its weights, each in a process of its own.

    python benchmarks/onnx_memory.py [--megabytes 503]

Weights are stored as raw data or as a list of floats in the model's file, or in a file beside it.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import TensorProto, helper

import fuser

KINDS = ("raw data", "floats", "another file")
SIDE = 2048


def write(path: Path, kind: str, count: int) -> None:
    """A chain of products."""
    names = ["x", *(f"h{place}" for place in range(count))]
    graph = helper.make_graph(
        [helper.make_node("MatMul", [names[place], f"w{place}"], [names[place + 1]]) for place in range(count)],
        "products",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, SIDE])],
        [helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, [1, SIDE])],
    )
    for place in range(count):
        values = np.random.default_rng(place).standard_normal((SIDE, SIDE), dtype=np.float32)
        if kind == "floats":
            graph.initializer.append(helper.make_tensor(f"w{place}", TensorProto.FLOAT, values.shape, values.ravel()))
        else:
            graph.initializer.append(onnx.numpy_helper.from_array(values, f"w{place}"))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, path, save_as_external_data=kind == "another file", location="weights.bin")


def peak() -> float:
    """Of this process, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures the memory that loading takes.")
    parser.add_argument("--megabytes", type=int, default=503)
    parser.add_argument("--write", metavar="KIND", help=argparse.SUPPRESS)
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load and options.write:
        write(options.load, options.write, max(1, round(options.megabytes * 1e6 / (4 * SIDE**2))))
    elif options.load:
        before, began = peak(), time.perf_counter()
        model = fuser.load_onnx(options.load)
        seconds = time.perf_counter() - began
        print(f"{peak() - before:.0f} MB in {seconds:.2f} s: {model}")
    else:
        for kind in KINDS:
            with TemporaryDirectory() as folder:
                path = str(Path(folder) / "model.onnx")
                command = [sys.executable, __file__, f"--megabytes={options.megabytes}", "--load", path]
                subprocess.run([*command, "--write", kind], check=True)
                said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                print(f"{kind}: {said}", end="", flush=True)


if __name__ == "__main__":
    main()
