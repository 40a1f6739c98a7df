"""A softmax over blocks of the keys, each less a maximum of its own and put right later, as flash attention has it.

What is divided, and what divides, are sums over the blocks of `exp(scores - shift)`, once with the values and once
without. A shift is read as a sum of row-wise numbers: `exp(m - n)` times a block that is less `m` is one that is less
`n`. When all blocks are less the same in the end, it cancels out, and the whole is one softmax.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from fuser.ir.graph import Value
from fuser.reading.axes import Dim, Dims, axes_of, fresh, resolve
from fuser.reading.products import MAX, SUM, factors, is_reduction
from fuser.reading.program import Program, Term, seen_through

# a sum of row-wise numbers: how often each of them is taken off
Shift = Mapping[Term, int]
# scores, an axis of them, and what their other dimensions mean
Place = tuple[Value | None, int, Dims]
BOUND: frozenset[Place] = frozenset({(None, 0, ())})
FLOAT32_MAX = 3.4028234e38


@dataclass(frozen=True, eq=False)
class Block:
    """The exponentials of one block of scores, summed or multiplied with values."""

    scores: Value
    dims: Dims
    keys: Dim
    values: Term | None
    """None for a sum."""
    shift: Shift

    @property
    def place(self) -> Place:
        """The scores, and what their dimensions are beside the keys."""
        keys, dims = axes_of([self.keys]), resolve(self.dims)
        return self.scores, dims.index(keys), tuple(() if dim == keys else dim for dim in dims)


@dataclass(frozen=True, eq=False)
class Blocks:
    """All blocks of one softmax, in the order of the program."""

    parts: tuple[Block, ...]
    output: Dims
    """The dimensions of the product with the values."""
    own: bool | None
    """Whether the largest of all scores is what was taken off in the end; None when that is not known."""
    first: int | None
    """The block of which some score is never less than what is taken off anywhere: where it sees a key, all is well."""


def blocks(program: Program, value: Value) -> Blocks | None:
    """The blocks of which `value` is the attention; None when it is none of several."""
    if value.node.op != "Divide":
        return None
    dims = tuple(fresh(size) for size in value.shape)
    above, below = (_terms(program, Term(each, dims), Counter()) for each in program.operands(value))
    if above is None or below is None or len(above) < 2 or any(each.values is None for each in above):
        return None
    shifts = [_settled(each.shift) for each in (*above, *below)]
    summed = {each.place for each in below if each.values is None}
    if any(shift != shifts[0] for shift in shifts) or not len(above) == len(below) == len(summed):
        return None
    # numbers that cancel out count, too: any but a maximum may be beyond all bounds
    largest = {term: _largest_of(program, term) for each in (*above, *below) for term in each.shift}
    if {each.place for each in above} != summed or not all(of and of - BOUND for of in largest.values()):
        return None
    parts = sorted(above, key=lambda each: program.graph.position(each.scores.node))
    final = [largest[term] for term, count in shifts[0].items() if count == 1]
    first = next((i for i, each in enumerate(parts) if all(each.place in (of or ()) for of in largest.values())), None)
    own = (len(shifts[0]) == 1 and final == [summed]) or (None if largest else False)
    return Blocks(tuple(parts), resolve(dims), own, first)


def _settled(shift: Shift) -> dict[Term, int]:
    return {Term(term.value, resolve(term.dims)): count for term, count in shift.items() if count}


def _terms(program: Program, term: Term, shift: Counter[Term], depth: int = 64) -> list[Block] | None:
    """The blocks of which `term` is the sum, when `shift` is taken off all of them; None when it is no such sum."""
    term = seen_through(program, term.value, term.dims, casts=True)
    value, dims, operands = term.value, term.dims, program.operands(term.value)
    if program.known.number(value) == 0:
        return []
    if depth == 0:
        return None
    if value.node.op == "Add":
        left = _terms(program, Term(operands[0], dims), shift, depth - 1)
        right = None if left is None else _terms(program, Term(operands[1], dims), shift, depth - 1)
        return None if left is None or right is None else left + right
    if value.node.op == "Multiply":
        for inner, other in (operands, operands[::-1]):
            rescaled = _exponent(program, Term(other, dims))
            if rescaled is not None:
                less = Counter(shift)
                less.subtract(_sum(program, rescaled))
                return _terms(program, Term(inner, dims), less, depth - 1)
        return None
    if is_reduction(value, SUM) and operands[0].node.op != "Multiply":
        places = value.node.arguments[1]
        keys = fresh(operands[0].shape[places[0]], "keys")
        whole = tuple(keys if i in places else dim for i, dim in enumerate(dims))
        return _block(program, Term(operands[0], whole), keys, None, shift) if len(places) == 1 else None
    found = factors(program, value, dims) if value.node.op in ("Matmul", "Reduce") else None
    for weights, values in ((found.left, found.right), (found.right, found.left)) if found else ():
        made = _block(program, weights, found.total, values, shift) if found else None
        if made is not None:
            return made
    return None


def _block(program: Program, weights: Term, keys: Dim, values: Term | None, shift: Counter[Term]) -> list[Block] | None:
    inner = _exponent(program, weights)
    # the sum over one key is no sum
    if inner is None or axes_of([keys]) not in resolve(inner.dims) or not keys:
        return None
    operands = program.operands(inner.value)
    taken = seen_through(program, operands[1], inner.dims, casts=True) if inner.value.node.op == "Subtract" else None
    if taken is None or not taken.axes.isdisjoint(axes_of([keys])):
        return [Block(inner.value, inner.dims, keys, values, shift)]
    whole = Counter(shift)
    whole.update(_sum(program, taken))
    return [Block(operands[0], inner.dims, keys, values, whole)]


def _exponent(program: Program, term: Term) -> Term | None:
    """What `term` is the exponential of."""
    seen = seen_through(program, term.value, term.dims, casts=True)
    if seen.value.node.op != "Exp":
        return None
    return seen_through(program, program.operands(seen.value)[0], seen.dims, casts=True)


def _sum(program: Program, term: Term, depth: int = 8) -> Counter[Term]:
    """The numbers of which `term` is the sum, and how often each is in it."""
    operands = program.operands(term.value)
    if depth == 0 or term.value.node.op not in ("Add", "Subtract"):
        return Counter([term])
    left, right = (_sum(program, seen_through(program, each, term.dims, casts=True), depth - 1) for each in operands)
    (left.update if term.value.node.op == "Add" else left.subtract)(right)
    return left


def _largest_of(program: Program, term: Term) -> set[Place] | None:
    """The scores of which `term` is the largest; None when it may be another number."""
    value, operands = term.value, program.operands(term.value)
    number = program.known.number(value)
    if number is not None:
        # where a running maximum begins: none of the scores', unless it is below all that a mask may fill in
        return set() if number <= -FLOAT32_MAX else set(BOUND) if number <= -1e30 else None
    if is_reduction(value, MAX):
        places = value.node.arguments[1]
        return {(operands[0], places[0], resolve(term.dims))} if len(places) == 1 else None
    if value.node.op != "Maximum":
        return None
    parts = [_largest_of(program, seen_through(program, each, term.dims, casts=True)) for each in operands]
    return None if parts[0] is None or parts[1] is None else parts[0] | parts[1]
