"""Hold the rules of `kernels/admission.py` against MLX itself.

    python benchmarks/admission.py                                      on a CUDA machine: a grid, with force_fused=True
    python benchmarks/admission.py --metal-source FILE [--metallib FILE]    anywhere

FILE is MLX's `scaled_dot_product_attention.cpp` or the `libmlx.dylib` of its macOS wheel (both name the table in their
messages); the metallib is the wheel's `mlx.metallib`, which lists the kernels that were built.
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx

from fuser.ir.types import TensorType
from fuser.kernels import admission
from fuser.kernels.admission import Call, Mask

NAMES = {"float": mx.float32, "float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


def text_of(path: Path) -> str:
    """The messages of a source file or of a library, joined."""
    data = path.read_bytes()
    if path.suffix in (".cpp", ".mm", ".h"):
        return "".join(re.findall(r'"((?:[^"\\\n]|\\.)*)"', data.decode()))
    return "".join(part.decode() for part in re.findall(rb"[\x20-\x7e]{6,}", data))


def check_messages(text: str) -> list[str]:
    """What the messages say other than the rules."""
    wrong = []
    for name, table in (("full", admission.METAL_TILED), ("vector", admission.METAL_VECTOR)):
        found = re.search(name + r" attention kernel supports head dims (.{20,200}?)got", text)
        if found is None:
            wrong.append(f"no message about the {name} attention kernel's head sizes")
            continue
        listed = re.search(r"\{([\d, ]+)\}", found[1])
        same = {int(size) for size in listed[1].split(",")} if listed else set()
        pairs = {(int(d), int(w)) for d, w in re.findall(r"\((\d+), (\d+)\)", found[1])}
        pairs |= {(int(d), int(w)) for d, w in re.findall(r"head dim (\d+) with value head dim (\d+)", found[1])}
        if (same, pairs) != admission.sizes(table):
            wrong.append(f"{name}: MLX says {sorted(same)} and {sorted(pairs)}, we {sorted(table)}")
    rows = re.search(r"the GQA factor to be at most (\d+)", text)
    if rows is None or int(rows[1]) != admission.METAL_ROWS:
        wrong.append(f"rows of a group: MLX says {rows and rows[1]}, we {admission.METAL_ROWS}")
    return wrong


def check_kernels(data: bytes) -> list[str]:
    """What kernels were built other than those that the rules name."""
    wrong = []
    vector = set(re.findall(rb"sdpa_vector_(float|float16|bfloat16)(?:_t)?_(\d+)_(\d+)\0", data))
    tiled = set(re.findall(rb"steel_attention_(float32|float16|bfloat16)_bq\d+_bk\d+_bd(\d+)_bv(\d+)_", data))
    for name, found, table in (("vector", vector, admission.METAL_VECTOR), ("tiled", tiled, admission.METAL_TILED)):
        for dtype in {NAMES[kind.decode()] for kind, _, _ in found} | {mx.float32, mx.float16, mx.bfloat16}:
            built = {(int(d), int(w)) for kind, d, w in found if NAMES[kind.decode()] == dtype}
            if not table <= built:
                wrong.append(f"{name} {dtype}: no kernel for {sorted(table - built)}")
            # 512 is there for chips with neural accelerators alone
            if built - table - {(512, 512)}:
                wrong.append(f"{name} {dtype}: kernels that we do not name: {sorted(built - table)}")
    return wrong


def grid() -> Iterator[tuple[Call, bool]]:
    """Calls on both sides of every rule, and whether keys and values are slices of a cache."""
    widths: tuple[tuple[int, int], ...] = (
        (8, 8),
        (40, 40),
        (63, 63),
        (64, 64),
        (72, 72),
        (80, 80),
        (96, 96),
        (100, 100),
        (128, 128),
        (96, 64),
    )
    widths += ((136, 136), (192, 128), (256, 256), (64, 128), (512, 512))
    lengths: tuple[tuple[int, int], ...] = (
        (1, 1),
        (1, 256),
        (1, 300),
        (2, 64),
        (3, 3),
        (4, 4),
        (4, 300),
        (8, 9),
        (9, 8),
        (3, 2),
        (128, 128),
    )
    lengths += ((256, 300), (300, 256), (1024, 1024))
    masks: tuple[Mask, ...] = ("none", "causal", "boolean", "additive")
    types = (mx.float32, mx.float16, mx.bfloat16)
    for (depth, width), (rows, columns), mask, dtype in itertools.product(widths, lengths, masks, types):
        for heads, sinks, cache in ((1, False, False), (4, False, False), (2, True, False), (1, False, True)):
            if cache and rows != 1:
                continue
            q, k, v = (2, 4, rows, depth), (2, 4 // heads, columns, depth), (2, 4 // heads, columns, width)
            yield Call(TensorType(q, dtype), TensorType(k, dtype), TensorType(v, dtype), mask, sinks), cache


def accepts(call: Call, cache: bool) -> bool:
    """Whether MLX takes `call` with `force_fused=True`."""

    def array(type: TensorType, sliced: bool) -> mx.array:
        if not sliced:
            return mx.zeros(type.shape, type.dtype)
        full = mx.zeros((*type.shape[:2], -(-type.shape[2] // 256) * 256, type.shape[3]), type.dtype)
        part = full[:, :, : type.shape[2]]
        mx.eval(part)
        return part

    q, k, v = array(call.q, False), array(call.k, cache), array(call.v, cache)
    cells = (*call.q.shape[:3], call.k.shape[2])
    mask: mx.array | str | None = "causal" if call.mask == "causal" else None
    if call.array:
        mask = mx.zeros(cells, mx.bool_ if call.mask == "boolean" else call.dtype)
    sinks = mx.zeros((call.q.shape[1],), call.dtype) if call.sinks else None
    try:
        mx.fast.scaled_dot_product_attention(q, k, v, scale=1.0, mask=mask, sinks=sinks, force_fused=True)
    except ValueError as error:
        if "force_fused" not in str(error):
            raise
        return False
    return True


def check_cuda() -> list[str]:
    """The calls of the grid of which MLX says other than we."""
    wrong, count, fused = [], 0, 0
    for call, cache in grid():
        ours, theirs = admission.cuda(call, cache), accepts(call, cache)
        count, fused = count + 1, fused + theirs
        if (ours.kernel is not None or ours.forced) != theirs:
            wrong.append(f"{call} cache={cache}: MLX says {theirs}, we {ours}")
    print(f"{count} calls, {fused} of them fused by MLX, {len(wrong)} on which we say other")
    return wrong


def main() -> int:
    """Run the checks asked for; the exit status is 1 when one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metal-source", type=Path)
    parser.add_argument("--metallib", type=Path)
    options = parser.parse_args()
    wrong = []
    if options.metal_source:
        wrong += check_messages(text_of(options.metal_source))
    if options.metallib:
        wrong += check_kernels(options.metallib.read_bytes())
    if not (options.metal_source or options.metallib):
        if admission.backend() != "cuda":
            print("not a CUDA machine: give --metal-source", file=sys.stderr)
            return 2
        wrong += check_cuda()
    for line in wrong[:40]:
        print(line)
    print(f"MLX {version('mlx')}: {'the rules hold' if not wrong else f'{len(wrong)} differences'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
