"""Attention in float64, for the kernels to be held against."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
FAR = 1 << 30


def reference(
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
) -> Array:
    """What `fuser.kernels.own.attend` is to compute."""
    q, k, v = (each.astype(np.float64) for each in (q, k, v))
    groups = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, groups, 1), np.repeat(v, groups, 1)
    scores = q @ k.swapaxes(-1, -2) * scale
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    rows, columns = scores.shape[-2:]
    reach, column = np.arange(rows)[:, None] + columns - rows, np.arange(columns)
    if slopes is not None:
        away = np.abs(column - reach) if folded else column - reach
        scores = scores + slopes[:, None, None].astype(np.float64) * away
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == np.bool_ else scores + mask
    scores = np.where((column <= reach + ahead) & (column >= reach - behind), scores, -np.inf)
    most = scores.max(-1, keepdims=True)
    if sinks is not None:
        most = np.maximum(most, sinks[:, None, None])
    most = np.where(np.isinf(most), 0, most)
    weights = np.exp(scores - most)
    total = weights.sum(-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks[:, None, None] - most)
    return weights / np.where(total == 0, 1, total) @ v
