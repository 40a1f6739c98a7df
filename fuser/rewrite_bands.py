"""The masks of a region in their cheapest form for our own kernel: a window, slopes, and what is left of an array."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from fuser.ir.bounds import FINITE, bounds
from fuser.ir.graph import Value
from fuser.ir.known import LARGEST
from fuser.kernels.bands import FAR, Tilt, Window, tilt_in, window_of
from fuser.masks.cells import Cells, Frame, cells_of, smallest
from fuser.masks.mask import DROWNS, SWALLOWS_HALF, VANISHES, Mask
from fuser.masks.meaning import Reading
from fuser.masks.settled import Empty, all_hold, largest, summed
from fuser.reading.axes import size_of
from fuser.reading.program import Program, Term, seen_through
from fuser.regions import Attention, Roles

Kept = tuple[Term, bool]


@dataclass(frozen=True)
class Plan:
    """How our kernel is told of a region's masks."""

    window: Window
    tilt: Tilt | None = None
    keeps: tuple[Mask, ...] = ()
    """Keep masks that remain an array, smaller than the scores as a rule."""
    empty: Empty | None = None
    """What rows without a key give, as a `Reading` says it."""
    rows: NDArray[np.bool_] | None = None
    """Which rows have a key, over the reading's axes, where that is known."""


def plan(program: Program, region: Attention) -> Plan | None:
    """The masks of `region` with a window told from the rest; None where that makes nothing cheaper."""
    reading = region.mask
    if any(mask.piece for mask in (*reading.keeps, *(mask for mask, _ in reading.steps))):
        return None
    if reading.kind == "causal":
        return Plan((0, FAR))
    if reading.kind == "boolean" and not reading.keeps and reading.keep is not None:
        return _windowed(program, region, [reading.keep], (), reading.empty)
    if reading.kind == "boolean":
        kept = [each for mask in reading.keeps for each in _parts(program, mask.term, mask.inverted)]
        return _split(program, region, kept, reading.keep, reading.empty)
    if reading.kind == "additive" and reading.bias is not None and reading.empty is None:
        key = ("tilt", id(reading.bias), _form(region), region.sink is None)
        if key not in program.memo:
            # the array is kept with what was found, so that no other takes its place
            program.memo[key] = _tilted(region, reading.bias), reading.bias
        tilt: Tilt | None = program.memo[key][0]
        return None if tilt is None else Plan(tilt.window, tilt)
    if reading.kind == "additive" and len(reading.steps) == 1 and region.sink is None:
        mask, known = reading.steps[0]
        drowned = _drowned(program, reading, region.roles, mask) if mask.kind == "add" and known is None else None
        if drowned is not None and (reading.empty is None) == math.isfinite(drowned[2]):
            return _split(program, region, *drowned[:2], reading.empty or "mean")
    return _tilted_in_parts(program, region) if reading.kind == "additive" else None


def _tilted(region: Attention, bias: NDArray[Any]) -> Tilt | None:
    matrices = _matrices(bias, region)
    if matrices is None:
        return None
    # a row of numbers so low swallows its scores: no slope tells that
    return tilt_in(matrices.shape, lambda part: matrices[:, part], region.sink is None, VANISHES)


def _tilted_in_parts(program: Program, region: Attention) -> Plan | None:
    """Slopes of masks that are known, but too large to make an array of."""
    frame, known = _frame(region), [(mask, cells) for mask, cells in region.mask.large if cells is not None]
    if not known or len(known) < len(region.mask.large):
        return None
    shape = np.broadcast_shapes(*(cells.shape for _, cells in known))
    if len(region.roles.queries) != 1 or region.roles.queries[0] is not frame.axes[frame.cut] or shape[frame.cut] == 1:
        return None

    def read(rows: slice) -> NDArray[Any]:
        total, lost = summed(known, rows, len(shape))
        if lost is not None:
            # a score that is lost must be hidden: a number that is refused says that it is not
            total = np.where(lost & (total > VANISHES), VANISHES, total)
        matrices = _matrices(total, region, rows.stop - rows.start)
        assert matrices is not None
        return matrices

    facts = ((m.kind, m.scale.number, m.fill, m.inverted, largest(m), id(cells)) for m, cells in known)
    key = ("tilt", *facts, _form(region), region.sink is None)
    if key not in program.memo:
        one = _matrices(np.broadcast_to(0, [1 if i == frame.cut else size for i, size in enumerate(shape)]), region, 1)
        rows, columns = size_of(region.roles.queries), size_of(region.roles.keys)
        tilt = None if one is None else tilt_in((len(one), rows, columns), read, region.sink is None, VANISHES)
        # in rows that see nothing a program has an answer of its own
        program.memo[key] = tilt if tilt is not None and _covers(tilt.window, rows, columns) else None
    tilt = program.memo[key]
    return None if tilt is None else Plan(tilt.window, tilt)


def _covers(window: Window, rows: int, columns: int) -> bool:
    """Whether every row sees a key."""
    place = np.arange(rows) + columns - rows
    return bool((np.maximum(place - window[1], 0) <= np.minimum(place + window[0], columns - 1)).all())


def _split(
    program: Program, region: Attention, kept: list[Kept], keep: NDArray[np.bool_] | None, empty: Empty | None
) -> Plan | None:
    """Conditions that all must hold: those that are known make a window, the others stay."""
    rest, conditions, frame = list[Mask](), list[tuple[Cells, bool]](), _frame(region)
    for term, inverted in kept:
        mask = Mask("keep", term, fill=-math.inf, inverted=inverted)
        cells = cells_of(program, mask, frame)
        if cells is None or cells.nbytes > LARGEST:
            rest.append(mask)
        else:
            conditions.append((cells, inverted))
    parts = [keep] if keep is not None else []
    if conditions:
        known = all_hold(program, conditions, frame)
        parts.append(np.ones((1,) * len(frame.axes), bool) if known is None else known)
    return _windowed(program, region, parts, tuple(rest), empty) if parts else None


def _windowed(
    program: Program, region: Attention, keeps: list[NDArray[np.bool_]], rest: tuple[Mask, ...], empty: Empty | None
) -> Plan | None:
    """The window in which all of `keeps` hold, beside the `rest`."""
    key = ("window", *map(id, keeps), _form(region))
    if key not in program.memo:
        keep = smallest(functools.reduce(np.logical_and, keeps))
        matrix = _matrices(keep, region)
        window = window_of(matrix[0]) if matrix is not None and len(matrix) == 1 else None
        # the arrays are kept with what was found, so that no others take their place
        program.memo[key] = window, np.any(keep, axis=_frame(region).columns, keepdims=True), keeps
    window, rows, _ = program.memo[key]
    return None if window is None else Plan(window, None, rest, empty, None if rest else rows)


def _frame(region: Attention) -> Frame:
    return Frame(region.mask.axes, region.roles.queries, region.roles.keys)


def _form(region: Attention) -> Hashable:
    """What is the same for the regions of two layers that are alike."""
    roles = region.roles
    return _frame(region).form, len(roles.batch), len(roles.heads + roles.groups)


def _parts(program: Program, term: Term, inverted: bool) -> Iterator[Kept]:
    """The conditions that all hold where `term` does (where it does not, if `inverted`)."""
    op, operands = term.value.node.op, program.operands(term.value)
    if op in ("LogicalNot", "LogicalOr" if inverted else "LogicalAnd"):
        for operand in operands:
            inner = seen_through(program, operand, term.dims)
            yield from _parts(program, inner, inverted != (op == "LogicalNot"))
    else:
        yield term, inverted


def _drowned(
    program: Program, reading: Reading, roles: Roles, mask: Mask
) -> tuple[list[Kept], NDArray[np.bool_] | None, float] | None:
    """The keep masks that an additive mask is, when all that it adds is zero or one number that drowns every score."""
    if mask.scale.number != 1 or mask.scale.traced:
        return None
    kept: list[Kept] = []
    fills: set[float] = set()
    term, frame = mask.term, Frame(reading.axes, roles.queries, roles.keys)
    while True:
        cells = cells_of(program, Mask("keep", term), frame)
        if cells is not None and cells.nbytes <= LARGEST:
            others = cells.low(1.0, DROWNS)
            if others is None:
                return None
            fills |= others
            known = all_hold(program, [(cells, True)], frame)
            break
        if term.value.node.op != "Select":
            return None
        condition, *sides = program.operands(term.value)
        numbers = [program.known.number(side) for side in sides]
        place = next((i for i, number in enumerate(numbers) if number is not None and number <= DROWNS), None)
        if place is None:
            return None
        fills.add(float(numbers[place] or 0))
        kept += _parts(program, seen_through(program, condition, term.dims), place == 0)
        term = seen_through(program, sides[1 - place], term.dims)
    fill = fills.pop()
    return (kept, known, fill) if not fills and fill <= DROWNS else None


def swallows(program: Program, mask: Mask, known: NDArray[Any] | None) -> bool:
    """Whether a mask may be added in float16 with numbers so low that they swallow the scores."""
    if mask.kind != "add" or known is not None or mask.term.value.dtype != mx.float16:
        return False
    low = bounds(program.graph, program.known, mask.term.value)[0]
    # what a layer gives is a position's share of the scores; of an input nothing is known
    return low != FINITE[0] and low * mask.scale.number <= SWALLOWS_HALF


def _matrices(array: NDArray[Any], region: Attention, some: int | None = None) -> NDArray[Any] | None:
    """`array`, over the axes of the reading, as `[heads, queries, keys]` (one head for all alike); None beyond that.

    It may be of `some` of the queries only, where these are one axis.
    """
    roles = region.roles
    shape = array.shape
    batch, heads = len(roles.batch), len(roles.batch + roles.heads + roles.groups)
    if any(size != 1 for size in shape[:batch]):
        return None
    sizes = [some if some and axis in roles.queries else axis.size for axis in region.mask.axes]
    alike = all(size == 1 for size in shape[batch:heads])
    outer = [1] * heads if alike else [*shape[:batch], *sizes[batch:heads]]
    full = np.broadcast_to(array, [*outer, *sizes[heads:]])
    return full.reshape(-1, some or size_of(roles.queries), size_of(roles.keys))


def rows_seen(
    add: Callable[..., Value],
    constant: Callable[[NDArray[Any]], Value],
    kept: Value,
    window: Window,
    rows: int,
    columns: int,
) -> Value:
    """Which rows see, inside of their windows, a key that `kept` keeps; nodes are made by `add` and `constant`."""
    place = np.arange(rows) + columns - rows
    batch, heads = kept.shape[:2]
    if kept.shape[2] != 1:
        # columns and rows apart: their differences would be larger than the mask
        column, row = np.arange(columns, dtype=np.int32), place.astype(np.int32)[:, None]
        seen = constant((column <= row + window[0]) & (column >= row - window[1]))
        shape = (batch, heads, rows, columns)
        both = add("LogicalAnd", [add("Broadcast", [each], shape) for each in (kept, seen)])
        return add("Reduce", [both], 1, (3,))
    # keys that are kept up to the window's end, less those before its start
    low, high = (np.clip(end, 0, columns).astype(np.int32) for end in (place - window[1], place + window[0] + 1))
    whole = add("Broadcast", [kept], (batch, heads, 1, columns))
    count = add("Scan", [add("AsType", [whole], mx.int32)], 2, 3, False, True)
    count = add("Pad", [count, constant(np.zeros((), np.int32))], (0, 1, 2, 3), (0, 0, 0, 1), (0, 0, 0, 0))
    upto = [add("Gather", [count, constant(end)], (3,), (batch, heads, 1, 1)) for end in (high, low)]
    found = add("Transpose", [add("Greater", upto)], (1, 2, 0, 3, 4))
    return add("Reshape", [found], (batch, heads, rows, 1))
