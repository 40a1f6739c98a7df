"""Known masks cell by cell, some rows at a time: what is decided of them takes no arrays of the size of the scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fuser.ir.graph import Value
from fuser.ir.identity import digest
from fuser.ir.known import LARGEST, readable
from fuser.ir.rows import Rows
from fuser.masks.mask import VANISHES, Mask
from fuser.reading.axes import Dim, axes_of, resolve, size_of
from fuser.reading.program import Program, Term

T = TypeVar("T")
# so many cells are looked at together: enough that it is not the calls that cost
BLOCK = 1 << 20


@dataclass(frozen=True)
class Frame:
    """The axes of a region's scores, and what they are."""

    axes: Dim
    queries: Dim
    keys: Dim

    @property
    def cut(self) -> int:
        """The place of the axis along which masks are read part by part, no key's; -1 when there is none."""
        places = [i for i, axis in enumerate(self.axes) if axis not in self.keys]
        return max(places, key=lambda i: (self.axes[i] in self.queries, self.axes[i].size), default=-1)

    @property
    def columns(self) -> tuple[int, ...]:
        """The places of the keys."""
        return tuple(self.axes.index(key) for key in self.keys)

    @property
    def form(self) -> Hashable:
        """What is the same for the regions of two layers that are alike."""
        queries = tuple(self.axes.index(axis) for axis in self.queries)
        return tuple(axis.size for axis in self.axes), queries, self.columns

    def causal(self, rows: slice) -> NDArray[np.bool_]:
        """The kernel's causal mask in these rows along the cut: row i keeps the columns up to i + columns - rows."""
        row, column = self._place(self.queries), self._place(self.keys)
        row = row[index(self.cut, rows)] if length(row.shape, self.cut) != 1 else row
        return column <= row + (size_of(self.keys) - size_of(self.queries))

    def _place(self, some: Dim) -> NDArray[np.int32]:
        """Which row (or column) each cell is in."""
        order = np.arange(size_of(some), dtype=np.int32).reshape([axis.size for axis in some])
        return _laid(order, some, self.axes)


class Cells:
    """A known array over the axes of a frame, one dimension for each (of size 1 where it does not vary).

    Its parts may be views, not to be written to.
    """

    def __init__(self, shape: tuple[int, ...], cut: int, nbytes: int, read: Callable[[slice], NDArray[Any]]) -> None:
        self.shape, self.nbytes = shape, nbytes
        self._cut, self._read = cut, read
        self._found: dict[Hashable, Any] = {}

    def part(self, rows: slice) -> NDArray[Any]:
        """These rows; everything, where it does not vary along the cut."""
        if length(self.shape, self._cut) == 1:
            return self.once("one", lambda: self._read(slice(0, 1)))
        return self._read(rows)

    def parts(self) -> Iterator[NDArray[Any]]:
        """All parts in turn."""
        return (self.part(rows) for rows in blocks(self.shape, self._cut))

    def whole(self) -> NDArray[Any]:
        """The whole array; always the same one."""
        return self.once("whole", lambda: filled(self.shape, self._cut, self.part))

    def all(self, test: Callable[[NDArray[Any]], NDArray[np.bool_]]) -> bool:
        """Whether every cell passes the test."""
        return all(bool(test(part).all()) for part in self.parts())

    def any(self, test: Callable[[NDArray[Any]], NDArray[np.bool_]]) -> bool:
        """Whether some cell does."""
        return any(bool(test(part).any()) for part in self.parts())

    def hides_alone(self) -> bool:
        """Whether all numbers are zero, or so low that no weight is left, and some are."""

        def find() -> bool:
            return self.all(lambda x: (x == 0) | (x <= VANISHES)) and self.any(lambda x: x <= VANISHES)

        return self.once("hides", find)

    @np.errstate(over="ignore", invalid="ignore")
    def reaches(self, number: float, limit: float) -> bool:
        """Whether some cell, times `number`, is as low as `limit`."""
        return self.once(("reaches", number, limit), lambda: self.any(lambda x: x * number <= limit))

    def binary(self) -> bool:
        """Whether all numbers are zeros and ones."""
        return self.once("binary", lambda: self.all(lambda x: (x == 0) | (x == 1)))

    def ends(self) -> tuple[float, float]:
        """The lowest and the highest number; NaN where there is one."""

        def find() -> tuple[float, float]:
            with np.errstate(invalid="ignore"):
                ends = np.array([(part.min(), part.max()) for part in self.parts()], np.float64)
            return float(ends[:, 0].min()), float(ends[:, 1].max())

        return self.once("ends", find)

    @np.errstate(over="ignore", invalid="ignore")
    def low(self, number: float, limit: float) -> frozenset[float] | None:
        """All numbers but zero, times `number`, when none is above `limit`; None when one is."""

        def find() -> frozenset[float] | None:
            found: set[float] = set()
            for part in self.parts():
                some = part[part != 0].astype(np.float64)
                if not some.size:
                    continue
                # most masks hold one other number
                some = (some[:1] if (some == some[0]).all() else np.unique(some)) * number
                if not (some <= limit).all():
                    return None
                found |= set(some.tolist())
            return frozenset(found)

        return self.once(("low", number, limit), find)

    def once(self, key: Hashable, find: Callable[[], T]) -> T:
        """What `find` gives, found once."""
        if key not in self._found:
            self._found[key] = find()
        found: T = self._found[key]
        return found


def cells_of(program: Program, mask: Mask, frame: Frame) -> Cells | None:
    """What `mask` is over the axes of `frame`; None when it is not known, or too large to look at.

    Layers that make the same mask, each for itself, get the same cells.
    """
    value, own = mask.term.value, axes_of(mask.term.dims)
    if mask.array is None and (not program.known.is_known(value) or value.type.size > LARGEST):
        return None
    column = axes_of([mask.piece[1]]) if mask.piece else ()
    places = tuple(frame.axes.index(axis) if axis in frame.axes else ~column.index(axis) for axis in own)
    piece = mask.piece and (mask.piece[0], tuple(axis.size for axis in column), _neutral(mask))
    same: Hashable = program.identity.number(value) if mask.array is None else digest(mask.array)
    key = ("cells", same, value.shape, tuple(axis.size for axis in own), places, piece, frame.form)
    if key not in program.memo:
        program.memo[key] = _made(program, mask, frame)
    found: Cells | None = program.memo[key]
    return found


def _made(program: Program, mask: Mask, frame: Frame) -> Cells | None:
    value, dims, own = mask.term.value, resolve(mask.term.dims), axes_of(mask.term.dims)
    cut = frame.axes[frame.cut] if frame.cut >= 0 else None
    place = next((i for i, dim in enumerate(dims) if dim and dim[0] is cut), None)
    sizes = [axis.size for axis in own]
    if mask.array is not None or mask.piece is not None or place is None or cut is None or value.type.size <= BLOCK:
        array = program.known.array(value) if mask.array is None else mask.array
        if array is None:
            return None
        array = _plain(array).reshape(sizes)
        whole = _laid(array, own, frame.axes) if mask.piece is None else _in_its_place(array, mask, frame)
        return Cells(whole.shape, frame.cut, whole.nbytes, lambda rows: whole[index(frame.cut, rows)])
    rows, inner = Rows(program.known, value, place), size_of(dims[place][1:])

    def read(part: slice) -> NDArray[Any]:
        array = np.asarray(readable(rows.read(part.start * inner, part.stop * inner)))
        sizes[own.index(cut)] = part.stop - part.start
        return _laid(_plain(array).reshape(sizes), own, frame.axes)

    shape = tuple(axis.size if axis in own else 1 for axis in frame.axes)
    return Cells(shape, frame.cut, value.type.nbytes, read)


def cells_alone(program: Program, value: Value) -> Cells | None:
    """What `value` is over its own dimensions; None when it is not known, or too large to look at."""
    if not program.known.is_known(value) or value.type.size > LARGEST:
        return None
    key = ("alone", program.identity.number(value))
    if key not in program.memo:
        shape = value.shape
        cut = max(range(len(shape)), key=shape.__getitem__, default=-1)
        rows = Rows(program.known, value, cut)

        def read(part: slice) -> NDArray[Any]:
            array = rows.read(part.start, part.stop) if length(shape, cut) > 1 else program.known.lazy(value)
            return _plain(np.asarray(readable(array)))

        program.memo[key] = Cells(shape, cut, value.type.nbytes, read)
    found: Cells = program.memo[key]
    return found


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    # what is reckoned with it must not overflow; of some NaN NumPy says that it is none
    with np.errstate(invalid="ignore"):
        return array.astype(np.float32) if array.dtype == np.float16 else array


def _neutral(mask: Mask) -> float:
    """What leaves a key as it is."""
    return 0.0 if mask.kind == "add" or (mask.kind == "keep" and mask.inverted) else 1.0


def _in_its_place(array: NDArray[Any], mask: Mask, frame: Frame) -> NDArray[Any]:
    """A mask of a piece of the keys as one of all: the other keys are left as they are."""
    assert mask.piece is not None
    start, column = mask.piece
    outer = frame.axes[: len(frame.axes) - len(frame.keys)]
    part = _laid(array, axes_of(mask.term.dims), (*outer, *axes_of([column])))
    part = part.reshape([*part.shape[: len(outer)], -1])
    part = np.broadcast_to(part, (*part.shape[:-1], size_of(column)))
    after = size_of(frame.keys) - start - size_of(column)
    part = np.pad(part, [(0, 0)] * len(outer) + [(start, after)], constant_values=_neutral(mask))
    return part.reshape([*part.shape[:-1], *(axis.size for axis in frame.keys)])


def spread(array: NDArray[Any], term: Term, axes: Dim) -> NDArray[Any]:
    """The array of `term` with one dimension for each of `axes`, of size 1 where it does not vary."""
    own = axes_of(term.dims)
    return _laid(array.reshape([axis.size for axis in own]), own, axes)


def _laid(array: NDArray[Any], own: Dim, axes: Dim) -> NDArray[Any]:
    """`array`, over its `own` axes, with one dimension for each of `axes`."""
    array = array.transpose(sorted(range(len(own)), key=lambda i: axes.index(own[i])))
    sizes = iter(array.shape)
    return array.reshape([next(sizes) if axis in own else 1 for axis in axes])


def index(cut: int, rows: slice) -> Any:
    """The index of `rows` along an axis."""
    return (*[slice(None)] * cut, rows) if cut >= 0 else ...


def length(shape: tuple[int, ...], cut: int) -> int:
    """How many rows there are along an axis."""
    return shape[cut] if cut >= 0 else 1


def blocks(shape: tuple[int, ...], cut: int) -> Iterator[slice]:
    """The rows of an array of `shape`, some at a time."""
    rows = length(shape, cut)
    step = max(1, BLOCK * rows // max(math.prod(shape), 1))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def filled(shape: tuple[int, ...], cut: int, part: Callable[[slice], NDArray[Any]]) -> NDArray[Any]:
    """An array of `shape`, made of its parts."""
    whole: NDArray[Any] | None = None
    for rows in blocks(shape, cut):
        some = part(rows)
        whole = np.empty(shape, some.dtype) if whole is None else whole
        whole[index(cut, rows)] = some
    assert whole is not None
    return whole


def smallest(array: NDArray[Any]) -> NDArray[Any]:
    """`array` with a size of 1 where it does not vary."""
    for place, size in enumerate(array.shape):
        first = array[index(place, slice(0, 1))]
        if size > 1 and all((array[index(place, rows)] == first).all() for rows in _from_second(array.shape, place)):
            array = first.copy()
    return array


def _from_second(shape: tuple[int, ...], place: int) -> Iterator[slice]:
    # most arrays vary, which the second one says
    yield slice(1, 2)
    yield from blocks(shape, place)
