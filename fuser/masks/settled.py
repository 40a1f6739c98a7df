"""Masks that are all known: what they mean together, read some rows at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from fuser.ir.known import LARGEST
from fuser.masks.cells import Cells, Frame, blocks, filled, index, length, smallest
from fuser.masks.mask import DROWNS, SURE, SWALLOWS_HALF, VANISHES, Mask, Scale
from fuser.reading.axes import size_of
from fuser.reading.program import Program

FLOAT32_MAX = 3.4028235e38
FLOAT16_MAX = 65504.0
SEVERAL = "masks of several fills meet in rows that are masked wholly"
TWICE = "two masks meet in rows that see nothing, where they add up to less than float16 can hold"
NO_NUMBER = "the mask holds NaN, which a whole row takes over"
NOT_HIDDEN = "the scores are multiplied by zero where no mask hides them"

Empty = Literal["nan", "mean", "sum", "zero"]
Steps = Sequence[tuple[Mask, Cells | None]]


class Settled(NamedTuple):
    """What known masks are together; arrays have one dimension for each axis, of size 1 where they do not vary."""

    kind: Literal["none", "causal", "boolean", "additive"]
    keep: NDArray[np.bool_] | None = None
    bias: NDArray[Any] | None = None
    empty: Empty | None = None


class Keeping:
    """Which keys count, told part by part: an array is made only of what is neither everything nor causal."""

    def __init__(self, frame: Frame, shape: tuple[int, ...]) -> None:
        self._frame, self._shape = frame, shape
        self.everything, self.covers = True, True
        """Whether every key counts; whether some key does in every row."""
        self.causal = size_of(frame.queries) <= size_of(frame.keys)
        self._array: NDArray[np.bool_] | None = None

    def add(self, rows: slice, keep: NDArray[np.bool_]) -> None:
        """The next part."""
        everything = bool(keep.all())
        self.covers = self.covers and (everything or bool(keep.any(axis=self._frame.columns).all()))
        causal = self.causal and bool((keep == self._causal(rows)).all())
        if self._array is None and not (self.everything and everything) and not causal:
            self._array = np.empty(self._shape, bool)
            for before in blocks(self._shape, self._frame.cut):
                if before.start < rows.start:
                    self._array[index(self._frame.cut, before)] = self.everything or self._causal(before)
        if self._array is not None:
            self._array[index(self._frame.cut, rows)] = keep
        self.everything, self.causal = self.everything and everything, causal

    def settled(self, empty: Empty | None = None) -> Settled:
        """What the parts are together; `empty` is what rows give in which no key counts."""
        if self.everything:
            return Settled("none")
        if self._array is None:
            return Settled("causal")
        return Settled("boolean", smallest(self._array), None, empty)

    def _causal(self, rows: slice) -> NDArray[np.bool_]:
        # what does not vary along the rows is told once for all of them
        return self._frame.causal(rows if length(self._shape, self._frame.cut) != 1 else slice(None))


# infinity times zero and numbers beyond the type's largest are read as what they come to
@np.errstate(over="ignore", invalid="ignore")
def settle(steps: Steps, frame: Frame, half: bool, guarded: bool) -> Settled | str | None:
    """What `steps`, all known, mean together, or why the kernel cannot express it.

    None: they are no mere keep mask, and too large for an array of numbers.
    """
    shape = np.broadcast_shapes((1,) * len(frame.axes), *(cells.shape for _, cells in steps if cells is not None))
    keeping = _hidden_alone(steps, frame, shape)
    if keeping is not None and keeping.covers:
        return keeping.settled()
    large = any(cells is not None and cells.nbytes > LARGEST for _, cells in steps)
    if large and keeping is None and all(mask.kind == "add" for mask, _ in steps):
        return None
    return _added(steps, frame, shape, half, guarded, large)


def _hidden_alone(steps: Steps, frame: Frame, shape: tuple[int, ...]) -> Keeping | None:
    """Which keys count, when all masks only hide keys; None when some do else.

    Most masks are of this kind: they are not made numbers of.
    """
    if any(mask.kind == "times" for mask, _ in steps) or all(cells is None for _, cells in steps):
        return None
    keeping = Keeping(frame, shape)
    for rows in blocks(shape, frame.cut):
        keep: NDArray[np.bool_] = np.ones((1,) * len(shape), bool)
        for mask, cells in steps:
            if cells is None:
                continue
            part = cells.part(rows)
            if mask.kind == "keep":
                keep = keep & (truth(part) != mask.inverted)
                continue
            shown = part == 0
            hidden = part * mask.scale.number <= VANISHES if mask.scale.number != 1 else part <= VANISHES
            if not (shown | hidden).all():
                return None
            keep = keep & ~hidden
        keeping.add(rows, keep)
    return keeping


def _added(
    steps: Steps, frame: Frame, shape: tuple[int, ...], half: bool, guarded: bool, large: bool
) -> Settled | str | None:
    """What the masks add up to, and where the score itself is lost."""
    sure = SURE if half else DROWNS
    if any(largest(mask) == FLOAT16_MAX for mask, _ in steps if mask.kind == "add"):
        sure = SWALLOWS_HALF
    keeping, sums, numbers, hidden_rows = Keeping(frame, shape), None, False, _Hidden(max(sure, SURE))
    for rows in blocks(shape, frame.cut):
        total, lost = summed(steps, rows, len(shape))
        if np.isnan(np.min(total)):
            return NO_NUMBER
        counts = total > VANISHES
        if lost is not None and (lost & counts).any():
            return NOT_HIDDEN
        seen: NDArray[np.bool_] = np.any(counts, axis=frame.columns, keepdims=True)
        if not seen.all():
            hidden_rows.add(total, lost, np.logical_not(seen))
        if sums is None and not numbers and ((total == 0) | ~counts).all():
            keeping.add(rows, counts)
            continue
        if large:
            numbers = True
            continue
        if sums is None:
            sums = _Sums(shape, frame.cut)
            sums.fill(steps, rows.start)
        sums.add(rows, total)
    if numbers:
        return None
    empty: Empty | None = None
    if hidden_rows.values:
        if hidden_rows.values == {-math.inf}:
            empty = "zero" if guarded else "nan"
        elif not hidden_rows.lost and any(mask.kind == "floor" and mask.fill > max(sure, SURE) for mask, _ in steps):
            return SEVERAL
        elif len(hidden_rows.values) == 1 and (hidden_rows.lowest <= sure or hidden_rows.lost):
            empty = "mean"
        elif hidden_rows.lost_high:
            return SEVERAL
        elif half and hidden_rows.lowest <= sure:
            return TWICE
        elif len(hidden_rows.drowning) > 1:
            return SEVERAL
        else:
            if large:
                return None
            if sums is None:
                sums = _Sums(shape, frame.cut)
                sums.fill(steps, length(shape, frame.cut))
            return Settled("additive", None, smallest(sums.array), "zero" if guarded else None)
    if sums is None:
        return keeping.settled(empty)
    if empty == "mean":
        # in float16 the kernel, which adds in float32, swallows nothing, and nowhere does a number that is not so low
        # (it stands for scores that are lost): the rows are answered after it
        late = half or hidden_rows.lowest > SURE
        keep = smallest(sums.counts()) if late else None
        return Settled("additive", keep, smallest(sums.array), "mean" if late else None)
    return Settled("additive", None, smallest(sums.lowered(frame.columns)), empty)


class _Hidden:
    """What is added to scores in rows in which no key counts."""

    def __init__(self, high: float) -> None:
        self._high = high
        self.values: set[float] = set()
        """What is added; no more than two of all numbers, where there are several."""
        self.lowest = math.inf
        self.drowning: set[float] = set()
        """As `values`, of the finite numbers so low that nothing is left of any score."""
        self.lost, self.lost_high = True, False
        """Whether all scores there are lost; whether one is where the sum is no surely low number."""

    def add(self, total: NDArray[Any], lost: NDArray[np.bool_] | None, hidden: NDArray[np.bool_]) -> None:
        """The next part."""
        cells = np.broadcast_to(hidden, total.shape)
        here = total[cells].astype(np.float64)
        self.lowest = min(self.lowest, float(np.fmin.reduce(here)))
        self.values |= _two(here)
        self.drowning |= _two(here[(here <= DROWNS) & (here > -math.inf)])
        if lost is None:
            self.lost = False
            return
        self.lost = self.lost and bool(np.broadcast_to(lost, total.shape)[cells].all())
        self.lost_high = self.lost_high or bool((lost & hidden & (total > self._high)).any())


def _two(array: NDArray[Any]) -> set[float]:
    """Two of the numbers of an array, or the one that all are; NaN is never the same."""
    rest = array[1:][array[1:] != array[:1]]
    return {*array[:1].tolist(), *rest[:1].tolist()}


class _Sums:
    """What masks add up to, in float32 where that is exact."""

    def __init__(self, shape: tuple[int, ...], cut: int) -> None:
        self._cut = cut
        self.array: NDArray[Any] = np.empty(shape, np.float32)

    def add(self, rows: slice, total: NDArray[Any]) -> None:
        """The sums of some rows."""
        if total.dtype != self.array.dtype == np.float32:
            with np.errstate(over="ignore"):
                exact = np.array_equal(total.astype(np.float32), total)
            self.array = self.array if exact else self.array.astype(np.float64)
        self.array[index(self._cut, rows)] = total

    def fill(self, steps: Steps, stop: int) -> None:
        """The rows before `stop`."""
        for rows in blocks(self.array.shape, self._cut):
            if rows.start < stop:
                self.add(rows, summed(steps, rows, self.array.ndim)[0])

    def counts(self) -> NDArray[np.bool_]:
        """Which keys count."""
        return filled(self.array.shape, self._cut, lambda rows: self.array[index(self._cut, rows)] > VANISHES)

    def lowered(self, columns: tuple[int, ...]) -> NDArray[Any]:
        """The sums, minus infinity where no weight is left beside the highest one along the `columns`."""
        for rows in blocks(self.array.shape, self._cut):
            part = self.array[index(self._cut, rows)]
            part[~(part > VANISHES + np.minimum(part.max(axis=columns, keepdims=True), 0))] = -math.inf
        return self.array


@np.errstate(over="ignore", invalid="ignore")
def summed(steps: Steps, rows: slice, axes: int) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """What the masks add to scores in some rows, and where the score itself is lost (None: nowhere)."""
    total: NDArray[Any] | None = None
    lost: NDArray[np.bool_] | None = None
    zero = np.zeros((1,) * axes)
    for mask, cells in reversed(steps):
        if mask.kind == "floor":
            total = zero if total is None else total
            # a score may lift a sum that is not far below
            low = total < mask.fill + VANISHES
            total, lost = np.maximum(total, mask.fill), low if lost is None else lost | low
            continue
        assert cells is not None
        part = cells.part(rows)
        if mask.kind == "add" and len(steps) == 1 and mask.scale.number == 1 and part.dtype == np.float32:
            return part, None
        if mask.kind == "add":
            plain = part.astype(np.float64) if mask.scale.number == 1 else part.astype(np.float64) * mask.scale.number
            total = plain if total is None else total + plain
            # two of the lowest numbers make minus infinity, before they are scaled, and so may one, scaled
            lowest = -min(largest(mask) * abs(mask.scale.number), FLOAT32_MAX)
            if (total < lowest).any():
                total = np.where(total < lowest, -math.inf, total)
        else:
            dropped = truth(part) == mask.inverted
            fill: Any = mask.fill
            if mask.kind == "times" and total is not None:
                fill = np.where(np.isfinite(total), fill, math.nan)
            total = np.where(dropped, fill, zero if total is None else total)
            lost = dropped if lost is None else lost | dropped
    return (zero if total is None else total), lost


def filled_in(steps: Steps, frame: Frame) -> Steps:
    """`steps` with each `scores * m + f`, both known, as the keep mask that it is where `f` fills what `m` drops."""
    found = list(steps)
    for pair in pairwise(steps):
        if [mask.kind for mask, _ in pair] != ["add", "times"] or any(cells is None for _, cells in pair):
            continue
        shape = np.broadcast_shapes(*(cells.shape for _, cells in pair if cells is not None))
        fills = set[float]()
        for rows in blocks(shape, frame.cut):
            total, lost = summed(pair, rows, len(shape))
            dropped = np.broadcast_to(False if lost is None else lost, total.shape)
            # what is kept has nothing added
            fills |= _two(total[dropped]) | ({math.nan} if total[~dropped].any() else set())
        if len(fills) == 1 and math.isfinite(fill := fills.pop()):
            _, (inner, cells) = pair
            at = found.index(pair[0])
            found[at : at + 2] = [(replace(inner, kind="keep", scale=Scale(), fill=fill), cells)]
    return found


def all_hold(program: Program, conditions: Sequence[tuple[Cells, bool]], frame: Frame) -> NDArray[np.bool_] | None:
    """Where all conditions (some of them inverted) hold; None for everywhere."""
    key = ("all hold", *((id(cells), inverted) for cells, inverted in conditions), frame.form)

    def part(rows: slice) -> NDArray[np.bool_]:
        keep: NDArray[np.bool_] = np.ones((1,) * len(frame.axes), bool)
        for cells, inverted in conditions:
            keep = keep & (truth(cells.part(rows)) != inverted)
        return keep

    if key not in program.memo:
        shape = np.broadcast_shapes((1,) * len(frame.axes), *(cells.shape for cells, _ in conditions))
        keep = smallest(filled(shape, frame.cut, part))
        program.memo[key] = None if keep.all() else keep
    found: NDArray[np.bool_] | None = program.memo[key]
    return found


def truth(array: NDArray[Any]) -> NDArray[np.bool_]:
    """Where an array holds, as a condition."""
    return array if array.dtype == bool else array != 0


def largest(mask: Mask) -> float:
    """The largest number of the type in which the program adds a mask."""
    return FLOAT16_MAX if mask.term.value.dtype == mx.float16 else FLOAT32_MAX
