"""What fusing costs at real sizes: seconds and peak memory of trace + match + rewrite; nothing is run.

    python benchmarks/fusing_cost.py [--only WORD ...] [--lengths 512 ...] [--layers 12 ...] [--repeat 3] [--markdown]

Each row is the fastest of some processes of its own. `seconds` are those of `fuser.explain`, `peak` is what the largest
resident set of the process (`resource.getrusage`) grew by meanwhile, and `mask` what the program's own mask takes as an
array at its smallest: unbroadcast, in its own type.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import fuser

Case = tuple[Callable[..., Any], tuple[mx.array, ...], dict[str, mx.array]]
LENGTHS = (512, 2048, 4096, 8192, 16384)
LAYERS = (12, 32, 80)
HEADS, KEY_HEADS, WIDTH = 32, 8, 128
LIMIT = 300


# -- masks, as programs make them --------------------------------------------------------------------------------------


def causal_triu(length: int) -> mx.array:
    return mx.triu(mx.full((length, length), -math.inf), k=1)


def causal_where(length: int) -> mx.array:
    place = mx.arange(length)
    return mx.where(place[:, None] >= place[None], 0.0, -math.inf)


def causal_boolean(length: int) -> mx.array:
    return mx.tril(mx.ones((length, length), mx.bool_))


def window(length: int) -> mx.array:
    place = mx.arange(length)
    away = place[:, None] - place[None]
    return (away >= 0) & (away < 256)


def alibi(length: int, heads: int) -> mx.array:
    slopes = mx.array([2.0 ** (-8.0 * (head + 1) / heads) for head in range(heads)])[:, None, None]
    place = mx.arange(length)
    return slopes * (place[None] - place[:, None]) + causal_triu(length)


def relative(length: int, table: mx.array) -> mx.array:
    place = mx.arange(length)
    return table[mx.clip(place[None] - place[:, None] + 16, 0, 31)].transpose(2, 0, 1)[None]


def split(mask: mx.array, scores: mx.array) -> mx.array:
    return mx.where(mask, scores, -math.inf) if mask.dtype == mx.bool_ else scores + mask


MASKS: dict[str, tuple[Callable[..., mx.array], int]] = {
    "causal, triu of -inf": (causal_triu, 4),
    "causal, where of arange": (causal_where, 4),
    "causal, boolean tril": (causal_boolean, 1),
    "window of 256": (window, 1),
    "padding and causal": (causal_boolean, 1),
    "ALiBi, 8 heads": (lambda length: alibi(length, 8), 32),
    "ALiBi, 32 heads": (lambda length: alibi(length, 32), 128),
    "T5's bias, trained, and causal": (causal_triu, 128),
}


def attention_case(name: str, length: int) -> Case:
    """One attention, 32 heads on 8 (8 on 8 for ALiBi's 8), under the mask of that name."""
    make = MASKS[name][0]
    heads, keys = (8, 8) if "8 heads" in name else (HEADS, KEY_HEADS)

    def attend(q: mx.array, k: mx.array, v: mx.array, *rest: mx.array) -> mx.array:
        k, v = (mx.repeat(each, heads // keys, axis=1) for each in (k, v))
        scores = q @ k.swapaxes(-1, -2) / math.sqrt(WIDTH)
        if name.startswith("T5"):
            scores = scores + relative(length, rest[0]) + make(length)
        else:
            scores = split(make(length), scores)
        if name.startswith("padding"):
            scores = mx.where(rest[0][:, None, None], scores, -math.inf)
        return mx.softmax(scores, axis=-1) @ v

    q, k = mx.zeros((1, heads, length, WIDTH)), mx.zeros((1, keys, length, WIDTH))
    rest = [mx.zeros((1, length), mx.bool_)] * name.startswith("padding") + [mx.zeros((32, 32))] * name.startswith("T5")
    return attend, (q, k, k, *rest), {}


# -- models of many layers ---------------------------------------------------------------------------------------------


def decoder_case(anew: bool, layers: int) -> Case:
    """A decoder of length 2048, with one causal mask for all layers, or one made in each."""
    length, width = 2048, 64

    def decode(x: mx.array, *weights: mx.array) -> mx.array:
        mask = causal_triu(length)
        for layer in range(layers):
            mask = causal_triu(length) if anew else mask
            q, k, v = (
                (x @ weight).reshape(1, length, 4, width // 4).transpose(0, 2, 1, 3)
                for weight in weights[3 * layer : 3 * layer + 3]
            )
            y = mx.softmax(q @ k.swapaxes(-1, -2) * 0.25 + mask, axis=-1) @ v
            x = x + y.transpose(0, 2, 1, 3).reshape(1, length, width)
        return x

    return decode, (mx.zeros((1, length, width)), *[mx.zeros((width, width)) for _ in range(3 * layers)]), {}


def onnx_case(layers: int) -> Case:
    """An ONNX decoder of length 1024 with a subgraph for the mask in each layer, as exporters write it."""
    rng, width = np.random.default_rng(0), 64
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def constant(name: str, array: Any) -> str:
        weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(op: str, name: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    one, zero = constant("one", np.array(1)), constant("zero", np.array(0))
    constant("scale", np.float32(0.25)), constant("lowest", np.float32(-3.4028235e38)), constant("none", np.float32(0))
    constant("heads", np.array([0, 0, 4, 16])), constant("whole", np.array([0, 0, 64]))
    constant("column", np.array([1])), constant("row", np.array([0])), constant("outer", np.array([0, 1]))
    x = "x"
    for i in range(layers):
        parts = []
        for which, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
            weight = constant(f"{which}{i}w", rng.standard_normal((width, width)).astype(np.float32))
            cut = node("Reshape", f"{which}{i}r", node("MatMul", f"{which}{i}m", x, weight), "heads")
            parts.append(node("Transpose", f"{which}{i}", cut, perm=perm))
        length = node("Gather", f"len{i}", node("Shape", f"shape{i}", x), one)
        place = node("Range", f"range{i}", zero, length, one)
        later = node(
            "Greater",
            f"later{i}",
            node("Unsqueeze", f"c{i}", place, "row"),
            node("Unsqueeze", f"d{i}", place, "column"),
        )
        mask = node("Unsqueeze", f"mask{i}", node("Where", f"m{i}", later, "lowest", "none"), "outer")
        scores = node(
            "Add", f"masked{i}", node("Mul", f"scaled{i}", node("MatMul", f"qk{i}", *parts[:2]), "scale"), mask
        )
        mixed = node("MatMul", f"av{i}", node("Softmax", f"softmax{i}", scores, axis=-1), parts[2])
        flat = node("Reshape", f"flat{i}", node("Transpose", f"back{i}", mixed, perm=[0, 2, 1, 3]), "whole")
        x = node("Add", f"x{i}", x, flat)
    shape = [1, "length", width]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", x)]
    graph = helper.make_graph(nodes, "decoder", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return fuser.load_onnx(model), (), {"x": mx.zeros((1, 1024, width))}


# -- measuring ---------------------------------------------------------------------------------------------------------


def cases(lengths: tuple[int, ...], layers: tuple[int, ...]) -> list[tuple[str, int, int]]:
    """The name, the length or the number of layers, and the mask's bytes."""
    found = [(name, length, size * length * length) for name, (_, size) in MASKS.items() for length in lengths]
    models = (
        ("decoder, one mask", 2048),
        ("decoder, a mask in each layer", 2048),
        ("ONNX, a mask in each layer", 1024),
    )
    return found + [(name, count, 4 * length * length) for name, length in models for count in layers]


def build(name: str, size: int) -> Case:
    if name in MASKS:
        return attention_case(name, size)
    return onnx_case(size) if name.startswith("ONNX") else decoder_case("each" in name, size)


def measure(name: str, size: int) -> None:
    """One case in this process; prints JSON."""
    fn, args, kwargs = build("causal, boolean tril", 8)
    fuser.explain(fn, *args, **kwargs)  # what is imported late is imported now
    fn, args, kwargs = build(name, size)
    before, start = peak(), time.perf_counter()
    report = fuser.explain(fn, *args, **kwargs)
    seconds = time.perf_counter() - start
    regions = report.regions
    masks = sorted({str(region.mask or region.reason) for region in regions})
    row = {"seconds": seconds, "steps": dict(report.seconds), "peak": peak() - before, "fused": report.counts["fused"]}
    print(json.dumps({**row, "of": len(regions), "mask": ", ".join(masks)}))


def run(name: str, size: int) -> dict[str, Any] | str:
    """What a process of its own measures, or the last line of what it says when it fails."""
    call = [sys.executable, __file__, "--case", name, str(size)]
    try:
        done = subprocess.run(call, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return f"over {LIMIT} s"
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def peak() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    parser = argparse.ArgumentParser(description="Times fusing.")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--lengths", type=int, nargs="*", default=LENGTHS)
    parser.add_argument("--layers", type=int, nargs="*", default=LAYERS)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        measure(options.case[0], int(options.case[1]))
        return
    head = ("program", "size", "mask, MB", "seconds", "peak, MB", "fused", "mask read as")
    print("| " + " | ".join(head) + " |" if options.markdown else "  ".join(head))
    if options.markdown:
        print("|---|" + "---:|" * 5 + "---|")
    for name, size, nbytes in cases(tuple(options.lengths), tuple(options.layers)):
        if options.only and not any(word in name for word in options.only):
            continue
        rows = [run(name, size) for _ in range(options.repeat)]
        cells = [name, str(size), f"{nbytes / 1e6:.1f}"]
        errors = [row for row in rows if isinstance(row, str)]
        if errors:
            cells += ["", "", "", errors[0]]
        else:
            row = min((row for row in rows if not isinstance(row, str)), key=lambda row: row["seconds"])
            cells += [
                f"{row['seconds']:.2f}",
                f"{row['peak'] / 1e6:.0f}",
                f"{row['fused']} of {row['of']}",
                row["mask"],
            ]
        print("| " + " | ".join(cells) + " |" if options.markdown else "  ".join(cells), flush=True)


if __name__ == "__main__":
    main()
