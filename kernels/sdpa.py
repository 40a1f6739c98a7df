"""The fused kernel, `mx.fast.scaled_dot_product_attention`: which regions it takes, and what a call of it saves."""

from __future__ import annotations

import mlx.core as mx

from fuser.kernels import own
from fuser.patterns.attention import Attention
from fuser.reading.axes import size_of

FLOATS = (mx.float32, mx.float16, mx.bfloat16)


def refuses(region: Attention, ours: bool = False) -> str | None:
    """Why the kernel cannot compute `region`, or None when it can; `ours` says that our own kernel may be called.

    The rules are those under which `mx.fast.scaled_dot_product_attention` gives the program's answer, on any backend;
    whether a backend has a fused kernel for the sizes is its own affair: where not, MLX computes the same unfused.
    """
    if region.dtype not in FLOATS:
        return f"the kernel does not compute in {str(region.dtype).rpartition('.')[2]}"
    if region.cap is not None:
        reason = ", which the kernel cannot do" if not ours else _ours(region)
        return reason and f"the scores are capped by tanh (softcap){reason}"
    return None


def _ours(region: Attention) -> str | None:
    """Why our kernel, which can cap scores, is not called for a region that needs it."""
    roles = region.roles
    width = size_of(region.products_with_values[0].width)
    reason = own.refuses(region.depth, width, region.dtype)
    if reason is None:
        cells = size_of(roles.batch) * roles.query_heads * size_of(roles.queries) * size_of(roles.keys)
        reason = own.unworthy(cells, cells * (region.depth + width))
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
    hidden = sum(max(0, min(columns, rows - 1 - row)) for row in range(rows))
    outer = size_of(region.roles.batch) * region.roles.query_heads
    width = size_of(region.products_with_values[0].width)
    return 2 * outer * hidden * (region.depth + width)
