"""Masks that are known, in fewer numbers than they have cells: a window of keys around each query, slopes of ALiBi.

Pure functions over arrays; how our kernel takes what they find is in `fuser.kernels.own`. Row i of `rows` stands at the
key i + columns - rows, as it does for the kernel's causal mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# no limit; leaves room to add lengths to it
FAR = 1 << 30
ROWS = 64
Window = tuple[int, int]
"""How many keys ahead of its place a query sees, and how many behind."""


@dataclass(frozen=True)
class Tilt:
    """A bias that grows with the distance between query and key: for each head a slope, inside of one window."""

    slopes: NDArray[np.float32]
    folded: bool
    """Whether it grows to both sides."""
    window: Window


def window_of(keep: NDArray[np.bool_]) -> Window | None:
    """The window that `keep`, `[rows, columns]`, is; None when it is none."""
    rows, columns = keep.shape
    some = keep.any(axis=1)
    if not some.any():
        return None
    first, last = keep.argmax(axis=1), columns - 1 - keep[:, ::-1].argmax(axis=1)
    if (keep.sum(axis=1) != np.where(some, last - first + 1, 0)).any():
        return None
    place = np.arange(rows) + columns - rows
    # rows at an edge of the keys do not tell how far they would see
    ahead, behind = (last - place)[some & (last < columns - 1)], (place - first)[some & (first > 0)]
    a, b = (int(found[0]) if found.size else FAR for found in (ahead, behind))
    left, right = np.maximum(place - b, 0), np.minimum(place + a, columns - 1)
    same = np.where(some, (left == first) & (right == last), left > right)
    return (a, b) if same.all() else None


def tilt_of(bias: NDArray[Any], shifted: bool = True) -> Tilt | None:
    """The slopes and the window that `bias`, `[heads, rows, columns]`, minus infinity outside the window, is made of.

    `shifted` says that a row may have one number more than the slopes give: no softmax without a sink sees it. What is
    found differs from a row of `bias` by less than its largest number is rounded to in float32: None otherwise.
    """
    seen = bias[0] > -np.inf
    window = window_of(seen)
    if window is None or not all(np.array_equal(head > -np.inf, seen) for head in bias[1:]):
        return None
    rows, columns = seen.shape
    away = np.arange(columns) - (np.arange(rows)[:, None] + columns - rows)
    widest = int(seen.sum(axis=1).argmax())
    ends = np.flatnonzero(seen[widest])[[0, -1]]
    for folded in (False, True):
        distance = np.abs(away) if folded else away
        low, high = distance[widest, ends]
        # the ends may lie equally far on both sides
        start, stop = ends if low != high else (ends[0], min(max(columns - rows + widest, ends[0]), ends[1]))
        span = distance[widest, stop] - distance[widest, start]
        if not span:
            continue
        slopes = ((bias[:, widest, stop] - bias[:, widest, start]) / span).astype(np.float32)
        if all(_fits(head, slope, distance, seen, shifted) for head, slope in zip(bias, slopes, strict=True)):
            return Tilt(slopes, folded, window)
    return None


def _fits(
    bias: NDArray[Any], slope: np.float32, distance: NDArray[Any], seen: NDArray[np.bool_], shifted: bool
) -> bool:
    # some rows at a time: arrays of the size of the mask are slow to make
    parts = [slice(start, start + ROWS) for start in range(0, len(seen), ROWS)]
    for rows in parts:
        most = np.abs(bias[rows], where=seen[rows], out=np.zeros(seen[rows].shape)).max(axis=1, keepdims=True)
        rest = np.subtract(bias[rows], float(slope) * distance[rows], where=seen[rows], out=np.zeros(seen[rows].shape))
        if shifted:
            place = seen[rows].argmax(axis=1)[:, None]
            rest = np.where(seen[rows], rest - np.take_along_axis(rest, place, axis=1), 0)
        if (np.abs(rest) > 2.0**-23 * most).any():
            return False
    return True
