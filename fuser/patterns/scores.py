"""From the softmax back to the product of queries and keys: one peeler for each thing that may lie between.

A peeler takes a cursor to where it leads: it returns the cursors past the node, of which the first that reaches a
product wins, or raises `Miss`. What it goes by is the meaning, so its guard is part of it: an array that varies along
the keys is no scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from fuser.ir.graph import Value
from fuser.masks.mask import SURE, VANISHES, Mask, Scale
from fuser.patterns.cursor import Cursor, Sink
from fuser.reading.axes import VIEWS, Dim, axes_of
from fuser.reading.operands import operand
from fuser.reading.products import factors
from fuser.reading.program import IDENTITIES, Miss, backwards, is_float, most
from fuser.reading.reasons import BEFORE
from fuser.reading.softmax import is_largest, is_shift
from fuser.regions import Cap, Product


@dataclass(frozen=True)
class Scores:
    """What goes into a softmax: a sum of products, masked."""

    products: tuple[Product, ...]
    masks: tuple[Mask, ...]
    keys: Dim
    sink: Sink | None
    depth: int
    cap: Cap | None = None


Peeler = Callable[[Cursor], Iterable[Cursor]]
PEELERS: dict[str, Peeler] = {}
# where a walk ends: a product, or what joins several
ENDS: dict[str, Callable[[Cursor], Scores]] = {}


def peels(*ops: str) -> Callable[[Peeler], Peeler]:
    """Register a peeler for primitives."""

    def register(peeler: Peeler) -> Peeler:
        PEELERS.update(dict.fromkeys(ops, peeler))
        return peeler

    return register


def scores(cursor: Cursor) -> Scores:
    """The products and masks behind `cursor`; raises the `Miss` of the way that led furthest."""
    if cursor.op in ENDS:
        return ENDS[cursor.op](cursor)
    peeler = PEELERS.get(cursor.op)
    if peeler is None:
        raise cursor.miss(
            BEFORE.get(cursor.op, f"between product and softmax stands {cursor.op}, which the kernel cannot do")
        )
    found: list[Scores] = []
    furthest: Miss | None = None
    for way in peeler(cursor):
        try:
            found.append(scores(way))
        except Miss as miss:
            if furthest is None or miss.depth > furthest.depth:
                furthest = miss
        else:
            if cursor.op not in ("Add", "Subtract"):
                break
    if not found:
        raise furthest or cursor.miss("the scores are not a product")
    return found[0] if len(found) == 1 else _sum(cursor, *found)


def _sum(cursor: Cursor, left: Scores, right: Scores) -> Scores:
    """Two products added: `q1 k1 + q2 k2` is one product of concatenated queries and keys.

    When the keys of one vary along the queries of the other, it is a relative position's share: an additive mask.
    """
    if _bound(right, left):
        return left
    if _bound(left, right):
        return right
    seen = len(cursor.masks)
    # each way took the other side for a mask: that entry goes
    inner = left.masks[seen + 1 :], right.masks[seen + 1 :]
    # a fill that swallows the other product's scores, too, masks the sum, unless it meets another
    fills = [[mask.fill if mask.kind == "keep" else 0.0 for mask in masks if mask.kind != "add"] for masks in inner]
    if left.cap or right.cap or not all(fill <= SURE for fill in (*fills[0], *fills[1])):
        raise cursor.miss("two products are added of which one is masked or capped alone")
    if all(fills) and any(map(math.isfinite, (*fills[0], *fills[1]))):
        raise cursor.miss("two products are added that are masked each: where both are, the fills add up")
    # what is added to the other product is added to the fill, too
    masks = inner[1] + inner[0] if fills[0] else inner[0] + inner[1]
    return replace(left, products=left.products + right.products, masks=cursor.masks + masks)


def _bound(scores: Scores, other: Scores) -> bool:
    own, rows = ({axis for each in side.products for axis in axes_of([each.rows])} for side in (scores, other))
    # keys that nothing else varies along make rows of the batch, too: what is rows to both sides is the queries
    return any(product.key.axes & (own & rows or rows) for product in scores.products)


@peels("AsType")
def cast(cursor: Cursor) -> Iterable[Cursor]:
    """Casts between float types: the kernel's softmax is in float32 whatever they are."""
    source = cursor.operands()[0]
    if not is_float(source):
        raise cursor.miss("the scores are cast from a type that is not a float")
    yield cursor.to(source)


@peels(*VIEWS, *IDENTITIES, "Gather", "Slice")
def view(cursor: Cursor) -> Iterable[Cursor]:
    """Transposes and reshapes only move axes."""
    back = backwards(cursor.program, cursor.value, cursor.dims)
    if back is None:
        how = "reshaped across their axes" if cursor.op in VIEWS else "taken in part"
        raise cursor.miss(f"the scores are {how} before the softmax ({cursor.op})")
    yield cursor.to(*back)


@peels("Negative")
def negative(cursor: Cursor) -> Iterable[Cursor]:
    """A scale of -1."""
    yield cursor.to(cursor.operands()[0], None, cursor.scale.times(-1))


@peels("Multiply")
def multiply(cursor: Cursor) -> Iterable[Cursor]:
    """A scale on either side: a number, or an array that does not vary along the keys."""
    for value, other in both_ways(cursor):
        yield scaled(cursor, value, other)


@peels("Divide")
def divide(cursor: Cursor) -> Iterable[Cursor]:
    """A scale below the line."""
    value, other = cursor.operands()
    yield scaled(cursor, value, other, divides=True)


def scaled(cursor: Cursor, value: Value, other: Value, divides: bool = False) -> Cursor:
    """The cursor at `value`, of which `other` is a scale; a 0/1 mask is kept as one for the masks to judge."""
    number = cursor.program.known.number(other)
    if number is not None and math.isfinite(number) and number != 0:
        return cursor.to(value, None, cursor.scale.times(1 / number if divides else number))
    scale, masks = cursor.scale, list[Mask]()
    for term in cursor.factors(other):
        if term.axes.isdisjoint(axes_of([cursor.keys])):
            scale = scale.over(Scale(1.0, (), (term,)) if divides else Scale(1.0, (term,)))
        else:
            masks.append(Mask("over" if divides else "times", term, cursor.scale))
    return cursor.to(value, None, scale, *masks)


@peels("Add")
def add(cursor: Cursor) -> Iterable[Cursor]:
    """An additive mask, on either side."""
    for value, other in both_ways(cursor):
        yield added(cursor, value, other, 1)


@peels("Subtract")
def subtract(cursor: Cursor) -> Iterable[Cursor]:
    """An additive mask with the sign turned."""
    left, right = cursor.operands()
    yield added(cursor, left, right, -1)
    yield added(cursor.to(cursor.value, None, cursor.scale.times(-1)), right, left, -1)


def added(cursor: Cursor, value: Value, other: Value, sign: int) -> Cursor:
    """The cursor at `value`, of which `other` is an additive mask.

    What is the same for all keys is no matter to a softmax alone: a number, or the largest or mean of the very scores.
    """
    term = cursor.term(other)
    if not cursor.fixed and term.axes.isdisjoint(axes_of([cursor.keys])):
        number, past = cursor.program.known.number(other), cursor.to(value)
        if number is not None and abs(number) <= -VANISHES:
            return past
        if number is None and is_shift(cursor.program, term.value, value):
            small = sign < 0 and not cursor.masks and is_largest(cursor.program, term.value)
            if not small and scores(past).masks != cursor.masks:
                raise cursor.miss(
                    "the masked scores are shifted by what the mask decides, which may leave nothing of them"
                )
            return past
    return cursor.to(value, None, None, Mask("add", term, cursor.scale.times(sign)))


@peels("Tanh")
def softcap(cursor: Cursor) -> Iterable[Cursor]:
    """`c * tanh(scores / c)`, to be masked after: what our own kernel can do, where there is one."""
    scale = cursor.scale
    if cursor.cap or scale.traced or not 0 < scale.number < math.inf:
        raise cursor.miss(BEFORE["Tanh"])
    cap = Cap(scale.number, cursor.value.node, len(cursor.masks))
    yield replace(cursor.to(cursor.operands()[0], None, Scale()), cap=cap, fixed=True)


@peels("Select", "MaskedScatter")
def select(cursor: Cursor) -> Iterable[Cursor]:
    """`where(mask, scores, fill)` and `where(mask, fill, scores)`, which `scores[mask] = fill` is, too."""
    first, second, third = cursor.operands()
    condition, ways = first, ((second, third, False), (third, second, True))
    if cursor.op == "MaskedScatter":
        condition, ways = second, ((first, third, True),) * 2
    for value, other, inverted in ways:
        number = cursor.program.known.number(other)
        if number is not None:
            fill = number * cursor.scale.number
            beyond = math.isfinite(number) and abs(fill) > most(cursor.value)
            if cursor.scale.traced or beyond:
                raise cursor.miss("the masked scores are scaled after the mask, by an array or to more than they hold")
            yield cursor.to(value, None, None, Mask("keep", cursor.term(condition), cursor.scale, fill, inverted))


@peels("Maximum")
def maximum(cursor: Cursor) -> Iterable[Cursor]:
    """`maximum(scores, finfo.min)`: a floor under the mask."""
    for value, other in both_ways(cursor):
        number = cursor.program.known.number(other)
        if number is not None:
            floor = Mask("floor", cursor.term(other), cursor.scale, number * cursor.scale.number)
            yield cursor.to(value, None, None, *([floor] if floor.fill > -math.inf else []))


def both_ways(cursor: Cursor) -> Iterable[tuple[Value, Value]]:
    """The operands of a binary node as (scores, other); what is known is the scores only if all is."""
    left, right = cursor.operands()
    known = cursor.program.known
    for value, other in ((left, right), (right, left)):
        if not known.is_known(value) or (known.is_known(other) and known.number(value) is None):
            yield value, other


def product(cursor: Cursor) -> Scores:
    """The product of queries and keys, as one of two matrices or as elementwise product and sum."""
    masks, scale = cursor.masks, cursor.scale
    found = factors(cursor.program, cursor.value, cursor.dims)
    if found is None:
        raise cursor.miss("the scores are a reduction that is no product")
    if cursor.op == "AddMM":
        alpha, beta = cursor.value.node.arguments
        bias = Mask("add", cursor.term(cursor.operands()[2]), scale.times(beta))
        masks, scale = (*masks, bias), scale.times(alpha)
    first, second = (operand(cursor.program, term.value, term.dims) for term in (found.left, found.right))
    keys, (rows, others) = set(axes_of([cursor.keys])), found.rows
    if not second.axes >= keys or first.axes & keys:
        first, second, rows = second, first, others
    if not second.axes >= keys or first.axes & keys:
        raise cursor.miss(
            "the product is not one of queries and keys: the softmax runs along other axes than the keys'"
        )
    scale = scale.times(first.number * second.number)
    rows = tuple(axis for axis in axes_of([rows]) if axis not in second.axes)
    made = Product(first, second, axes_of([found.total]), scale, rows, (cursor.value,))
    return uncapped(Scores((made,), masks, cursor.keys, cursor.sink, cursor.depth, cursor.cap))


def uncapped(found: Scores) -> Scores:
    """`found`, when nothing was added to the scores inside of a cap."""
    if found.cap and len(found.masks) != found.cap.masks:
        raise Miss("the scores are capped by tanh (softcap) after something was added to them", found.cap.at)
    return found


ENDS.update(dict.fromkeys(("Matmul", "AddMM", "Reduce"), product))
