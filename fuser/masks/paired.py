"""Masks that are spelled in two steps, and whether two of them are one condition."""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx

from fuser.ir.bounds import bounds
from fuser.masks.cells import cells_alone
from fuser.masks.mask import Mask, uncast
from fuser.reading.program import Program, Term, seen_through


def paired(program: Program, masks: Sequence[Mask]) -> list[Mask]:
    """`masks` with `scores * m + (1 - m) * fill`, for a boolean `m`, read as the keep mask that it is."""
    rest = list(masks)
    for place, mask in enumerate(masks):
        condition = uncast(program, mask.term)
        if mask.kind != "times" or condition.value.dtype != mx.bool_:
            continue
        if any(_is_infinite(program, inner) for inner in masks[place + 1 :]):
            # zero times infinity is NaN, which no fill covers
            continue
        for other in rest:
            alike = other.kind == "add" and other.piece == mask.piece
            fill = _complement(program, other, mask.term) if alike else None
            if fill is not None and not other.scale.traced:
                kept = Mask("keep", condition, mask.scale, fill * other.scale.number, piece=mask.piece)
                rest = [kept if each is mask else each for each in rest if each is not other]
                break
    return rest


def _is_infinite(program: Program, mask: Mask) -> bool:
    """Whether a mask is seen to make scores minus infinity."""
    if mask.kind == "add":
        known = cells_alone(program, mask.term.value)
        if known is not None:
            # what is no number stays none
            return not all(math.isfinite(end) for end in known.ends())
        low, high = bounds(program.graph, program.known, mask.term.value)
        return low == -math.inf and high < math.inf
    return mask.kind == "keep" and mask.fill == -math.inf


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
