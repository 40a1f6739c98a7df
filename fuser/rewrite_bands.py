"""The masks of a region in their cheapest form for our own kernel: a window, slopes, and what is left of an array."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from fuser.ir.bounds import FINITE, bounds
from fuser.ir.graph import Value
from fuser.kernels.bands import FAR, Tilt, Window, tilt_of, window_of
from fuser.masks.mask import DROWNS, VANISHES, Mask
from fuser.masks.meaning import SWALLOWS_HALF, Empty, Reading, smallest, spread
from fuser.reading.program import Program, Term, seen_through
from fuser.regions import Attention

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
    if reading.kind == "causal":
        return Plan((0, FAR))
    if reading.kind == "boolean" and not reading.keeps and reading.keep is not None:
        return _windowed(region, reading.keep, (), reading.empty)
    if reading.kind == "boolean":
        kept = [each for mask in reading.keeps for each in _parts(program, mask.term, mask.inverted)]
        return _split(program, region, kept, reading.keep, reading.empty)
    if reading.kind == "additive" and reading.bias is not None and reading.empty is None:
        if (np.isfinite(reading.bias) & (reading.bias <= VANISHES)).any():
            # a row of numbers so low swallows its scores: no slope tells that
            return None
        bias = _matrices(reading.bias, region)
        tilt = None if bias is None else tilt_of(bias, region.sink is None)
        return None if tilt is None else Plan(tilt.window, tilt)
    if reading.kind == "additive" and len(reading.steps) == 1 and region.sink is None:
        mask, known = reading.steps[0]
        drowned = _drowned(program, reading, mask) if mask.kind == "add" and known is None else None
        if drowned is not None and (reading.empty is None) == math.isfinite(drowned[2]):
            return _split(program, region, *drowned[:2], reading.empty or "mean")
    return None


def _split(
    program: Program, region: Attention, kept: list[Kept], keep: NDArray[np.bool_] | None, empty: Empty | None
) -> Plan | None:
    """Conditions that all must hold: those that are known make a window, the others stay."""
    rest = []
    for term, inverted in kept:
        array: Any = program.known.array(term.value)
        if array is None:
            rest.append(Mask("keep", term, fill=-math.inf, inverted=inverted))
        else:
            part = (spread(array, term, region.mask.axes) != 0) != inverted
            keep = part if keep is None else keep & part
    return None if keep is None else _windowed(region, keep, tuple(rest), empty)


def _windowed(region: Attention, keep: NDArray[np.bool_], rest: tuple[Mask, ...], empty: Empty | None) -> Plan | None:
    matrix = _matrices(smallest(keep), region)
    window = window_of(matrix[0]) if matrix is not None and len(matrix) == 1 else None
    if window is None:
        return None
    columns = tuple(region.mask.axes.index(axis) for axis in region.roles.keys)
    rows: NDArray[np.bool_] | None = None if rest else np.any(keep, axis=columns, keepdims=True)
    return Plan(window, None, rest, empty, rows)


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
    program: Program, reading: Reading, mask: Mask
) -> tuple[list[Kept], NDArray[np.bool_] | None, float] | None:
    """The keep masks that an additive mask is, when all that it adds is zero or one number that drowns every score."""
    if mask.scale.number != 1 or mask.scale.traced:
        return None
    kept: list[Kept] = []
    fills: set[float] = set()
    term, known = mask.term, None
    while True:
        array: Any = program.known.array(term.value)
        if array is not None:
            shift = spread(array, term, reading.axes)
            fills |= set(np.unique(shift[shift != 0]).tolist())
            known = shift == 0
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
    return (kept, None if known.all() else known, fill) if not fills and fill <= DROWNS else None


def swallows(program: Program, mask: Mask, known: NDArray[Any] | None) -> bool:
    """Whether a mask may be added in float16 with numbers so low that they swallow the scores."""
    if mask.kind != "add" or known is not None or mask.term.value.dtype != mx.float16:
        return False
    low = bounds(program.graph, program.known, mask.term.value)[0]
    # what a layer gives is a position's share of the scores; of an input nothing is known
    return low != FINITE[0] and low * mask.scale.number <= SWALLOWS_HALF


def _matrices(array: NDArray[Any], region: Attention) -> NDArray[Any] | None:
    """`array`, over the axes of the reading, as `[heads, queries, keys]` (one head for all alike); None beyond that."""
    roles = region.roles
    shape = array.shape
    batch, heads = len(roles.batch), len(roles.batch + roles.heads + roles.groups)
    if any(size != 1 for size in shape[:batch]):
        return None
    sizes = [axis.size for axis in region.mask.axes]
    alike = all(size == 1 for size in shape[batch:heads])
    outer = [1] * heads if alike else [*shape[:batch], *sizes[batch:heads]]
    full = np.broadcast_to(array, [*outer, *sizes[heads:]])
    rows, columns = (math.prod(axis.size for axis in part) for part in (roles.queries, roles.keys))
    return full.reshape(-1, rows, columns)


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
        away = np.arange(columns) - place[:, None]
        seen = constant((away <= window[0]) & (away >= -window[1]))
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
