"""A head size that no fused kernel takes, padded with zeros to one that a kernel does.

Zeros in queries and keys add nothing to a score; zeros in values are columns of the answer that are cut off again.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import mlx.core as mx

from fuser.ir.types import TensorType
from fuser.kernels import admission
from fuser.kernels.admission import METAL_TILED, METAL_VECTOR, Call

# scores of the call that is timed where it has to be: a larger one takes as much more either way
TIMED = 1 << 24
# what padding is to take at most, of the unfused way's time
WORTH = 0.9
ROUNDS = 7


def padded(call: Call) -> Call | None:
    """The call with larger heads that reaches a fused kernel where `call` reaches none; None when that does not help.

    On CUDA our own kernel takes such sizes as they are. On Metal it is measured where it runs: the kernel's next size
    is up to 1.6 times the work.
    """
    # a call that has a kernel, or of which MLX says that the unfused way is faster, is left as it is
    if admission.backend() == "metal" and (found := admission.metal(call)).kernel is None and not found.forced:
        sizes = sorted(size for size, width in METAL_TILED | METAL_VECTOR if size == width and size >= max(call.heads))
        takes = (larger for size in sizes if admission.metal(larger := _widened(call, size)).kernel is not None)
        first = next(takes, None)
        return first if first is not None and faster(_smaller(call), _smaller(first)) else None
    return None


def _widened(call: Call, size: int) -> Call:
    q, k, v = (TensorType((*type.shape[:3], size), type.dtype) for type in (call.q, call.k, call.v))
    return replace(call, q=q, k=k, v=v)


def _smaller(call: Call) -> Call:
    """The call over fewer heads, then fewer queries and keys, so that trying it takes little time and memory."""
    groups, shared, batch = call.groups, call.k.shape[1], call.q.shape[0]
    rows, columns = call.lengths
    while batch * shared * groups * rows * columns > TIMED:
        if batch > 1:
            batch //= 2
        elif shared > 1:
            shared //= 2
        else:
            rows, columns = max(rows // 2, 1), columns // 2
    q, k, v = (
        TensorType((batch, heads, length, type.shape[3]), type.dtype)
        for type, heads, length in (
            (call.q, shared * groups, rows),
            (call.k, shared, columns),
            (call.v, shared, columns),
        )
    )
    return replace(call, q=q, k=k, v=v)


@functools.lru_cache(256)
def faster(call: Call, larger: Call) -> bool:
    """Whether `call`, made as `larger`, takes clearly less time on this machine than as it is; measured once."""
    q, k, v = (mx.random.normal(t.shape, t.dtype, key=mx.random.key(n)) for n, t in enumerate((call.q, call.k, call.v)))
    mask: mx.array | str | None = "causal" if call.mask == "causal" else None
    if call.array:
        kind = mx.bool_ if call.mask == "boolean" else call.dtype
        mask = mx.ones(call.lengths, kind)
    sinks = mx.zeros(call.q.shape[1], call.dtype) if call.sinks else None
    ways: tuple[Callable[[], mx.array], ...] = (
        lambda: mx.fast.scaled_dot_product_attention(q, k, v, scale=0.1, mask=mask, sinks=sinks),
        lambda: attend(larger, (q, k, v), scale=0.1, mask=mask, sinks=sinks),
    )
    times: tuple[list[float], list[float]] = [], []
    mx.eval(q, k, v, *(way() for way in ways))
    for _ in range(ROUNDS):
        for way, taken in zip(ways, times, strict=True):
            start = clock()
            mx.eval(way())
            taken.append(clock() - start)
    plain, wide = map(statistics.median, times)
    return wide < WORTH * plain


clock = time.perf_counter


def attend(
    larger: Call, x: Sequence[mx.array], *, scale: float, mask: mx.array | str | None, sinks: mx.array | None
) -> mx.array:
    """The call over queries, keys and values `x`, made as `larger`."""
    width = x[2].shape[3]
    q, k, v = (
        mx.pad(array, [(0, 0), (0, 0), (0, 0), (0, type.shape[3] - array.shape[3])])
        for array, type in zip(x, (larger.q, larger.k, larger.v), strict=True)
    )
    found = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask, sinks=sinks)
    return found[..., :width]
