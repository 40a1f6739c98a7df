"""Our attention kernel on a CPU that has no C++ compiler: numpy and its BLAS, in blocks, with a running softmax.

Slower than the compiled code by what numpy's passes over each block cost, and as frugal: nothing grows with the product
of the lengths.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fuser.kernels.bands import FAR

Array = NDArray[Any]
ROWS, COLUMNS = 256, 512


def attend(
    q: Array,
    k: Array,
    v: Array,
    *,
    scale: float,
    mask: Array | None = None,
    sinks: Array | None = None,
    slopes: Array | None = None,
    folded: bool = False,
    softcap: float = 0.0,
    ahead: int = FAR,
    behind: int = FAR,
    fill: float = -math.inf,
    empty: float = 0.0,
) -> Array:
    """As `fuser.kernels.host.attend`, which calls it."""
    batch, heads, queries, _ = q.shape
    keys, groups = k.shape[2], heads // k.shape[1]
    out = np.empty((batch, heads, queries, v.shape[3]), np.float32)
    full = None if mask is None else np.broadcast_to(mask, (batch, heads, queries, keys))
    offset = keys - queries
    for b, h, first in np.ndindex(batch, heads, -(-queries // ROWS)):
        rows = slice(first * ROWS, min((first + 1) * ROWS, queries))
        reach = np.arange(rows.start, rows.stop, dtype=np.int32)[:, None] + offset
        query = q[b, h, rows] * np.float32(scale)
        most = np.full((len(query), 1), np.finfo(np.float32).min, np.float32)
        total = np.zeros_like(most)
        if sinks is not None:
            most[:], total[:] = sinks[h], 1
        sum_ = np.zeros((len(query), v.shape[3]), np.float32)
        start = max(0, rows.start + offset - behind)
        stop = min(keys, rows.stop + offset + ahead)
        for left in range(start, stop, COLUMNS):
            columns = slice(left, min(left + COLUMNS, stop))
            column = np.arange(columns.start, columns.stop, dtype=np.int32)
            scores = query @ k[b, h // groups, columns].T
            if softcap:
                scores = np.tanh(scores / np.float32(softcap)) * np.float32(softcap)
            if slopes is not None:
                scores += np.float32(slopes[h]) * (np.abs(column - reach) if folded else column - reach)
            if full is not None:
                part = full[b, h, rows, columns]
                scores = np.where(part, scores, np.float32(fill)) if part.dtype == np.bool_ else scores + part
            if columns.stop - 1 > rows.start + offset + ahead or columns.start < rows.stop - 1 + offset - behind:
                scores = np.where((column <= reach + ahead) & (column >= reach - behind), scores, -np.inf)
            top = np.maximum(most, scores.max(axis=1, keepdims=True))
            fade = np.exp(most - top)
            np.subtract(scores, top, out=scores)
            np.exp(scores, out=scores)
            total = total * fade + scores.sum(axis=1, keepdims=True)
            sum_ = sum_ * fade + scores @ v[b, h // groups, columns]
            most = top
        out[b, h, rows] = np.where(total == 0, np.float32(empty), sum_ / np.where(total == 0, np.float32(1), total))
    return out
