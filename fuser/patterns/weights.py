"""From the softmax on to the product with the values: what may be done to the weights on the way."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import mlx.core as mx

from fuser.ir.graph import Node, Value
from fuser.joined import onwards
from fuser.masks.mask import Mask
from fuser.patterns.cursor import Sink
from fuser.reading.axes import VIEWS, Dim, Dims, after, axes_of, fresh, position, resolve, size_of
from fuser.reading.operands import Operand, operand
from fuser.reading.products import summed
from fuser.reading.program import IDENTITIES, Miss, Program, Term, is_float, seen_through
from fuser.reading.reasons import AFTER
from fuser.reading.softmax import below, uncast
from fuser.regions import Step, Taken, Weighted


@dataclass(frozen=True)
class Walk:
    """A place on the way from the softmax to the product, with what was done to the weights so far."""

    value: Value
    dims: Dims
    origin: Dims
    """The dimensions of the weights themselves; axes that are none of theirs belong to the values."""
    keys: Dim
    sink: Sink | None = None
    guarded: bool = False
    """NaN weights (of rows that are masked wholly) were replaced by zeros."""
    number: float = 1.0
    """What the weights were multiplied with."""
    steps: tuple[Step | Taken, ...] = ()
    zeros: tuple[tuple[Mask, Node], ...] = ()
    """Masks that set weights of some keys to zero, and the nodes that apply them."""
    seen: tuple[Value, ...] = ()
    start: int | None = None
    """Of the weights of some of the keys only: where these begin among all."""
    sums: tuple[tuple[Node, int], ...] = ()
    """The sums with other weights on the way."""

    def pieces(self, value: Operand) -> tuple[tuple[int, Operand, Dim], ...]:
        """`value` as the piece of the values that belongs to these weights; nothing when it is all of them."""
        return () if self.start is None else ((self.start, value, axes_of([self.keys])),)

    depth: int = 0

    @property
    def columns(self) -> Dim:
        """The axes of the keys, and of the keys with a sink among them."""
        return axes_of([self.keys, self.sink.column if self.sink else ()])

    def miss(self, reason: str, node: Node) -> Miss:
        """The match ends at `node`."""
        return Miss(reason, node, self.depth)

    def width(self, dims: Dims) -> Dim:
        """The axes of an output with `dims` that come from the values."""
        own = axes_of((*self.origin, self.keys))
        return tuple(axis for axis in axes_of(dims) if axis not in own)


def weighted_sums(program: Program, walk: Walk) -> list[Weighted]:
    """The products of the weights with values; raises the `Miss` of the way that led furthest when there is none."""
    walk = replace(walk, seen=(*walk.seen, walk.value))
    found: list[Weighted] = []
    furthest: Miss | None = None
    for node, place in program.graph.users(walk.value):
        try:
            if node.op in ("Matmul", "AddMM"):
                found.append(product(program, walk, node, place))
                continue
            if node.op == "Split":
                for part in split(walk, node):
                    found += weighted_sums(program, part)
                continue
            step = onward(program, walk, node, place)
            if step is not None:
                found += [step] if isinstance(step, Weighted) else weighted_sums(program, step)
        except Miss as miss:
            if furthest is None or miss.depth > furthest.depth:
                furthest = miss
    if found:
        return found
    raise furthest or walk.miss("the weights are not multiplied with values", walk.value.node)


def onward(program: Program, walk: Walk, node: Node, place: int) -> Walk | Weighted | None:
    """The walk past `node`, which reads the weights; None when that is a way of no interest."""
    given = Value(node)
    step = replace(walk, value=given, depth=walk.depth + 1)
    # compared, or read for the shape to which something else is broadcast
    if node.op in ("Equal", "NotEqual") or (node.op in VIEWS and place > 0):
        return None
    if node.op in VIEWS:
        dims = after(node.op, node.arguments, walk.dims, given.shape)
        if dims is None:
            raise walk.miss("the weights are reshaped across their axes", node)
        return replace(step, dims=dims)
    if node.op in IDENTITIES or (node.op == "AsType" and is_float(given)):
        return step
    operands = program.graph.operands(node)
    if (node.op == "Add" or (node.op == "Subtract" and place == 0)) and program.known.number(operands[1 - place]) == 0:
        return step
    if node.op in ("Add", "Subtract"):
        turned = -1 if node.op == "Subtract" and place == 1 else 1
        return replace(step, number=walk.number * turned, sums=(*walk.sums, (node, place)))
    if node.op == "Select" and place > 0:
        return selected(program, step, operands, place)
    if node.op == "Slice" and min(node.arguments[2]) > 0:
        return narrowed(step, node, node.arguments[0], given.shape, node.arguments[2])
    if node.op == "Multiply" or (node.op == "Divide" and place == 0):
        other = operands[1 - place]
        number = program.known.number(other)
        if number is not None:
            if not math.isfinite(number) or (node.op == "Divide" and number == 0):
                raise walk.miss("the weights are multiplied by what is no number, or divided by zero", node)
            return replace(step, number=walk.number * number if node.op == "Multiply" else walk.number / number)
        term = seen_through(program, other, resolve(walk.dims))
        if term.axes.isdisjoint(walk.columns):
            kind: Literal["multiply", "divide"] = "multiply" if node.op == "Multiply" else "divide"
            return replace(step, steps=(*walk.steps, Step(kind, term)))
        if node.op == "Multiply" and _is_mask(program, term):
            return replace(step, zeros=(*walk.zeros, (Mask("times", term), node)))
        if node.op == "Multiply":
            return product(program, walk, node, place)
    raise walk.miss(AFTER.get(node.op, f"the weights go through {node.op} after the softmax"), node)


def selected(program: Program, step: Walk, operands: tuple[Value, ...], place: int) -> Walk:
    """`where(isnan(weights), 0, weights)`, or rows set to zero as a whole."""
    condition, other, inverted = operands[0], operands[3 - place], place == 2
    number = program.known.number(other)
    while condition.node.op == "LogicalNot":
        condition, inverted = program.operands(condition)[0], not inverted
    compared = program.operands(condition)
    asked = condition.node.op in ("Equal", "NotEqual") and is_float(compared[0])
    asked = asked and uncast(program, compared[0]) in step.seen
    if asked and not step.steps and not step.sums and not any(condition.node.arguments):
        # rows that were multiplied, or added, may hold other NaN than those of the softmax
        if compared[0] == compared[1] and number == 0 and inverted == (condition.node.op == "NotEqual"):
            return replace(step, guarded=True)
        against = program.known.number(compared[1])
        infinite = against is not None and math.isinf(against) and compared[0] in step.seen
        if condition.node.op == "Equal" and infinite and inverted:
            return step
    term = seen_through(program, condition, resolve(step.dims))
    if number == 0 and term.axes.isdisjoint(step.columns):
        return replace(step, steps=(*step.steps, Step("keep", term, inverted=inverted)))
    if number == 0:
        return replace(step, zeros=(*step.zeros, (Mask("keep", term, inverted=inverted), step.value.node)))
    raise step.miss(AFTER["Select"], step.value.node)


def _is_mask(program: Program, term: Term) -> bool:
    """Whether an array holds zeros and ones: a mask on the weights, and no values."""
    node = term.value.node
    return node.op == "AsType" and program.graph.operands(node)[0].dtype == mx.bool_


def narrowed(step: Walk, node: Node, start: Sequence[int], shape: Sequence[int], by: Sequence[int] = ()) -> Walk:
    """Some of the weights: without the sink's column, those of a piece of the keys, or one of two heads, say."""
    dims = list(resolve(step.dims))
    keys = axes_of([step.keys])
    before, column = (int(step.sink.first), axes_of([step.sink.column])) if step.sink else (0, keys)
    for place, dim in enumerate(dims):
        size = shape[place]
        if size == size_of(dim):
            continue
        stride = by[place] if by and size > 1 else 1
        cut = position(dim, start[place], size, stride) if not {*dim} & {*step.columns} else None
        if cut is not None:
            dims[place] = cut[0]
            step = replace(step, steps=(*step.steps, Taken(cut[1], cut[2])))
            continue
        first = start[place] - before
        if dim != column or stride > 1 or step.start is not None or first < 0 or first + size > size_of(keys):
            raise step.miss(AFTER["Slice"], node)
        if size == size_of(keys):
            dims[place] = keys
        else:
            dims[place] = fresh(size, "keys")
            step = replace(step, keys=dims[place], start=first)
        step = replace(step, sink=None)
    return replace(step, dims=tuple(dims))


def split(walk: Walk, node: Node) -> Iterator[Walk]:
    """The weights of each piece of the keys; a sink's column alone is none."""
    ends, axis = node.arguments
    start = 0
    for index, type in enumerate(node.outputs):
        step = replace(walk, value=Value(node, index), depth=walk.depth + 1)
        sink = walk.sink and start == (0 if walk.sink.first else size_of(axes_of([walk.keys])))
        if not sink:
            yield narrowed(step, node, [start if i == axis else 0 for i in range(len(type.shape))], type.shape)
        start = ends[index] if index < len(ends) else start


def product(program: Program, walk: Walk, node: Node, place: int) -> Weighted:
    """The product with the values, from the left or (all transposed) from the right, or elementwise and summed."""
    if place > 1:
        raise walk.miss(AFTER["Add"], node)
    found = None if walk.sink else summed(program, node, place, walk.dims, axes_of([walk.keys]))
    if found is None:
        other = "the product with the values sums over another axis than the softmax normalises"
        raise walk.miss(AFTER["Multiply"] if node.op == "Multiply" else other, node)
    factor, output = found
    value = operand(program, factor.value, factor.dims)
    number, steps = walk.number * value.number, walk.steps
    if walk.sums and (walk.start is not None or node.op == "AddMM"):
        raise walk.miss(AFTER[walk.sums[-1][0].op], walk.sums[-1][0])
    if node.op == "AddMM":
        alpha, beta = node.arguments
        number *= alpha
        steps = (*steps, Step("add", seen_through(program, program.graph.operands(node)[2], output.dims), beta))
    width, pieces = walk.width(output.dims), walk.pieces(value)
    return Weighted(value, width, output.value, output.dims, walk.guarded, number, steps, walk.zeros, pieces, walk.sums)


def covered(found: Sequence[Weighted], rows: Dim) -> list[Weighted]:
    """`found` without products of some heads of the weights alone, where the kernel would compute all of `rows`."""
    sizes: Counter[object] = Counter()
    for each in found:
        sizes[each.array] += size_of(axes_of(each.dims))
    kept = [each for each in found if sizes[each.array] >= size_of((*rows, *each.width))]
    if not kept:
        raise Miss(AFTER["Slice"], found[0].output.node)
    return kept


def divided(program: Program, found: Weighted, total: Term, at: Node) -> Weighted:
    """The output divided by the sum of the exponentials (and at the node `at` by a sink too): normalised late."""
    for here in onwards(program, found) if not found.sums else ():
        for node, place in program.graph.users(here.output):
            if node.op == "Multiply" or (node.op == "Divide" and place == 0):
                other = program.graph.operands(node)[1 - place]
                denominator = below(program, other, resolve(here.dims), node.op)
                if denominator is not None and denominator[0] == total and (node == at or not denominator[1]):
                    return replace(here, output=Value(node))
    raise Miss("the product with the values is not divided by the sum of the weights", found.output.node)
