"""What the masks of a region mean together: known ones are read by their value, the others keep their arrays.

A mask is a *keep* mask where it decides which keys count, and a *bias* where it shifts scores. Known arrays of both
kinds are evaluated; a bias of zeros and of numbers so low that the weight vanishes is a keep mask.

A row in which no key is kept has an answer of its own in every spelling: NaN where -inf was filled, the mean of the
values where one finite number was, zeros where a guard replaced the NaN. `empty` says which it is; `None` says that
there is no such row, or that the kernel answers as the program does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from fuser.ir.bounds import bounds, grain
from fuser.ir.graph import Node
from fuser.ir.known import LARGEST
from fuser.masks.cells import Cells, Frame, cells_alone, cells_of
from fuser.masks.mask import DROWNS, SURE, SWALLOWS_HALF, VANISHES, Mask, Scale
from fuser.masks.paired import paired
from fuser.masks.settled import (
    FLOAT16_MAX,
    FLOAT32_MAX,
    SEVERAL,
    TWICE,
    Empty,
    Settled,
    Steps,
    all_hold,
    filled_in,
    largest,
    settle,
)
from fuser.reading.axes import Dim, axes_of, size_of
from fuser.reading.program import Miss, Program, seen_through

# a mask beside others that are not known is not made a constant of beyond this: 4096 x 4096 booleans
WRITTEN = 1 << 24


@dataclass(frozen=True)
class Reading:
    """The masks of a region as one; arrays over `axes`, one dimension for each (of size 1 where they do not vary)."""

    axes: Dim
    kind: Literal["none", "causal", "boolean", "additive"]
    keep: NDArray[np.bool_] | None = None
    """Which keys count, as far as known before the program runs; None for all."""
    keeps: tuple[Mask, ...] = ()
    """Keep masks that are computed when the program runs."""
    bias: NDArray[Any] | None = None
    """An additive mask that is known as a whole."""
    steps: tuple[tuple[Mask, NDArray[Any] | None], ...] = ()
    """An additive mask that is not: all masks, outermost first, with their values where known."""
    empty: Empty | None = None
    lost: float | None = None
    """In rows in which all that is added is this or less nothing is left of any score."""
    replaced: bool = False
    """Whether nothing is left of any score in a row that a mask of finite fill among the steps hides wholly."""
    large: tuple[tuple[Mask, Cells | None], ...] = ()
    """All masks, when they are known but too large to make an array of numbers of."""


def read(
    program: Program,
    masks: Sequence[Mask],
    axes: Dim,
    queries: Dim,
    keys: Dim,
    half: bool,
    guarded: bool,
    at: Node,
) -> Reading:
    """The meaning of `masks` (outermost first) over `axes`, which end with the queries and the keys.

    `half` says that the kernel is called in float16, `guarded` that NaN weights are replaced by zeros.
    Raises `Miss` at node `at` for masks that the kernel cannot express.
    """
    # zeros add nothing, whatever they are scaled with
    real = [m for m in paired(program, masks) if m.kind != "add" or program.known.number(m.term.value) != 0]
    frame = Frame(axes, queries, keys)
    steps = [(mask, _known(program, mask, frame)) for mask in real]
    for mask, known in steps:
        where = program.name(mask.term.value)
        if guarded and mask.kind == "add" and not _lowers_alone(program, mask, known):
            raise Miss(f"NaN weights are replaced, which {where} may make of rows that are not masked wholly", at)
        if mask.kind == "floor" and mask.fill > VANISHES:
            raise Miss(f"the scores are cut off below at {mask.fill:g}, which is no mask", at)
        if mask.kind == "keep" and not mask.fill <= VANISHES:
            raise Miss(f"masked scores are set to {mask.fill:g}, which leaves them weight: {where} is no mask", at)
        if mask.kind == "over" or (mask.kind == "times" and (known is None or not known.binary())):
            how = "multiplied" if mask.kind == "times" else "divided"
            raise Miss(f"the scores are {how} by {where}, which varies along the keys: no scale", at)
    large: tuple[tuple[Mask, Cells | None], ...] = ()
    if all(known is not None or mask.kind == "floor" for mask, known in steps):
        settled = _settled(program, steps, frame, half, guarded, at)
        if settled is not None:
            return Reading(axes, settled.kind, settled.keep, bias=settled.bias, empty=settled.empty)
        large = tuple(steps)
    steps = [(mask, None if known is None or known.nbytes > LARGEST else known) for mask, known in steps]
    for mask, _ in steps:
        if (
            mask.kind == "floor"
            and mask.fill > (SURE if half else DROWNS)
            and any(each is None for other, each in steps if other != mask)
        ):
            raise Miss(
                f"the scores are cut off below at {mask.fill:g}, beside masks known only when the program runs", at
            )
    steps = list(filled_in(steps, frame))
    if any(mask.kind == "times" for mask, _ in steps):
        raise Miss(
            "some keys are hidden by a product with zero and a fill, others by a mask known only when the program "
            "runs: a row that sees nothing takes the fills for scores",
            at,
        )
    return replace(_read_traced(program, steps, frame, half, guarded, at), large=large)


def _settled(program: Program, steps: Steps, frame: Frame, half: bool, guarded: bool, at: Node) -> Settled | None:
    """What known masks are together, found once for all layers that have the same ones."""
    facts = ((m.kind, m.scale.number, m.fill, m.inverted, largest(m), id(known)) for m, known in steps)
    key = ("settled", *facts, frame.form, half, guarded)
    if key not in program.memo:
        program.memo[key] = settle(steps, frame, half, guarded)
    found: Settled | str | None = program.memo[key]
    if isinstance(found, str):
        raise Miss(found, at)
    return found


def _read_traced(program: Program, steps: Steps, frame: Frame, half: bool, guarded: bool, at: Node) -> Reading:
    """Masks of which some are computed when the program runs: any row may turn out to be masked wholly."""
    added = [mask for mask, known in steps if mask.kind == "add" and hides(program, mask, known)]
    replaced = [mask for mask, _ in steps if mask.kind == "keep" and math.isfinite(mask.fill)]
    seen = _has_free_key([mask for mask, _ in steps], frame)
    if half and added and len(added) + len(replaced) > 1 and not seen:
        raise Miss(TWICE, at)
    added_up = steps
    steps = [(chosen(program, mask, half) or mask, known) if known is None else (mask, known) for mask, known in steps]
    fills, bias = set[float](), any(mask.kind == "floor" for mask, _ in steps)
    conditions: list[tuple[Cells, bool]] = []
    for mask, known in steps:
        if mask.kind == "keep":
            fills.add(mask.fill)
            conditions += [] if known is None else [(known, mask.inverted)]
        elif mask.kind == "add":
            low = None if known is None else known.low(mask.scale.number, SURE)
            if known is None or low is None:
                bias = True
            else:
                fills |= low
                conditions.append((known, True))
    keeps = tuple(mask for mask, known in steps if mask.kind == "keep" and known is None)
    finite = {fill for fill in fills if math.isfinite(fill)}
    # what hides scores by adding to those that another mask has hidden makes them lower than the others
    # (in float16 what an input may hold is doubtful enough: such rows are answered after the kernel)
    hiding = may_hide if half else hides
    stacked = any(mask.kind == "add" and hiding(program, mask, known) for mask, known in steps[:-1])
    if not bias and (not finite or (len(fills) == 1 and not stacked)):
        empty: Empty | None = None if seen else "mean" if finite else "zero" if guarded else "nan"
        return Reading(frame.axes, "boolean", all_hold(program, conditions, frame), keeps, empty=empty)
    scaled = [
        mask for mask, known in steps if mask.kind == "add" and _is_scaled(mask.scale) and hides(program, mask, known)
    ]
    if finite and any(_raises(program, mask, known, min(finite)) for mask, known in steps):
        raise Miss(SEVERAL, at)
    if seen:
        return Reading(frame.axes, "additive", None, keeps, steps=_whole(added_up))
    several = sum(fill <= DROWNS for fill in finite) > 1 or (half and finite and (len(fills) > 1 or stacked))
    if several or (scaled and stacked) or (finite and any(mask.scale.traced for mask in scaled)):
        raise Miss(SEVERAL, at)
    (outer, _), *inner = steps
    if (
        outer.kind == "keep"
        and outer.fill > SURE
        and not any(mask.kind != "add" or may_hide(program, mask, known) for mask, known in inner)
        and sum(_low(program, mask, known) for mask, known in inner) >= outer.fill - VANISHES
    ):
        # the last word is its own: in a row that it hides, all scores are one number, whatever was added before
        known_keep = all_hold(program, conditions, frame)
        return Reading(frame.axes, "additive", known_keep, keeps, steps=_whole(added_up), empty="mean")
    certain = not stacked and all(_finite(program, mask, known) for mask, known in steps)
    # what is added in float32 to scores set to float16's lowest number is not swallowed by that
    wide = not half or any(mask.kind == "add" and largest(mask) != FLOAT16_MAX for mask, _ in steps[:-1])
    lowest = SURE if wide else SWALLOWS_HALF if not certain else 0.0
    *rest, (innermost, _) = steps
    lost = None
    if not half and innermost.kind == "keep" and innermost.fill > SURE and all(_swallows(program, m) for m, _ in rest):
        # a row sees a key to which nothing is added, or all of its scores are either replaced or swallowed
        lost = innermost.fill / 2
    elif any(mask.kind == "keep" and mask.fill > lowest for mask, _ in steps):
        raise Miss(f"scores set to {max(finite):g} meet another mask: where a row is masked wholly, both count", at)
    late: Empty | None = "mean" if half and finite else None
    if not certain:
        late = "zero" if guarded else late or "nan"
    known_keep = all_hold(program, conditions, frame) if late == "mean" else None
    # where the answer is the mean, it is given beside the kernel
    silent = lost is None and late != "mean" and bool(replaced)
    whole = _whole(added_up)
    return Reading(frame.axes, "additive", known_keep, keeps, steps=whole, empty=late, lost=lost, replaced=silent)


def _swallows(program: Program, mask: Mask) -> bool:
    """Whether a mask adds nothing, or a number that leaves nothing of a score: an integer times a large number, say."""
    if mask.kind != "add" or mask.scale.traced:
        return False
    return grain(program.graph, program.known, mask.term.value) * abs(mask.scale.number) >= -DROWNS


def _is_scaled(scale: Scale) -> bool:
    """Whether a mask is made larger or smaller after it was added: a sign alone changes no size."""
    return scale.traced or abs(scale.number) != 1


def _has_free_key(masks: Sequence[Mask], frame: Frame) -> bool:
    """Whether there is a key of which no mask says anything: every row sees it."""
    end = 0
    for start, column in sorted((mask.piece or (0, frame.keys) for mask in masks), key=lambda piece: piece[0]):
        if start > end:
            return True
        end = max(end, start + size_of(column))
    return end < size_of(frame.keys)


def _whole(steps: Steps) -> tuple[tuple[Mask, NDArray[Any] | None], ...]:
    """The steps with arrays of those that are known, but for large ones: the program makes these when it runs."""

    def made(mask: Mask, known: Cells) -> bool:
        own = mask.array is None and mask.piece is None
        return own and known.nbytes > WRITTEN and (mask.kind == "keep" or mask.term.value.dtype == mx.float32)

    return tuple((mask, None if known is None or made(mask, known) else known.whole()) for mask, known in steps)


def _finite(program: Program, mask: Mask, known: Cells | None) -> bool:
    """Whether a mask adds no minus infinity, so that the kernel sees no wholly masked row."""
    if mask.kind != "add" or mask.scale.traced:
        return mask.kind != "add" and math.isfinite(mask.fill)
    low, high = bounds(program.graph, program.known, mask.term.value) if known is None else known.ends()
    return min(low * mask.scale.number, high * mask.scale.number) >= -FLOAT32_MAX


def _raises(program: Program, mask: Mask, known: Cells | None, fill: float) -> bool:
    """Whether a mask is seen to add as much as would bring back what was set to `fill`."""
    if mask.kind != "add" or known is not None or mask.scale.traced:
        return False
    found = bounds(program.graph, program.known, mask.term.value, layers=(0.0, 0.0))
    ends = (end * mask.scale.number for end in found)
    # beyond all numbers lies what integers might be that are ones and zeros in truth
    return any(-fill / 2 < end <= FLOAT32_MAX for end in ends)


def _lowers_alone(program: Program, mask: Mask, known: Cells | None) -> bool:
    """Whether what a mask makes infinite it makes minus infinity: its sign is known, or it is finite."""
    turned = replace(mask, scale=mask.scale.times(-1))
    return not mask.scale.traced and (mask.scale.number > 0 or _finite(program, turned, known))


def _known(program: Program, mask: Mask, frame: Frame) -> Cells | None:
    if mask.kind == "floor" or mask.scale.traced:
        return None
    cells = cells_of(program, mask, frame)
    # a mask among the state may be read, but numbers that can be trained stay arrays
    if cells is not None and mask.kind != "keep" and program.known.is_given(mask.term.value):
        cells = cells if cells.hides_alone() else None
    if cells is not None:
        program.known.rely(mask.term.value)
    return cells


def chosen(program: Program, mask: Mask, half: bool) -> Mask | None:
    """The keep mask that `scores + where(condition, 0, fill)` is, when no score survives the addition of `fill`."""
    node = mask.term.value.node
    if mask.kind != "add" or node.op != "Select" or mask.scale.traced:
        return None
    condition, left, right = program.graph.operands(node)
    numbers = program.known.number(left), program.known.number(right)
    for kept, fill, inverted in ((*numbers, False), (*numbers[::-1], True)):
        if kept == 0 and fill is not None:
            fill *= mask.scale.number
            swallows = SWALLOWS_HALF if largest(mask) == FLOAT16_MAX else SURE
            if fill == -math.inf or (half and fill <= swallows):
                term = seen_through(program, condition, mask.term.dims)
                return Mask("keep", term, fill=fill, inverted=inverted, piece=mask.piece)
    return None


def hides(program: Program, mask: Mask, known: Cells | None) -> bool:
    """Whether an additive mask holds the lowest numbers of its type."""
    if known is not None:
        return known.reaches(mask.scale.number, SWALLOWS_HALF)
    return -math.inf < _lowest(program, mask) <= SWALLOWS_HALF


def may_hide(program: Program, mask: Mask, known: Cells | None = None) -> bool:
    """Whether an additive mask may hold such numbers: of what the program is given, nothing is known."""
    known = cells_alone(program, mask.term.value) if known is None else known
    return (known is None and _lowest(program, mask) == -math.inf) or hides(program, mask, known)


def _low(program: Program, mask: Mask, known: Cells | None) -> float:
    """The lowest number that an additive mask is seen to add; zero where nothing is seen of it."""
    low = _lowest(program, mask) if known is None else min(end * mask.scale.number for end in known.ends())
    return low if math.isfinite(low) else 0.0


def _lowest(program: Program, mask: Mask) -> float:
    # what a layer gives is no mask, though it may be a position's share of the scores; of an input nothing is known
    low, high = bounds(program.graph, program.known, mask.term.value, layers=(0.0, 0.0))
    return (low if mask.scale.number > 0 else high) * mask.scale.number


def lowers(program: Program, masks: Sequence[Mask], reading: Reading) -> bool:
    """Whether a row may hold finite numbers so low that scores are lost in them."""
    if reading.kind != "additive":
        return reading.empty == "mean"
    return any(may_hide(program, mask) if mask.kind == "add" else math.isfinite(mask.fill) for mask in masks)


def varying(reading: Reading) -> frozenset[object]:
    """The axes over which the masks of a reading vary."""
    axes: set[object] = set()
    for known in (reading.keep, reading.bias, *(known for _, known in reading.steps)):
        if known is not None:
            axes |= {axis for axis, size in zip(reading.axes, known.shape, strict=True) if size != 1}
    for mask in (
        *reading.keeps,
        *(mask for mask, known in reading.steps if known is None and mask.kind != "floor"),
    ):
        axes |= set(axes_of(mask.term.dims))
    return frozenset(axes)
