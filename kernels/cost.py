"""When fusing pays: one small rule over sizes, type and backend, which `optimize(..., when="always")` leaves out.

MLX's kernel is asked for wherever there is one, and everywhere on Metal and on CPUs. The numbers behind the exceptions
are in `docs/kernels.md`.
"""

from __future__ import annotations

import functools
from typing import Literal

import mlx.core as mx

from fuser.kernels.admission import HALVES, Backend, Call, cuda, hopper

When = Literal["always", "profitable"]
# below this many multiplications the cut that a step of our own needs costs more than MLX's slow products
WORTH = 1 << 17
WIDE, MANY = 160, 1024
# bytes for each score that the unfused way holds at its peak
UNFUSED = 8


def gains_nothing(call: Call, where: Backend, memory: int) -> str | None:
    """Why a call of MLX's kernel is no better than the steps it would stand for, or None; `memory` is the GPU's."""
    if where != "cuda" or call.dtype != mx.float32 or cuda(call).kernel is not None:
        return None
    # grouped heads spare the repeated keys and values
    if call.groups > 1 or fills(call.cells, memory):
        return None
    return 'CUDA has no fused kernel for float32, and nothing is gained there (`when="always"` fuses it all the same)'


def unworthy(call: Call, where: Backend, memory: int) -> str | None:
    """Why our kernel does not pay where MLX has none, or None; `memory` is the GPU's."""
    if where == "cpu":
        few = call.cells * sum(call.heads) < WORTH
        return "our kernel pays from 2^17 multiplications on" if few else None
    if where == "cuda" and call.dtype in HALVES:
        # wide heads leave few registers to a warp: over many keys, all of which are seen, MLX's products are faster
        slow = not hopper() and call.mask == "none" and max(call.heads) > WIDE and min(call.lengths) > MANY
        return f"our kernel is slower for head sizes over {WIDE} without a mask" if slow else None
    # MLX's compiled steps are faster there: what it saves is memory
    return None if fills(call.cells, memory) else "our kernel for it, slow on a GPU, is for scores that fill its memory"


def fills(cells: int, memory: int) -> bool:
    """Whether the unfused way takes more than half of a GPU's memory."""
    return cells * UNFUSED > memory // 2


@functools.cache
def memory() -> int:
    """The bytes of the GPU's memory."""
    found = mx.device_info()
    return int(found.get("total_memory") or found.get("memory_size") or 64 << 30)
