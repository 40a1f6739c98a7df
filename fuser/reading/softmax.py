"""Every softmax of a graph, as the primitive or written out: the anchors from which attention is looked for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Set
from dataclasses import dataclass

import mlx.core as mx

from fuser.ir.graph import Node, Value
from fuser.reading.axes import VIEWS, Dims, axes_of, fresh
from fuser.reading.blocks import Blocks, blocks
from fuser.reading.products import MAX, SUM, is_reduction
from fuser.reading.program import IDENTITIES, PRODUCTS, Program, Term, is_float, seen_through

# what may be done to weights before they meet the values
STEPS = frozenset({"AsType", "Multiply", "Add", "Subtract", "Select", "Slice", *IDENTITIES})


@dataclass(frozen=True)
class Softmax:
    """A softmax: `weights = softmax(scores)` along `axes`."""

    node: Node
    scores: Value
    weights: Value
    axes: tuple[int, ...]
    total: Value | None = None
    """When the weights are only exponentials: their sum, by which the product with the values is divided."""
    sink: Term | float | None = None
    """The logit of which the denominator has the exponential more: zero where it has a one."""
    dims: Dims = ()
    """What the dimensions of the scores are to the sink."""
    keep: Value | None = None
    """Which of the exponentials count, when the others are set to zero."""
    undefined: bool = False
    """Whether a row of minus infinity is NaN in spite of its sink, for the largest score was taken off."""
    logarithm: bool = False
    """Whether its logarithm came first: in rows of numbers so low that these swallow it, the weights are ones."""
    open: bool = False
    """Whether the weights are exponentials that are not divided by their sum: no softmax, though made as one."""
    own: bool | None = True
    """Whether some exponential of every row is one: its largest score was taken off; None when that is not known."""
    rate: float = 1.0
    """What the scores are multiplied with first: the logarithm of the base, when it is another than e."""
    blocks: Blocks | None = None
    """When it runs over blocks of the keys, each with scores of its own: all of them; `weights` is then the output."""


def softmaxes(program: Program) -> Iterator[Softmax]:
    """All softmaxes of the program, in order."""
    closed: set[Node] = set()
    exponentials: list[Node] = []
    found: list[Softmax] = []
    for node in program.graph.nodes:
        if node.op == "Softmax":
            scores = program.graph.operands(node)[0]
            found.append(Softmax(node, scores, Value(node), (len(scores.shape) - 1,)))
        elif node.op in ("Divide", "Multiply", "Exp", "Power"):
            written = written_out(program, Value(node)) if node.op != "Power" else None
            written = written or in_blocks(program, Value(node))
            if written is not None:
                closed |= program.graph.behind(node, written.scores.node) - {written.scores.node}
                found.append(written)
            elif _rate(program, Value(node)) and program.of_activations(node):
                exponentials.append(node)
    counts = Counter(each.node for each in found)
    for softmax in found:
        # what normalises a softmax again has that one's node: one of both is read
        plain = softmax.weights.node == softmax.node and softmax.total is None
        if counts[softmax.node] == 1 or plain != _is_step(program, softmax.node, closed):
            yield softmax
    for node in exponentials:
        if node not in closed and _meets_product(program, Value(node)):
            scores = program.graph.operands(node)[-1]
            yield Softmax(node, scores, Value(node), (len(scores.shape) - 1,), open=True)


def _is_step(program: Program, node: Node, closed: Set[Node]) -> bool:
    """Whether a softmax is only normalised again, over the keys of a mask, say: that one is the softmax then."""
    return {user for user, _ in program.graph.users(Value(node))} <= closed


def _meets_product(program: Program, value: Value) -> bool:
    """Whether a product of matrices reads `value`, perhaps scaled, in part, or with more added to it."""
    seen, stack = {value}, [value]
    while stack:
        for node, place in program.graph.users(stack.pop()):
            if node.op in ("Matmul", "AddMM"):
                return True
            through = node.op in STEPS or (node.op in (*VIEWS, "Divide") and place == 0)
            if through and Value(node) not in seen:
                seen.add(Value(node))
                stack.append(Value(node))
    return False


def in_blocks(program: Program, value: Value) -> Softmax | None:
    """A softmax over blocks of the keys, with the products with the values of each."""
    found = blocks(program, value)
    if found is None:
        return None
    return Softmax(value.node, found.parts[0].scores, value, (), own=found.own, blocks=found)


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
        total, added = denominator
        source, axes = _summed(program, total.value) or (total.value, ())
        counted = _counted(program, source, axes)
        if counted is None:
            continue
        exponential, keep = counted
        sink = None if added is None else _sink(program, added, exponential, dims, axes)
        if added is not None and sink is None:
            continue
        scores, rate = _unshifted(program, exponential, axes), _rate(program, exponential)
        own = _holds_one(program, exponential, axes) or (None if _is_reduced(program, exponential) else False)
        anchor = exponential.node if exponential.node.op == "Softmax" else value.node
        if program.alike(power, source) and axes_of(total.dims) == axes_of(_reduced(dims, axes)):
            undefined = sink is not None and _loses(program, exponential, scores)
            return Softmax(anchor, scores, value, axes, None, sink, dims, keep, undefined, own=own, rate=rate)
        for weights in product_behind(program, numerator):
            weights = _bare(program, weights)
            if program.alike(weights, source):
                late = _summed_over(total.dims, source, axes) if sink is not None else ()
                undefined = sink is not None and _loses(program, exponential, scores)
                return Softmax(
                    anchor, scores, weights, axes, total.value, sink, late, keep, undefined, own=own, rate=rate
                )
    return None


def _loses(program: Program, exponential: Value, scores: Value) -> bool:
    """Whether the largest of `scores` is taken off before they are exponentiated, and no other number."""
    given = program.operands(exponential)[-1]
    return scores != given and is_largest(program, program.operands(given)[1])


def _summed_over(dims: Dims, source: Value, axes: tuple[int, ...]) -> Dims:
    """The dimensions of `source`, the sum of which along `axes` has `dims`."""
    return tuple(fresh(source.shape[i], "keys") if i in axes else dim for i, dim in enumerate(dims))


def _counted(program: Program, value: Value, axes: tuple[int, ...]) -> tuple[Value, Value | None] | None:
    """The exponential that `value` is, and the boolean array that says which of it count."""
    operands = program.operands(value)
    ways: list[tuple[Value, Value | None]] = [(value, None)]
    if value.node.op == "Select" and program.known.number(operands[2]) == 0:
        ways = [(operands[1], operands[0])]
    elif value.node.op == "Multiply":
        ways = [(left, right) for left, right in (operands, operands[::-1]) if not is_reduction(right, SUM)]
    for way, keep in ways:
        exponential = uncast(program, way)
        if _rate(program, exponential) and (exponential.node.op != "Softmax" or axes == (len(value.shape) - 1,)):
            return exponential, keep
    return None


def _rate(program: Program, value: Value) -> float:
    """The logarithm of the base of which `value` is a power, over what is the same for all keys; 0 when it is none."""
    base = program.known.number(program.operands(value)[0]) if value.node.op == "Power" else None
    # what half types leave of weights beside large ones that do not count is too little to go by
    power = value.node.op == "Exp" or (value.node.op == "Softmax" and value.dtype == mx.float32)
    return 1.0 if power else math.log(base) if base and 1 < base < math.inf else 0.0


def _summed(program: Program, value: Value) -> tuple[Value, tuple[int, ...]] | None:
    """What `value` is a sum of, perhaps as a product with ones, and the places of the axes that it is a sum along."""
    source = uncast(program, program.operands(value)[0]) if program.operands(value) else value
    if is_reduction(value, SUM):
        return source, tuple(value.node.arguments[1])
    if value.node.op != "Matmul" or value.shape[-1] != 1 or program.known.number(program.operands(value)[1]) != 1:
        return None
    while source.node.op in ("Flatten", "Reshape") and program.operands(source)[0].shape[-1] == source.shape[-1]:
        source = uncast(program, program.operands(source)[0])
    return source, (len(source.shape) - 1,)


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
    if term.value.node.op in ("Add", "Maximum"):
        for total, other in (operands, operands[::-1]):
            inner, number = seen_through(program, total, term.dims, casts=True), program.known.number(other)
            summed = _summed(program, inner.value)
            if not summed:
                continue
            # beside one or more, a small number is nothing
            if number is not None and 0 <= number < 2**-24 and _holds_one(program, *summed):
                return inner, None
            return (inner, Term(other, term.dims)) if term.value.node.op == "Add" else None
    return (term, None) if _summed(program, term.value) else None


def product_behind(program: Program, value: Value) -> tuple[Value, ...]:
    """What the product multiplies that `value` is, seen through views and casts; nothing when it is none."""
    while value.node.op in VIEWS or value.node.op == "AsType":
        value = program.operands(value)[0]
    if is_reduction(value, SUM):
        value = program.operands(value)[0]
    return program.operands(value) if value.node.op in ("Matmul", "Multiply") else ()


def _reduced(dims: Dims, axes: tuple[int, ...]) -> Dims:
    return tuple(() if place in axes else dim for place, dim in enumerate(dims))


def _holds_one(program: Program, power: Value, axes: tuple[int, ...]) -> bool:
    """Whether a sum is one or more: of a softmax's weights, or of exponentials less their own maximum."""
    if power.node.op == "Softmax":
        return axes == (len(power.shape) - 1,)
    scores = program.operands(power)[-1] if _rate(program, power) else power
    if scores.node.op != "Subtract":
        return False
    left, right = program.operands(scores)
    dims = tuple(fresh(size) for size in left.shape)
    shift = _shift(program, right, dims)
    largest = is_reduction(shift.value, MAX) and tuple(shift.value.node.arguments[1]) == axes
    if not largest or shift.dims != _reduced(dims, axes):
        return False
    return program.alike(uncast(program, program.operands(shift.value)[0]), uncast(program, left))


def _is_reduced(program: Program, power: Value) -> bool:
    """Whether something between the last product and the exponentials may be the largest of their scores."""
    seen, stack = {power.node}, [power.node]
    while stack:
        for node in {each.node for each in program.graph.operands(stack.pop())} & program.fed - seen:
            if node.op == "LogSumExp" or (node.op == "Reduce" and node.arguments[0] != SUM) or "Partition" in node.op:
                return True
            seen.add(node)
            stack += [node] if node.op not in PRODUCTS else []
    return False


def _shift(program: Program, value: Value, dims: Dims) -> Term:
    """What is subtracted from the scores, seen through views: the same for all keys, it has no gradient anyway."""
    shift = seen_through(program, value, dims, casts=True)
    while shift.value.node.op == "StopGradient":
        shift = seen_through(program, program.operands(shift.value)[0], shift.dims, casts=True)
    return shift


def _sink(program: Program, added: Term, power: Value, dims: Dims, axes: tuple[int, ...]) -> Term | float | None:
    """The logit of which the exponential is added to the sum, less the same maximum as the scores; None for no such."""
    scores, number = program.operands(power)[-1], program.known.number(added.value)
    shifted = scores.node.op == "Subtract" and _unshifted(program, power, axes) != scores
    if number is not None:
        # less a maximum, a one would be exp(max): no sink of zero
        return math.log(number) if not shifted and 0 < number < math.inf and power.node.op != "Softmax" else None
    exponential = seen_through(program, added.value, added.dims, casts=True)
    if exponential.value.node.op != "Exp" or power.node.op == "Softmax":
        return None
    logit = seen_through(program, program.operands(exponential.value)[0], exponential.dims, casts=True)
    if shifted:
        operands, op = program.operands(logit.value), logit.value.node.op
        if op not in ("Negative", "Subtract"):
            return None
        both = (operands[-1], logit.dims), (program.operands(scores)[1], dims)
        # a shift cancels in a gradient, too, where both of them have one
        stopped = {seen_through(program, *each, casts=True).value.node.op == "StopGradient" for each in both}
        if len(stopped) > 1 or len({_shift(program, *each) for each in both}) > 1:
            return None
        if op == "Negative":
            return 0.0
        logit = seen_through(program, operands[0], logit.dims)
    known = program.known.number(logit.value)
    return logit if known is None else known


def _bare(program: Program, value: Value) -> Value:
    while value.node.op == "AsType" or value.node.op in IDENTITIES or value.node.op in VIEWS:
        value = program.operands(value)[0]
    return value


def _from_logarithm(program: Program, value: Value) -> Softmax | None:
    """`exp(x - logsumexp(x))`, with the logit of a sink added to that or not, and `exp(log_softmax(x))`."""
    difference = uncast(program, program.operands(value)[0])
    if difference.node.op != "Subtract":
        return None
    scores, shift = program.operands(difference)
    dims = tuple(fresh(size) for size in scores.shape)
    total = seen_through(program, shift, dims, casts=True)
    sink: Term | float | None = None
    if total.value.node.op == "LogAddExp":
        both = [seen_through(program, each, total.dims, casts=True) for each in program.operands(total.value)]
        total, other = both if both[0].value.node.op == "LogSumExp" else both[::-1]
        number = program.known.number(other.value)
        if number is not None and not math.isfinite(number):
            return None
        sink = other if number is None else number
    last = len(scores.shape) - 1
    if total.value.node.op != "LogSumExp" or total.dims != _reduced(dims, (last,)):
        return None
    if not program.alike(program.operands(total.value)[0], scores):
        return None
    return Softmax(value.node, scores, value, (last,), None, sink, dims, logarithm=True)


def _unshifted(program: Program, power: Value, axes: tuple[int, ...]) -> Value:
    """What is exponentiated, without what is subtracted first to keep the exponential small: it is the same for all."""
    scores = program.operands(power)[-1]
    if scores.node.op == "Subtract":
        left, right = program.operands(scores)
        dims = tuple(fresh(size) for size in left.shape)
        shift = _shift(program, right, dims)
        keys = axes_of([dims[place] for place in axes])
        # a sum or the smallest may be minus infinity where some scores are: it is read as any other addition
        largest = shift.value.node.op in ("LogSumExp", "Maximum") or is_reduction(shift.value, MAX)
        if not largest or not shift.axes.isdisjoint(keys):
            return scores
        if shift.value.node in program.fed or program.alike(program.operands(shift.value)[0], left):
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
