"""The fused kernel, `mx.fast.scaled_dot_product_attention`: which regions it takes, and what a call of it saves."""

from __future__ import annotations

import mlx.core as mx

from fuser.ir.types import TensorType
from fuser.kernels import own
from fuser.kernels.admission import HALVES, Call, backend
from fuser.kernels.cost import When, gains_nothing, memory, unworthy
from fuser.reading.axes import size_of
from fuser.regions import Attention

FLOATS = (mx.float32, mx.float16, mx.bfloat16)


def refuses(region: Attention, ours: bool = False, when: When = "always") -> str | None:
    """Why the kernel cannot compute `region`, or None when it can; `ours` says that our own kernel may be called.

    With `when="profitable"` a region is refused, too, where fusing it gains nothing.

    The rules are those under which `mx.fast.scaled_dot_product_attention` gives the program's answer, on any backend;
    whether a backend has a fused kernel for the sizes is its own affair: where not, MLX computes the same unfused.
    """
    if region.dtype not in FLOATS:
        return f"the kernel does not compute in {str(region.dtype).rpartition('.')[2]}"
    if region.cap is not None:
        reason = ", which the kernel cannot do" if not ours else _ours(region, when)
        return reason and f"the scores are capped by tanh (softcap){reason}"
    return gains_nothing(called(region), backend(), memory()) if when == "profitable" else None


def called(region: Attention) -> Call:
    """The call that `region` becomes."""
    roles = region.roles
    outer, rows, columns = size_of(roles.batch), size_of(roles.queries), size_of(roles.keys) + region.sinks_differ
    width = size_of(region.products_with_values[0].width)
    q, k, v = (
        TensorType((outer, heads, length, size), region.dtype)
        for heads, length, size in (
            (roles.query_heads, rows, region.depth),
            (roles.key_heads, columns, region.depth),
            (roles.key_heads, columns, width),
        )
    )
    if region.sinks_differ:
        return Call(q, k, v, "additive", False)
    return Call(q, k, v, region.mask.kind, region.sink is not None)


def _ours(region: Attention, when: When) -> str | None:
    """Why our kernel, which can cap scores, is not called for a region that needs it."""
    call = called(region)
    reason = None
    # on a CPU, and in half types on CUDA, it costs no more than the steps that it stands for, however few the scores
    if when == "profitable" and backend() != "cpu" and not (backend() == "cuda" and call.dtype in HALVES):
        reason = unworthy(call, backend(), memory())
    # what does not pay is not built
    reason = reason or own.refuses(call, capped=True)
    return reason and f": {reason}"


def bytes_saved(region: Attention) -> int:
    """The bytes that are no longer written: scores and weights in full, and keys and values repeated for each head."""
    roles = region.roles
    outer = size_of(roles.batch) * roles.query_heads
    cells = outer * size_of(roles.queries) * size_of(roles.keys)
    size = region.softmax.weights.dtype.size
    width = size_of(region.products_with_values[0].width)
    repeated = (roles.query_heads - roles.key_heads) * size_of(roles.batch) * size_of(roles.keys)
    return 2 * cells * size + repeated * (region.depth + width) * region.dtype.size


def flops_saved(region: Attention) -> int:
    """The floating-point operations that are no longer done: under a causal mask, those above the diagonal."""
    if region.mask.kind != "causal":
        return 0
    rows, columns = size_of(region.roles.queries), size_of(region.roles.keys)
    # one key for the last row but one, one more for each row before it, until there are no more keys
    steps = min(rows - 1, columns)
    hidden = steps * (steps + 1) // 2 + (rows - 1 - steps) * columns
    outer = size_of(region.roles.batch) * region.roles.query_heads
    width = size_of(region.products_with_values[0].width)
    return 2 * outer * hidden * (region.depth + width)
