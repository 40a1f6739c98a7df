"""Every softmax of a graph, as the primitive or written out: the anchors from which attention is looked for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from fuser.ir.graph import Node, Value
from fuser.reading.axes import VIEWS, Dims, axes_of, fresh
from fuser.reading.products import MAX, SUM, is_reduction
from fuser.reading.program import IDENTITIES, Program, Term, is_float, seen_through


@dataclass(frozen=True)
class Softmax:
    """A softmax: `weights = softmax(scores)` along `axes`."""

    node: Node
    scores: Value
    weights: Value
    axes: tuple[int, ...]
    total: Value | None = None
    """When the weights are only exponentials: their sum, by which the product with the values is divided."""
    one: bool = False
    """Whether the denominator has a one more: a sink with a logit of zero."""
    keep: Value | None = None
    """Which of the exponentials count, when the others are set to zero."""
    undefined: bool = False
    """Whether a row of minus infinity is NaN in spite of that one, less which the largest score was taken."""
    logarithm: bool = False
    """Whether its logarithm came first: in rows of numbers so low that these swallow it, the weights are ones."""
    open: bool = False
    """Whether the weights are exponentials that are not divided by their sum: no softmax, though made as one."""
    rate: float = 1.0
    """What the scores are multiplied with first: the logarithm of the base, when it is another than e."""


def softmaxes(program: Program) -> Iterator[Softmax]:
    """All softmaxes of the program, in order."""
    closed: set[Node] = set()
    exponentials: list[Node] = []
    for node in program.graph.nodes:
        if node.op == "Softmax":
            yield Softmax(node, program.graph.operands(node)[0], Value(node), (len(node.outputs[0].shape) - 1,))
        elif node.op in ("Divide", "Multiply", "Exp"):
            found = written_out(program, Value(node))
            if found is not None:
                closed |= program.graph.behind(node, found.scores.node) - {found.scores.node}
                yield found
            elif node.op == "Exp" and program.of_activations(node):
                exponentials.append(node)
    for node in exponentials:
        if node not in closed and _meets_product(program, Value(node)):
            scores = program.graph.operands(node)[0]
            yield Softmax(node, scores, Value(node), (len(scores.shape) - 1,), open=True)


def _meets_product(program: Program, value: Value) -> bool:
    """Whether a product of matrices reads `value`, perhaps scaled."""
    for node, _ in program.graph.users(value):
        if node.op in ("Matmul", "AddMM"):
            return True
        through = node.op in VIEWS or node.op in ("AsType", "Divide", "Multiply", *IDENTITIES)
        if through and _meets_product(program, Value(node)):
            return True
    return False


def written_out(program: Program, value: Value) -> Softmax | None:
    """`exp(x - max(x)) / sum(exp(x - max(x)))`, with or without the maximum, or `exp(x - logsumexp(x))`.

    The division may come after the product with the values.
    """
    operands = program.operands(value)
    if value.node.op == "Exp":
        return _from_logarithm(program, value)
    for numerator, other in (operands, operands[::-1]) if value.node.op == "Multiply" else (operands,):
        dims = tuple(fresh(size) for size in numerator.shape)
        denominator = below(program, other, dims, value.node.op)
        power = uncast(program, numerator)
        if denominator is None:
            continue
        total, one = denominator
        source = uncast(program, program.operands(total.value)[0])
        axes = tuple(total.value.node.arguments[1])
        counted = _counted(program, source)
        if counted is None:
            continue
        exponential, keep = counted
        if one is not None and keep is None and _vanishes(program, one, exponential, axes):
            one = None
        if one is not None and not _one(program, one, exponential, dims):
            continue
        scores, rate = _unshifted(program, exponential, axes), _rate(program, exponential)
        if program.alike(power, source) and total.dims == _reduced(dims, axes):
            undefined = one is not None and scores != program.operands(exponential)[-1]
            undefined = undefined and is_largest(program, program.operands(program.operands(exponential)[-1])[1])
            return Softmax(value.node, scores, value, axes, None, one is not None, keep, undefined, rate=rate)
        for weights in () if one else product_behind(program, numerator):
            weights = _bare(program, weights)
            if program.alike(weights, source):
                return Softmax(value.node, scores, weights, axes, total.value, False, keep, rate=rate)
    return None


def _counted(program: Program, value: Value) -> tuple[Value, Value | None] | None:
    """The exponential that `value` is, and the boolean array that says which of it count."""
    operands = program.operands(value)
    if _rate(program, value):
        return value, None
    if value.node.op == "Select" and program.known.number(operands[2]) == 0:
        exponential = uncast(program, operands[1])
        return (exponential, operands[0]) if _rate(program, exponential) else None
    if value.node.op == "Multiply":
        for left, right in (operands, operands[::-1]):
            exponential = uncast(program, left)
            if _rate(program, exponential) and not is_reduction(right, SUM):
                return exponential, right
    return None


def _rate(program: Program, value: Value) -> float:
    """The logarithm of the base of which `value` is a power; 0 when it is no exponential."""
    base = program.known.number(program.operands(value)[0]) if value.node.op == "Power" else None
    return 1.0 if value.node.op == "Exp" else math.log(base) if base and 1 < base < math.inf else 0.0


def below(program: Program, other: Value, dims: Dims, op: str) -> tuple[Term, Term | None] | None:
    """The sum that `other` divides by (as `op` has it), and what is added to it."""
    term = seen_through(program, other, dims, casts=True)
    operands = program.operands(term.value)
    if op == "Multiply":
        inverse = {"Divide": (0, 1), "Power": (1, -1)}.get(term.value.node.op)
        if inverse is None or program.known.number(operands[inverse[0]]) != inverse[1]:
            return None
        term = seen_through(program, operands[1 - inverse[0]], term.dims, casts=True)
        operands = program.operands(term.value)
    if term.value.node.op == "Add":
        for total, one in (operands, operands[::-1]):
            inner = seen_through(program, total, term.dims, casts=True)
            if is_reduction(inner.value, SUM):
                return inner, Term(one, term.dims)
    return (term, None) if is_reduction(term.value, SUM) else None


def product_behind(program: Program, value: Value) -> tuple[Value, ...]:
    """What the product multiplies that `value` is, seen through views and casts; nothing when it is none."""
    while value.node.op in VIEWS or value.node.op == "AsType":
        value = program.operands(value)[0]
    if is_reduction(value, SUM):
        value = program.operands(value)[0]
    return program.operands(value) if value.node.op in ("Matmul", "Multiply") else ()


def _reduced(dims: Dims, axes: tuple[int, ...]) -> Dims:
    return tuple(() if place in axes else dim for place, dim in enumerate(dims))


def _vanishes(program: Program, added: Term, power: Value, axes: tuple[int, ...]) -> bool:
    """Whether what is added to the sum is lost in it: less its own maximum, a sum of exponentials is one or more."""
    number, scores = program.known.number(added.value), program.operands(power)[-1]
    if number is None or not 0 <= number < 2**-24:
        return False
    if scores.node.op != "Subtract":
        return False
    left, right = program.operands(scores)
    dims = tuple(fresh(size) for size in left.shape)
    shift = _shift(program, right, dims)
    largest = is_reduction(shift.value, MAX) and tuple(shift.value.node.arguments[1]) == axes
    if not largest or shift.dims != _reduced(dims, axes):
        return False
    return program.alike(uncast(program, program.operands(shift.value)[0]), uncast(program, left))


def _shift(program: Program, value: Value, dims: Dims) -> Term:
    """What is subtracted from the scores, seen through views: the same for all keys, it has no gradient anyway."""
    shift = seen_through(program, value, dims, casts=True)
    while shift.value.node.op == "StopGradient":
        shift = seen_through(program, program.operands(shift.value)[0], shift.dims, casts=True)
    return shift


def _one(program: Program, added: Term, power: Value, dims: Dims) -> bool:
    """Whether what is added to the sum is `exp(0)`, less the same maximum as the scores."""
    scores = program.operands(power)[-1]
    if scores.node.op != "Subtract":
        return program.known.number(added.value) == 1
    # less a maximum, a one would be exp(max): no sink of zero
    exponential = seen_through(program, added.value, added.dims, casts=True)
    if exponential.value.node.op != "Exp":
        return False
    negative = seen_through(program, program.operands(exponential.value)[0], exponential.dims, casts=True)
    operands, op = program.operands(negative.value), negative.value.node.op
    if op != "Negative" and not (op == "Subtract" and program.known.number(operands[0]) == 0):
        return False
    return _shift(program, operands[-1], negative.dims) == _shift(program, program.operands(scores)[1], dims)


def _bare(program: Program, value: Value) -> Value:
    while value.node.op == "AsType" or value.node.op in IDENTITIES or value.node.op in VIEWS:
        value = program.operands(value)[0]
    return value


def _from_logarithm(program: Program, value: Value) -> Softmax | None:
    """`exp(x - logsumexp(x))`, and `exp(log_softmax(x))`, which is the same."""
    difference = uncast(program, program.operands(value)[0])
    if difference.node.op != "Subtract":
        return None
    scores, shift = program.operands(difference)
    dims = tuple(fresh(size) for size in scores.shape)
    total = seen_through(program, shift, dims, casts=True)
    last = len(scores.shape) - 1
    if total.value.node.op != "LogSumExp" or total.dims != _reduced(dims, (last,)):
        return None
    if not program.alike(program.operands(total.value)[0], scores):
        return None
    return Softmax(value.node, scores, value, (last,), logarithm=True)


def _unshifted(program: Program, power: Value, axes: tuple[int, ...]) -> Value:
    """What is exponentiated, without what is subtracted first to keep the exponential small: it is the same for all."""
    scores = program.operands(power)[-1]
    if scores.node.op == "Subtract":
        left, right = program.operands(scores)
        dims = tuple(fresh(size) for size in left.shape)
        shift = _shift(program, right, dims)
        keys = axes_of([dims[place] for place in axes])
        if shift.value.node.op in ("Reduce", "LogSumExp", "Maximum") and shift.axes.isdisjoint(keys):
            return left
    return scores


def is_shift(program: Program, shift: Value, scores: Value) -> bool:
    """Whether `shift` is a reduction of `scores`, perhaps times a number: it is the same for all keys."""
    while shift.node.op in ("Multiply", "Divide", "StopGradient") or shift.node.op in VIEWS:
        operands = program.operands(shift)
        known = [operand for operand in operands if program.known.number(operand) is not None]
        if shift.node.op in ("Multiply", "Divide") and (
            len(known) != 1 or (shift.node.op == "Divide" and known[0] != operands[1])
        ):
            return False
        shift = next(operand for operand in operands if operand not in known)
    return shift.node.op in ("Reduce", "LogSumExp") and program.operands(shift)[0] == scores


def is_largest(program: Program, shift: Value) -> bool:
    """Whether a shift is the largest of the scores, or their LogSumExp: less that, the largest stay what they are."""
    while shift.node.op == "StopGradient" or shift.node.op in VIEWS:
        shift = program.operands(shift)[0]
    return is_reduction(shift, MAX) or shift.node.op == "LogSumExp"


def uncast(program: Program, value: Value) -> Value:
    """`value` without the casts between floats around it."""
    while value.node.op in IDENTITIES or (value.node.op == "AsType" and is_float(program.operands(value)[0])):
        value = program.operands(value)[0]
    return value
