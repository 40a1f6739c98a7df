"""Masks that are known, in fewer numbers than they have cells: a window of keys around each query, slopes of ALiBi.

Pure functions over arrays; how our kernel takes what they find is in `fuser.kernels.own`. Row i of `rows` stands at the
key i + columns - rows, as it does for the kernel's causal mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# no limit; leaves room to add lengths to it
FAR = 1 << 30
# so many cells are looked at together: enough that it is not the calls that cost
CELLS = 1 << 20
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
    first, last = _spans(keep)
    some = last >= first
    if not some.any() or not _are_spans(keep, first, last):
        return None
    place = np.arange(rows) + columns - rows
    # rows at an edge of the keys do not tell how far they would see
    ahead, behind = (last - place)[some & (last < columns - 1)], (place - first)[some & (first > 0)]
    a, b = (int(found[0]) if found.size else FAR for found in (ahead, behind))
    left, right = np.maximum(place - b, 0), np.minimum(place + a, columns - 1)
    same = np.where(some, (left == first) & (right == last), left > right)
    return (a, b) if same.all() else None


def _spans(keep: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Where each row begins and where it ends, if it has no hole; an empty row ends before it begins."""
    # NumPy copies what `argmax` is given, when that is not to be written to
    first = np.concatenate([keep[part].argmax(axis=1) for part in _parts(*keep.shape)])
    return first, first + keep.sum(axis=1) - 1


def _are_spans(keep: NDArray[np.bool_], first: NDArray[Any], last: NDArray[Any]) -> bool:
    columns = np.arange(keep.shape[1], dtype=np.int32)
    first, last = (ends.astype(np.int32)[:, None] for ends in (first, last))
    return all(
        np.array_equal((columns >= first[rows]) & (columns <= last[rows]), keep[rows]) for rows in _parts(*keep.shape)
    )


def _parts(rows: int, cells: int) -> Iterator[slice]:
    """Some rows at a time, of so many cells each: arrays of the size of the mask are slow to make."""
    step = max(1, CELLS // max(cells, 1))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def tilt_of(bias: NDArray[Any], shifted: bool = True) -> Tilt | None:
    """The slopes and the window that `bias`, `[heads, rows, columns]`, minus infinity outside the window, is made of.

    `shifted` says that a row may have one number more than the slopes give: no softmax without a sink sees it. What is
    found differs from a row of `bias` by less than its largest number is rounded to in float32: None otherwise.
    """
    return tilt_in(bias.shape, lambda part: bias[:, part], shifted)


def tilt_in(
    shape: tuple[int, ...], read: Callable[[slice], NDArray[Any]], shifted: bool, lowest: float = -np.inf
) -> Tilt | None:
    """`tilt_of` an array of `shape`, read some rows at a time; None, too, for a finite number not above `lowest`."""
    heads, rows, columns = shape
    seen = np.empty((rows, columns), bool)
    for part in _parts(rows, heads * columns):
        some = read(part)
        # NaN is no number either
        if not np.max(some) < np.inf:
            return None
        here = some > -np.inf
        if not (here[1:] == here[:1]).all() or (here & (some <= lowest)).any():
            return None
        seen[part] = here[0]
    window = window_of(seen)
    if window is None:
        return None
    first, last = _spans(seen)
    widest = int((last - first).argmax())
    # the ends may lie equally far on both sides
    ends, middle = (int(first[widest]), int(last[widest])), widest + columns - rows
    for folded in (False, True):
        away = [abs(end - middle) if folded else end - middle for end in ends]
        start, stop = ends if away[0] != away[1] else (ends[0], min(max(middle, ends[0]), ends[1]))
        span = (abs(stop - middle) if folded else stop - middle) - away[0]
        if not span:
            continue
        row = read(slice(widest, widest + 1))[:, 0].astype(np.float64)
        slopes = ((row[:, stop] - row[:, start]) / span).astype(np.float32)
        if all(
            _fits(read(part), slopes, _distance(part, seen.shape, folded), shifted)
            for part in _parts(rows, heads * columns)
        ):
            return Tilt(slopes, folded, window)
    return None


def _distance(part: slice, shape: tuple[int, int], folded: bool) -> NDArray[np.float64]:
    """How far each key lies ahead of its query."""
    rows, columns = shape
    places = np.arange(part.start, part.stop) + columns - rows
    away: NDArray[np.float64] = np.subtract(np.arange(columns), places[:, None], dtype=np.float64)
    if folded:
        np.abs(away, out=away)
    return away


def _fits(bias: NDArray[Any], slopes: NDArray[np.float32], distance: NDArray[np.float64], shifted: bool) -> bool:
    seen = bias[0] > -np.inf
    rows = np.arange(len(seen))
    first, last = _spans(seen)
    last = np.maximum(last, first)
    for head, slope in zip(bias, slopes, strict=True):
        rest = distance * -float(slope)
        rest += head
        if shifted:
            with np.errstate(invalid="ignore"):
                rest -= rest[rows, first][:, None]
        np.abs(rest, out=rest)
        # the largest number of a row is that of its ends, as a rule
        most = np.maximum(np.abs(head[rows, first]), np.abs(head[rows, last])).astype(np.float64)
        if not (~seen | (rest <= 2.0**-23 * most[:, None])).all():
            most = np.where(seen, np.abs(head), 0).max(axis=1, keepdims=True).astype(np.float64)
            if not (~seen | (rest <= 2.0**-23 * most)).all():
                return False
    return True
