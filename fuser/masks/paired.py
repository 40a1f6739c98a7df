"""Masks that are spelled in two steps, and whether two of them are one condition."""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx

from fuser.ir.bounds import ANY, bounds
from fuser.masks.cells import cells_alone
from fuser.masks.mask import Mask, uncast
from fuser.masks.settled import largest
from fuser.reading.program import Program, Term, seen_through


def paired(program: Program, masks: Sequence[Mask]) -> list[Mask]:
    """`masks` with `scores * m + (1 - m) * fill`, for a boolean `m`, read as the keep mask that it is."""
    rest = list(masks)
    for place, mask in enumerate(masks):
        condition = uncast(program, mask.term)
        if mask.kind != "times" or condition.value.dtype != mx.bool_:
            continue
        if _is_infinite(program, masks[place + 1 :]):
            # zero times infinity is NaN, which no fill covers
            continue
        for other in rest:
            alike = other.kind == "add" and other.piece == mask.piece
            fill = _complement(program, other, mask.term) if alike else None
            if fill is not None and not other.scale.traced:
                # what is scaled to beyond the type's largest number is none
                scaled = fill * other.scale.number
                scaled = scaled if abs(scaled) <= largest(other) else math.copysign(math.inf, scaled)
                kept = Mask("keep", condition, mask.scale, scaled, piece=mask.piece)
                rest = [kept if each is mask else each for each in rest if each is not other]
                break
    return rest


def _is_infinite(program: Program, masks: Sequence[Mask]) -> bool:
    """Whether masks are seen to make scores minus infinity, one alone or several where they meet."""
    lows = [_lowest(program, mask) for mask in masks]
    # what is no number stays none
    return not sum(lows) >= -min(map(largest, masks), default=math.inf)


def _lowest(program: Program, mask: Mask) -> float:
    """The lowest number that a mask is seen to add or to put in a score's place, before it is scaled."""
    sign = math.copysign(1.0, mask.scale.number)
    if mask.kind == "keep":
        return mask.fill / abs(mask.scale.number) if mask.scale.number else -math.inf
    if mask.kind != "add":
        return 0.0
    known = cells_alone(program, mask.term.value)
    # what a layer gives is a position's share of the scores; of an input nothing is known
    ends = known.ends() if known else bounds(program.graph, program.known, mask.term.value, layers=(0.0, 0.0))
    if known is None and ends == ANY:
        return 0.0
    return min(end * sign for end in ends)


def _complement(program: Program, mask: Mask, kept: Term) -> float | None:
    """The fill, when `mask` adds `(1 - kept) * fill`, `(kept - 1) * -fill` or `not kept * fill`."""
    if mask.term.value.node.op != "Multiply":
        return None
    operands = program.operands(mask.term.value)
    for factor, number in (operands, operands[::-1]):
        fill = program.known.number(number)
        inner = seen_through(program, factor, mask.term.dims, casts=True)
        if fill is None or not math.isfinite(fill):
            continue
        if inner.value.node.op == "AsType":
            inner = seen_through(program, program.operands(inner.value)[0], inner.dims)
        parts = program.operands(inner.value)
        if inner.value.node.op == "LogicalNot" and same(program, seen_through(program, parts[0], inner.dims), kept):
            return fill
        if inner.value.node.op != "Subtract":
            continue
        left, right = parts
        for one, other, sign in ((left, right, 1.0), (right, left, -1.0)):
            if program.known.number(one) == 1 and same(program, seen_through(program, other, inner.dims), kept):
                return fill * sign
    return None


def same(program: Program, left: Term, right: Term) -> bool:
    """Whether two arrays are the same numbers, or one condition."""
    if left.dims == right.dims and program.alike(left.value, right.value):
        return True
    # one condition cast twice is one mask
    left_source, right_source = uncast(program, left), uncast(program, right)
    return left_source == right_source and left_source.value.dtype == mx.bool_
