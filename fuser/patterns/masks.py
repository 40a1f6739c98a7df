"""What the masks of a region mean together: known ones are read by their value, the others keep their arrays.

A mask is a *keep* mask where it decides which keys count, and a *bias* where it shifts scores. Known arrays of both kinds
are evaluated; a bias of zeros and of numbers so low that the weight vanishes is a keep mask.

A row in which no key is kept has an answer of its own in every spelling: NaN where -inf was filled, the mean of the
values where one finite number was, zeros where a guard replaced the NaN. `empty` says which it is; `None` says that there
is no such row, or that the kernel answers as the program does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fuser.ir.graph import Node
from fuser.patterns.axes import Dim, axes_of, resolve
from fuser.patterns.cursor import Mask, Miss, Program, Scale, Term

# a score this low has no weight beside any other: exp(-9000) is zero in every float type
VANISHES = -9e3
# adding this swallows scores of a usual size (the second: in float16), so that a wholly masked row is uniform
SURE = -1e8
SWALLOWS_HALF = -6e4


@dataclass(frozen=True)
class Reading:
    """The masks of a region as one; arrays over `axes`, one dimension for each (of size 1 where they do not vary)."""

    axes: Dim
    keep: NDArray[np.bool_] | None = None
    """Which keys count, as far as known before the program runs."""
    bias: NDArray[np.float64] | None = None
    """What is added to the scores, as far as known."""
    keeps: tuple[Mask, ...] = ()
    """Keep masks that are computed when the program runs."""
    biases: tuple[tuple[Term, Scale], ...] = ()
    """Additive masks that are computed when the program runs."""
    causal: bool = False
    fill: float = -math.inf
    """What stands in the scores where no keep mask keeps."""
    floor: float | None = None
    """The lowest score that a bias may make."""
    empty: Literal["nan", "mean", "zero"] | None = None

    @property
    def kind(self) -> str:
        """`none`, `causal`, `boolean` or `additive`."""
        if self.bias is not None or self.biases:
            return "additive"
        if self.keep is not None or self.keeps:
            return "boolean"
        return "causal" if self.causal else "none"


def read(
    program: Program, masks: Sequence[Mask], axes: Dim, queries: Dim, keys: Dim, half: bool, guarded: bool, at: Node
) -> Reading:
    """The meaning of `masks` (outermost first) over `axes`, which end with the queries and the keys.

    `half` says that the kernel is called in float16, `guarded` that NaN weights are replaced by zeros.
    Raises `Miss` at node `at` for masks that the kernel cannot express.
    """
    keep, bias = np.ones((1,) * len(axes), bool), np.zeros((1,) * len(axes))
    keeps: list[Mask] = []
    biases: list[tuple[Term, Scale]] = []
    fills: set[float] = set()
    floor: float | None = None
    for mask in masks:
        where = program.name(mask.term.value)
        if mask.kind == "floor":
            if mask.fill > VANISHES:
                raise Miss(f"the scores are cut off below at {mask.fill:g}, which is no mask", at)
            floor = mask.fill
            continue
        known = _known(program, mask.term, axes)
        if mask.kind == "keep":
            if not mask.fill <= VANISHES:
                raise Miss(f"masked scores are set to {mask.fill:g}, which leaves them weight: {where} is no mask", at)
            fills.add(mask.fill)
            if known is None:
                keeps.append(mask)
            else:
                keep = keep & (known.astype(bool) != mask.inverted)
        elif mask.kind == "times":
            if known is None or not ((known == 0) | (known == 1)).all():
                raise Miss(f"the scores are multiplied by {where}, which varies along the keys: no scale", at)
            if not ((known == 1) | (bias <= VANISHES)).all():
                raise Miss(f"scores multiplied by zero at {where} keep their weight", at)
            # the scores that the outer bias hides anyway
            keep, bias = keep & (known == 1), np.where(known == 1, bias, 0)
            fills.add(VANISHES)
        elif known is not None and not (mask.scale.factors or mask.scale.divisors):
            bias = bias + known.astype(np.float64) * mask.scale.number
        else:
            chosen = _chosen(program, mask, half)
            if chosen is None:
                biases.append((mask.term, mask.scale))
            else:
                fills.add(chosen.fill)
                keeps.append(chosen)
    hidden = (bias == 0) | (bias <= VANISHES)
    if hidden.all() and (_covers(keep & (bias == 0), keys, axes) or (bias == -math.inf).sum() == (bias != 0).sum()):
        fills |= set(np.unique(bias[bias != 0]).tolist())
        keep, bias = keep & (bias == 0), np.zeros((1,) * len(axes))
    fills = {fill if floor is None else max(fill, floor) for fill in fills}
    additive = bool(biases) or bool(bias.any())
    empty, fill = None, -math.inf
    if fills and (keeps or biases or not _covers(keep & (bias > VANISHES), keys, axes)):
        empty, fill = _empty(fills, guarded, at), max(fills)
        if additive and empty == "mean" and not half:
            if fill > SURE:
                raise Miss(f"scores set to {fill:g} meet an additive mask: where a row is masked wholly, both count", at)
            empty = None
    if guarded and additive:
        empty = "zero"
    causal = not keeps and not biases and not bias.any() and _is_causal(keep, axes, queries, keys)
    return Reading(
        axes,
        None if causal or keep.all() else _smallest(keep),
        _smallest(bias) if bias.any() else None,
        tuple(keeps),
        tuple(biases),
        causal,
        fill,
        floor,
        empty,
    )


def _empty(fills: set[float], guarded: bool, at: Node) -> Literal["nan", "mean", "zero"] | None:
    finite = {fill for fill in fills if math.isfinite(fill)}
    if not fills:
        return None
    if not finite:
        return "zero" if guarded else "nan"
    if len(fills) > 1:
        raise Miss(f"masks of several fills ({', '.join(f'{f:g}' for f in sorted(fills))}) meet where a row may be empty", at)
    return "mean"


def _known(program: Program, term: Term, axes: Dim) -> NDArray[np.generic] | None:
    array = program.known.array(term.value)
    return None if array is None else spread(array, term, axes)


def spread(array: NDArray[np.generic], term: Term, axes: Dim) -> NDArray[np.generic]:
    """The array of `term` with one dimension for each of `axes`, of size 1 where it does not vary."""
    own = axes_of(term.dims)
    order = sorted(range(len(own)), key=lambda i: axes.index(own[i]))
    array = array.reshape([axis.size for axis in own]).transpose(order)
    return array.reshape([axis.size if axis in own else 1 for axis in axes])


def _chosen(program: Program, mask: Mask, half: bool) -> Mask | None:
    """The keep mask that `scores + where(condition, 0, fill)` is, when no score survives the addition of `fill`."""
    node = mask.term.value.node
    if node.op != "Select" or mask.scale.factors or mask.scale.divisors:
        return None
    condition, left, right = program.graph.operands(node)
    numbers = program.known.number(left), program.known.number(right)
    for kept, fill, inverted in ((*numbers, False), (*numbers[::-1], True)):
        if kept == 0 and fill is not None:
            fill *= mask.scale.number
            if fill == -math.inf or (half and fill <= SWALLOWS_HALF):
                return Mask("keep", Term(condition, mask.term.dims), fill=fill, inverted=inverted)
    return None


def _covers(keep: NDArray[np.bool_], keys: Dim, axes: Dim) -> bool:
    places = tuple(axes.index(key) for key in keys)
    return bool(keep.any(axis=places).all())


def _is_causal(keep: NDArray[np.bool_], axes: Dim, queries: Dim, keys: Dim) -> bool:
    """Whether row i keeps the columns up to i + columns - rows, alike over all other axes: the kernel's causal mask."""
    varying = {axis for axis, size in zip(axes, keep.shape, strict=True) if size != 1}
    if keep.all() or not varying <= {*queries, *keys}:
        return False
    rows, columns = math.prod(a.size for a in queries), math.prod(a.size for a in keys)
    shape = [axis.size if axis in queries or axis in keys else 1 for axis in axes]
    full = np.broadcast_to(keep, shape).reshape(rows, columns)
    return rows <= columns and bool((full == np.tri(rows, columns, columns - rows, dtype=bool)).all())


def _smallest(array: NDArray[Any]) -> NDArray[Any]:
    """`array` with a size of 1 where it does not vary."""
    for place, size in enumerate(array.shape):
        first = array.take([0], axis=place)
        if size > 1 and (array == first).all():
            array = first
    return array


def varying(reading: Reading) -> frozenset[object]:
    """The axes over which the masks of a reading vary."""
    axes: set[object] = set()
    for known in (reading.keep, reading.bias):
        if known is not None:
            axes |= {axis for axis, size in zip(reading.axes, known.shape, strict=True) if size != 1}
    for term in [mask.term for mask in reading.keeps] + [term for term, _ in reading.biases]:
        axes |= set(axes_of(resolve(term.dims)))
    return frozenset(axes)

