"""Our kernel on a GPU answers a small question before it is relied on.

It is built by that machine's own compiler, for a GPU that may never have run it. So it is called once for a type, head
sizes and arrays, and its answer is held against MLX's own operations on the CPU.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import mlx.core as mx
import numpy as np

from fuser.ir.ops import OPS
from fuser.ir.ops_fast import FLASH
from fuser.kernels import flash_gpu
from fuser.kernels.admission import HALVES, Backend, backend, hopper
from fuser.kernels.bands import FAR, Window

Array = Literal["none", "boolean", "additive"]
# of the largest value: beside the rounding of the type, a wrong kernel is far off
ALLOWED = {mx.float32: 1e-4, mx.float16: 1e-2, mx.bfloat16: 4e-2}
QUERIES, KEYS = 19, 37
# up to this head size the products of single warps are as fast on Hopper
NARROW = 64


def cores(where: Backend, dtype: mx.Dtype, heads: tuple[int, int]) -> flash_gpu.Cores:
    """Which products of CUDA's tensor cores compute a type and head sizes; None where none do."""
    if where != "cuda" or dtype not in HALVES:
        return None
    return "wgmma" if max(heads) > NARROW and hopper() else "mma"


@functools.cache
def failure(
    dtype: mx.Dtype, heads: tuple[int, int], mask: Array, sinks: bool, slopes: bool, capped: bool
) -> str | None:
    """Why our kernel is not to be called on this GPU, or None: it was built, and answers as it should.

    `heads` are the sizes of the heads of queries and of values; the others say what a call brings.
    """
    rng = np.random.default_rng(0)
    shapes = ((2, 4, QUERIES, heads[0]), (2, 2, KEYS, heads[0]), (2, 2, KEYS, heads[1]))
    operands = [mx.array(rng.standard_normal(shape, np.float32)).astype(dtype) for shape in shapes]
    given: dict[str, Any] = {}
    if mask != "none":
        hidden = rng.random((2, 1, QUERIES, KEYS)) < 0.3
        hidden[..., :2] = False
        given["mask"] = mx.array(~hidden) if mask == "boolean" else mx.array(np.where(hidden, -1e9, 0.5), mx.float32)
    if slopes:
        given["slopes"] = mx.array([-0.1, 0.2, 0.0, -0.3])
    if sinks:
        given["sinks"] = mx.array([0.5, -1.0, 2.0, 0.0]).astype(dtype)
    cap = 2.0 if capped else 0.0
    windows: tuple[Window, ...] = ((FAR, FAR), (0, 5))
    for ahead, behind in windows:
        try:
            found = flash_gpu.attend(
                *operands,
                scale=0.3,
                softcap=cap,
                ahead=ahead,
                behind=behind,
                folded=slopes,
                cores=cores(backend(), dtype, heads),
                **given,
            )
            mx.eval(found)
        except (RuntimeError, ValueError) as error:
            return f"failed on this GPU ({str(error).strip().splitlines()[0]})"
        with mx.stream(mx.cpu):
            wide = [
                each if each.dtype == mx.bool_ else each.astype(mx.float32) for each in (*operands, *given.values())
            ]
            arguments = (0.3, (ahead, behind), sinks, cap, "folded" if slopes else "")
            wanted = np.array(OPS[FLASH](arguments, wide, ())[0])
            answer = np.array(found.astype(mx.float32))
        if not np.abs(answer - wanted).max() <= ALLOWED[dtype] * np.abs(wanted).max():
            return "gives a wrong answer on this GPU"
    return None
