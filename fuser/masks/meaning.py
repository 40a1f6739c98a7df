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

from fuser.ir.bounds import bounds
from fuser.ir.graph import Node
from fuser.masks.mask import DROWNS, SURE, VANISHES, Mask, Scale
from fuser.masks.paired import paired
from fuser.reading.axes import Dim, axes_of, size_of
from fuser.reading.program import Miss, Program, Term, seen_through

# as SURE, in float16
SWALLOWS_HALF = -6e4
FLOAT32_MAX = 3.4028235e38
FLOAT16_MAX = 65504.0
SEVERAL = "masks of several fills meet in rows that are masked wholly"
TWICE = "two masks meet in rows that see nothing, where they add up to less than float16 can hold"

Steps = Sequence[tuple[Mask, NDArray[Any] | None]]
Empty = Literal["nan", "mean", "zero"]


@dataclass(frozen=True)
class Reading:
    """The masks of a region as one; arrays over `axes`, one dimension for each (of size 1 where they do not vary)."""

    axes: Dim
    kind: Literal["none", "causal", "boolean", "additive"]
    keep: NDArray[np.bool_] | None = None
    """Which keys count, as far as known before the program runs; None for all."""
    keeps: tuple[Mask, ...] = ()
    """Keep masks that are computed when the program runs."""
    bias: NDArray[np.float64] | None = None
    """An additive mask that is known as a whole."""
    steps: tuple[tuple[Mask, NDArray[Any] | None], ...] = ()
    """An additive mask that is not: all masks, outermost first, with their values where known."""
    empty: Empty | None = None


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
    steps = [(mask, _known(program, mask, axes, keys)) for mask in real]
    for mask, known in steps:
        where = program.name(mask.term.value)
        if mask.piece is not None and known is None:
            raise Miss(f"only a piece of the keys is masked, by {where}, which is known only when the program runs", at)
        if guarded and mask.kind == "add" and not _lowers_alone(program, mask, known):
            raise Miss(f"NaN weights are replaced, which {where} may make of rows that are not masked wholly", at)
        if mask.kind == "floor" and mask.fill > VANISHES:
            raise Miss(f"the scores are cut off below at {mask.fill:g}, which is no mask", at)
        if mask.kind == "keep" and not mask.fill <= VANISHES:
            raise Miss(f"masked scores are set to {mask.fill:g}, which leaves them weight: {where} is no mask", at)
        if mask.kind == "floor" and mask.fill > SURE and any(each is None for other, each in steps if other != mask):
            raise Miss(
                f"the scores are cut off below at {mask.fill:g}, beside masks known only when the program runs", at
            )
        if mask.kind == "times" and (known is None or not ((known == 0) | (known == 1)).all()):
            raise Miss(f"the scores are multiplied by {where}, which varies along the keys: no scale", at)
    if all(known is not None or mask.kind == "floor" for mask, known in steps):
        return _read_known(steps, axes, queries, keys, half, guarded, at)
    if any(mask.kind == "times" for mask, _ in steps):
        raise Miss("the scores are multiplied by a mask beside masks that are known only when the program runs", at)
    return _read_traced(program, steps, axes, keys, half, guarded, at)


def _read_known(steps: Steps, axes: Dim, queries: Dim, keys: Dim, half: bool, guarded: bool, at: Node) -> Reading:
    """Masks that are all known: what they add up to, and where the score itself is lost."""
    plain = _kept(steps)
    if plain is not None and _covers(plain, keys, axes):
        return _boolean(plain, axes, queries, keys, None)
    total, lost = np.zeros((1,) * len(axes)), np.zeros((1,) * len(axes), bool)
    for mask, known in reversed(steps):
        if mask.kind == "floor":
            lost = lost | (total < mask.fill)
            total = np.maximum(total, mask.fill)
        elif mask.kind == "add":
            assert known is not None
            total = total + known.astype(np.float64) * mask.scale.number
            # two of the lowest numbers make minus infinity, before they are scaled
            total = np.where(total < -_largest(mask) * abs(mask.scale.number), -math.inf, total)
        else:
            assert known is not None
            dropped = (known != 0) == mask.inverted
            total, lost = np.where(dropped, mask.fill, total), lost | dropped
    counts = total > VANISHES
    if (lost & counts).any():
        raise Miss("the scores are multiplied by zero where no mask hides them", at)
    empty: Empty | None = None
    sure = SURE if half else DROWNS
    if any(_largest(mask) == FLOAT16_MAX for mask, _ in steps if mask.kind == "add"):
        sure = SWALLOWS_HALF
    if not _covers(counts, keys, axes):
        hidden = ~counts.any(axis=_places(keys, axes), keepdims=True)
        here = total[np.broadcast_to(hidden, total.shape)]
        if (here == -math.inf).all():
            empty = "zero" if guarded else "nan"
        elif len(set(here)) == 1 and (
            here[0] <= sure or np.broadcast_to(lost, total.shape)[np.broadcast_to(hidden, total.shape)].all()
        ):
            empty = "mean"
        elif (lost & hidden & (total > max(sure, SURE))).any():
            raise Miss(SEVERAL, at)
        elif half and (here <= sure).any():
            raise Miss(TWICE, at)
        elif len(set(here[(here <= DROWNS) & (here > -math.inf)])) > 1:
            raise Miss(SEVERAL, at)
        else:
            return Reading(axes, "additive", bias=smallest(total), empty="zero" if guarded else None)
    if ((total == 0) | ~counts).all():
        return _boolean(counts, axes, queries, keys, empty)
    if empty == "mean":
        # in float16 the kernel, which adds in float32, swallows nothing: the rows are answered after it
        keep = smallest(counts) if half else None
        return Reading(axes, "additive", keep, bias=smallest(total), empty="mean" if half else None)
    return Reading(axes, "additive", bias=smallest(np.where(counts, total, -math.inf)), empty=empty)


def _kept(steps: Steps) -> NDArray[np.bool_] | None:
    """Which keys count, when all masks only hide keys; None when some do else.

    Most masks are of this kind, and can be as large as the scores: they are not made numbers of.
    """
    keep: NDArray[np.bool_] = np.ones((), bool)
    for mask, known in steps:
        if mask.kind == "floor":
            continue
        if known is None or mask.kind == "times":
            return None
        if mask.kind == "keep":
            keep = keep & ((known != 0) != mask.inverted)
            continue
        hides = known * mask.scale.number <= VANISHES if mask.scale.number != 1 else known <= VANISHES
        if not ((known == 0) | hides).all():
            return None
        keep = keep & ~hides
    return keep if keep.ndim else None


def _boolean(keep: NDArray[np.bool_], axes: Dim, queries: Dim, keys: Dim, empty: Empty | None) -> Reading:
    keep = smallest(keep)
    if keep.all():
        return Reading(axes, "none")
    if _is_causal(keep, axes, queries, keys):
        return Reading(axes, "causal")
    return Reading(axes, "boolean", keep, empty=empty)


def _read_traced(program: Program, steps: Steps, axes: Dim, keys: Dim, half: bool, guarded: bool, at: Node) -> Reading:
    """Masks of which some are computed when the program runs: any row may turn out to be masked wholly."""
    added = [mask for mask, known in steps if mask.kind == "add" and hides(program, mask, known)]
    replaced = [mask for mask, _ in steps if mask.kind == "keep" and math.isfinite(mask.fill)]
    if half and added and len(added) + len(replaced) > 1:
        raise Miss(TWICE, at)
    added_up = tuple(steps)
    steps = [(_chosen(program, mask, half) or mask, known) if known is None else (mask, known) for mask, known in steps]
    fills, bias = set(), any(mask.kind == "floor" for mask, _ in steps)
    keep = np.ones((1,) * len(axes), bool)
    for mask, known in steps:
        if mask.kind == "keep":
            fills.add(mask.fill)
            keep = keep if known is None else keep & ((known != 0) != mask.inverted)
        elif mask.kind == "add":
            shift = None if known is None else known.astype(np.float64) * mask.scale.number
            if shift is None or not ((shift == 0) | (shift <= SURE)).all():
                bias = True
            else:
                fills |= set(np.unique(shift[shift != 0]).tolist())
                keep = keep & (shift == 0)
    keeps = tuple(mask for mask, known in steps if mask.kind == "keep" and known is None)
    known_keep = None if keep.all() else smallest(keep)
    finite = {fill for fill in fills if math.isfinite(fill)}
    # what hides scores by adding to those that another mask has hidden makes them lower than the others
    # (in float16 what an input may hold is doubtful enough: such rows are answered after the kernel)
    hiding = may_hide if half else hides
    stacked = any(mask.kind == "add" and hiding(program, mask, known) for mask, known in steps[:-1])
    if not bias and (not finite or (len(fills) == 1 and not stacked)):
        empty: Empty = "mean" if finite else "zero" if guarded else "nan"
        return Reading(axes, "boolean", known_keep, keeps, empty=empty)
    scaled = [
        mask for mask, known in steps if mask.kind == "add" and mask.scale != Scale() and hides(program, mask, known)
    ]
    several = sum(fill <= DROWNS for fill in finite) > 1 or (half and finite and (len(fills) > 1 or stacked))
    if several or (scaled and stacked) or (finite and any(mask.scale.traced for mask in scaled)):
        raise Miss(SEVERAL, at)
    (outer, _), *inner = steps
    if (
        outer.kind == "keep"
        and outer.fill > SURE
        and not any(mask.kind != "add" or may_hide(program, mask, known) for mask, known in inner)
    ):
        # the last word is its own: in a row that it hides, all scores are one number, whatever was added before
        return Reading(axes, "additive", known_keep, keeps, steps=added_up, empty="mean")
    certain = not stacked and all(_finite(program, mask, known) for mask, known in steps)
    # what is added in float32 to scores set to float16's lowest number is not swallowed by that
    wide = not half or any(mask.kind == "add" and _largest(mask) != FLOAT16_MAX for mask, _ in steps[:-1])
    lowest = SURE if wide else SWALLOWS_HALF if not certain else 0.0
    if any(mask.kind == "keep" and mask.fill > lowest for mask, _ in steps):
        raise Miss(f"scores set to {max(finite):g} meet another mask: where a row is masked wholly, both count", at)
    late: Empty | None = "mean" if half and finite else None
    if not certain:
        late = "zero" if guarded else late or "nan"
    return Reading(axes, "additive", known_keep, keeps, steps=added_up, empty=late)


def _finite(program: Program, mask: Mask, known: NDArray[Any] | None) -> bool:
    """Whether a mask adds no minus infinity, so that the kernel sees no wholly masked row."""
    if mask.kind != "add" or mask.scale.traced:
        return mask.kind != "add" and math.isfinite(mask.fill)
    low, high = bounds(program.graph, program.known, mask.term.value) if known is None else (known.min(), known.max())
    return min(float(low) * mask.scale.number, float(high) * mask.scale.number) >= -FLOAT32_MAX


def _lowers_alone(program: Program, mask: Mask, known: NDArray[Any] | None) -> bool:
    """Whether what a mask makes infinite it makes minus infinity: its sign is known, or it is finite."""
    turned = replace(mask, scale=mask.scale.times(-1))
    return not mask.scale.traced and (mask.scale.number > 0 or _finite(program, turned, known))


def _known(program: Program, mask: Mask, axes: Dim, keys: Dim) -> NDArray[Any] | None:
    if mask.kind == "floor" or mask.scale.traced:
        return None
    array: NDArray[Any] | None = program.known.array(mask.term.value)
    if array is None:
        return None
    if program.known.is_given(mask.term.value) and mask.kind != "keep":
        # a mask among the state may be read, but numbers that can be trained stay arrays
        hidden = array <= VANISHES
        if not (((array == 0) | hidden).all() and hidden.any()):
            return None
    program.known.rely(mask.term.value)
    if mask.piece is None:
        return spread(array, mask.term, axes)
    start, column = mask.piece
    outer = axes[: len(axes) - len(keys)]
    part = spread(array, mask.term, (*outer, *axes_of([column]))).astype(np.float64)
    part = part.reshape([*part.shape[: len(outer)], -1])
    part = np.broadcast_to(part, (*part.shape[:-1], size_of(column)))
    # the other keys are left as they are
    neutral = 0.0 if mask.kind == "add" or (mask.kind == "keep" and mask.inverted) else 1.0
    after = size_of(keys) - start - size_of(column)
    part = np.pad(part, [(0, 0)] * len(outer) + [(start, after)], constant_values=neutral)
    return part.reshape([*part.shape[:-1], *(axis.size for axis in keys)])


def spread(array: NDArray[Any], term: Term, axes: Dim) -> NDArray[Any]:
    """The array of `term` with one dimension for each of `axes`, of size 1 where it does not vary."""
    own = axes_of(term.dims)
    order = sorted(range(len(own)), key=lambda i: axes.index(own[i]))
    array = array.reshape([axis.size for axis in own]).transpose(order)
    return array.reshape([axis.size if axis in own else 1 for axis in axes])


def _chosen(program: Program, mask: Mask, half: bool) -> Mask | None:
    """The keep mask that `scores + where(condition, 0, fill)` is, when no score survives the addition of `fill`."""
    node = mask.term.value.node
    if mask.kind != "add" or node.op != "Select" or mask.scale.traced:
        return None
    condition, left, right = program.graph.operands(node)
    numbers = program.known.number(left), program.known.number(right)
    for kept, fill, inverted in ((*numbers, False), (*numbers[::-1], True)):
        if kept == 0 and fill is not None:
            fill *= mask.scale.number
            swallows = SWALLOWS_HALF if _largest(mask) == FLOAT16_MAX else SURE
            if fill == -math.inf or (half and fill <= swallows):
                term = seen_through(program, condition, mask.term.dims)
                return Mask("keep", term, fill=fill, inverted=inverted)
    return None


def hides(program: Program, mask: Mask, known: NDArray[Any] | None) -> bool:
    """Whether an additive mask holds the lowest numbers of its type."""
    if known is not None:
        return bool((known * mask.scale.number <= SWALLOWS_HALF).any())
    low = _lowest(program, mask)
    return low != -math.inf and low * mask.scale.number <= SWALLOWS_HALF


def may_hide(program: Program, mask: Mask, known: NDArray[Any] | None = None) -> bool:
    """Whether an additive mask may hold such numbers: of what the program is given, nothing is known."""
    known = program.known.array(mask.term.value) if known is None else known
    return (known is None and _lowest(program, mask) == -math.inf) or hides(program, mask, known)


def _lowest(program: Program, mask: Mask) -> float:
    # what a layer gives is no mask, though it may be a position's share of the scores; of an input nothing is known
    return bounds(program.graph, program.known, mask.term.value, layers=(0.0, 0.0))[0]


def lowers(program: Program, masks: Sequence[Mask], reading: Reading) -> bool:
    """Whether a row may hold finite numbers so low that scores are lost in them."""
    if reading.kind != "additive":
        return reading.empty == "mean"
    return any(may_hide(program, mask) if mask.kind == "add" else math.isfinite(mask.fill) for mask in masks)


def _largest(mask: Mask) -> float:
    """The largest number of the type in which the program adds a mask."""
    return FLOAT16_MAX if mask.term.value.dtype == mx.float16 else FLOAT32_MAX


def _places(keys: Dim, axes: Dim) -> tuple[int, ...]:
    return tuple(axes.index(key) for key in keys)


def _covers(keep: NDArray[np.bool_], keys: Dim, axes: Dim) -> bool:
    return bool(keep.any(axis=_places(keys, axes)).all())


def _is_causal(keep: NDArray[np.bool_], axes: Dim, queries: Dim, keys: Dim) -> bool:
    """Whether row i keeps the columns up to i + columns - rows, alike over all other axes: the kernel's causal mask."""
    varying = {axis for axis, size in zip(axes, keep.shape, strict=True) if size != 1}
    if keep.all() or not varying <= {*queries, *keys}:
        return False
    rows, columns = math.prod(a.size for a in queries), math.prod(a.size for a in keys)
    shape = [axis.size if axis in queries or axis in keys else 1 for axis in axes]
    full = np.broadcast_to(keep, shape).reshape(rows, columns)
    return rows <= columns and bool((full == np.tri(rows, columns, columns - rows, dtype=bool)).all())


def smallest(array: NDArray[Any]) -> NDArray[Any]:
    """`array` with a size of 1 where it does not vary."""
    for place, size in enumerate(array.shape):
        first = array.take([0], axis=place)
        if size > 1 and (array.take([1], axis=place) == first).all() and (array == first).all():
            array = first
    return array


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
