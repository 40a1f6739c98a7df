"""Masks where exponentials are divided by a sum that may be nothing: in rows that see no key, a softmax has no such."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import mlx.core as mx
import numpy as np

from fuser.ir.bounds import bounds
from fuser.ir.graph import Node
from fuser.masks.cells import Frame, cells_alone, cells_of
from fuser.masks.cells import blocks as row_blocks
from fuser.masks.mask import VANISHES, Mask, uncast
from fuser.masks.meaning import Reading, chosen, lowers
from fuser.masks.paired import paired
from fuser.masks.settled import summed
from fuser.masks.zeroed import one_condition
from fuser.reading.axes import Dim, Dims, size_of
from fuser.reading.blocks import Blocks
from fuser.reading.program import Miss, Program, seen_through
from fuser.reading.softmax import Softmax


def of_exponentials(program: Program, softmax: Softmax, dims: Dims) -> tuple[Mask, ...]:
    """The mask on the exponentials, if any, as one on the scores: `exp(x) * keep` is `exp(where(keep, x, -inf))`."""
    if softmax.keep is None:
        return ()
    term = uncast(program, seen_through(program, softmax.keep, dims))
    known = program.known.array(term.value)
    if term.value.dtype != mx.bool_ and (known is None or not ((known == 0) | (known == 1)).all()):
        reason = "the exponentials are multiplied by an array that need not be zeros and ones"
        raise Miss(reason, softmax.node)
    return (Mask("keep", term, fill=-math.inf),)


def vanished(program: Program, softmax: Softmax, masks: Sequence[Mask]) -> tuple[Mask, ...]:
    """`masks` (outermost first) with what their numbers leave of a row that they hide: a sum of zero, which gives NaN.

    Only where exponentials are less their own maximum, and all count, is a row of one low number the mean of its
    values. Raises `Miss` where it cannot be told.
    """
    if softmax.sink is not None or (softmax.own and softmax.keep is None):
        return tuple(masks)
    steps = [chosen(program, mask, True) or mask for mask in paired(program, masks)]
    low = [i for i, mask in enumerate(steps) if _lowers(program, mask)]
    # `exp(x) * keep` is the outermost
    told = [i for i in low if softmax.keep is None or one_condition(program, steps[i], steps[0])]
    sure = len(told) == len(low) if softmax.own else softmax.own is False
    if not low:
        return tuple(masks)
    if not sure or any(mask.kind != "keep" for mask in steps):
        raise Miss("a row that is masked wholly may leave a sum of zero, by which it is divided", softmax.node)
    return tuple(replace(mask, fill=-math.inf) if mask.fill <= VANISHES else mask for mask in steps)


def with_ones(program: Program, masks: Sequence[Mask], reading: Reading, single: bool, at: Node) -> Reading:
    """The reading of `masks` where weights are `exp(x - logsumexp(x))`.

    In a row of one number so low that it swallows the logarithm of its sum, the weights are ones. Raises `Miss` where
    that cannot be told.
    """
    if not lowers(program, masks, reading):
        return reading
    # float32 has no fractions there, and no logarithm of a length reaches its next number
    if single and reading.kind == "boolean" and all(mask.kind == "keep" and mask.fill <= -1e9 for mask in masks):
        return replace(reading, empty="sum")
    raise Miss("a row that is masked wholly swallows the logarithm of its sum: its weights are ones", at)


def covers(program: Program, blocks: Blocks, masks: Sequence[Mask], axes: Dim, queries: Dim, keys: Dim) -> bool:
    """Whether minus infinity is never taken off minus infinity: no maximum is of hidden keys alone."""
    frame = Frame(axes, queries, keys)
    if not any(_may_be_infinite(program, mask) for mask in masks):
        return True
    if blocks.first is None:
        return False
    sizes = [size_of(part.keys) for part in blocks.parts]
    start, end = sum(sizes[: blocks.first]), sum(sizes[: blocks.first + 1])
    steps = [(mask, cells_of(program, mask, frame)) for mask in masks if mask.piece and mask.piece[0] == start]
    if any(cells is None for _, cells in steps):
        return False
    shape = np.broadcast_shapes((1,) * len(axes), *(cells.shape for _, cells in steps if cells is not None))
    for rows in row_blocks(shape, frame.cut):
        total, _ = summed(steps, rows, len(axes))
        whole = np.broadcast_to(total, (*total.shape[: len(axes) - len(keys)], *(axis.size for axis in keys)))
        if not (whole.reshape(*total.shape[: len(axes) - len(keys)], -1)[..., start:end] > -math.inf).any(-1).all():
            return False
    return True


def _may_be_infinite(program: Program, mask: Mask) -> bool:
    if mask.kind != "add":
        return mask.fill == -math.inf
    known = cells_alone(program, mask.term.value)
    low, high = known.ends() if known else bounds(program.graph, program.known, mask.term.value)
    return mask.scale.traced or not min(low * mask.scale.number, high * mask.scale.number) > -math.inf


def _lowers(program: Program, mask: Mask) -> bool:
    """Whether a mask makes scores finite numbers of which no exponential is left, as far as is known."""
    if mask.kind != "add":
        return math.isfinite(mask.fill)
    if mask.scale.traced:
        return True
    known, number = cells_alone(program, mask.term.value), mask.scale.number
    if known is not None:
        return known.any(lambda x: (x * number <= VANISHES) & (x * number > -math.inf))
    low, high = bounds(program.graph, program.known, mask.term.value, layers=(0.0, 0.0))
    return not (low if number > 0 else high) * number > VANISHES
