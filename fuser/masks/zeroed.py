"""Weights set to zero by the very mask that hid their scores: zeros already, but in rows that see nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import mlx.core as mx

from fuser.ir.graph import Node
from fuser.masks.mask import SURE, VANISHES, Mask
from fuser.masks.meaning import may_hide
from fuser.masks.paired import paired, same
from fuser.reading.program import Miss, Program, Term, seen_through

OTHER = {
    "times": "the weights are multiplied by an array after the softmax (dropout, or a second mask)",
    "keep": "the weights are masked after the softmax, by another mask than the scores",
}


def zeroed(
    program: Program, masks: Sequence[Mask], zeros: Sequence[tuple[Mask, Node]]
) -> tuple[tuple[Mask, ...], bool]:
    """`masks` on the scores that mean the same without `zeros` on the weights, and whether NaN weights become zeros.

    A mask that keeps the same keys as one on the scores changes nothing, unless a row sees no key: there it makes zeros
    of whatever the fill had made. Raises `Miss` for any other, at the node given with it.
    """
    steps = paired(program, masks)
    guarded = False
    for zero, at in zeros:
        place = next(
            (i for i, mask in enumerate(steps) if mask.kind == "keep" and one_condition(program, mask, zero)), None
        )
        if place is None:
            raise Miss(OTHER[zero.kind], at)
        others = [mask for i, mask in enumerate(steps) if i != place]
        if not steps[place].fill <= (SURE if others else VANISHES):
            raise Miss(f"masked scores are set to {steps[place].fill:g}, which leaves them weight", at)
        if any(mask.kind != "add" or may_hide(program, mask) for mask in others):
            raise Miss("the weights are masked after the softmax, by one of several masks of the scores", at)
        if zero.kind == "keep" or math.isfinite(steps[place].fill):
            # minus infinity and zeros for NaN come to the same, in every row
            steps[place], guarded = replace(steps[place], fill=-math.inf), True
    return tuple(steps), guarded


def one_condition(program: Program, left: Mask, right: Mask) -> bool:
    """Whether two masks keep the same keys."""
    (one, inverted), (other, turned) = _condition(program, left), _condition(program, right)
    return inverted == turned and left.piece == right.piece and same(program, one, other)


def _condition(program: Program, mask: Mask) -> tuple[Term, bool]:
    """The boolean array behind a mask, and whether it says what to drop."""
    term, inverted = mask.term, mask.inverted
    while term.value.node.op == "LogicalNot" or (
        term.value.node.op == "AsType" and program.operands(term.value)[0].dtype == mx.bool_
    ):
        inverted ^= term.value.node.op == "LogicalNot"
        term = seen_through(program, program.operands(term.value)[0], term.dims)
    return term, inverted
