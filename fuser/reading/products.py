"""Sums of products of two arrays, as a product of matrices or as an elementwise product and a sum."""

from __future__ import annotations

from dataclasses import dataclass

from fuser.ir.graph import Node, Value
from fuser.reading.axes import Dim, Dims, axes_of, fresh, resolve
from fuser.reading.program import Program, Term

SUM, MAX = 2, 5
MATRICES = ("Matmul", "AddMM")


@dataclass(frozen=True)
class Factors:
    """What a sum of products is made of, seen from its result."""

    left: Term
    right: Term
    total: Dim
    """The axes that are summed over."""
    rows: tuple[Dim, Dim]
    """The dimension of the result that is the left one's own, and the right one's."""


def is_reduction(value: Value, kind: int) -> bool:
    """Whether `value` is a reduction of that kind, as MLX numbers them."""
    return value.node.op == "Reduce" and value.node.arguments[0] == kind


def factors(program: Program, value: Value, dims: Dims) -> Factors | None:
    """The factors of `value`, whose dimensions mean `dims`; None when it is no sum of products over one axis."""
    dims, operands = resolve(dims), program.operands(value)
    if value.node.op in MATRICES:
        left, right = operands[:2]
        total = fresh(left.shape[-1], "depth")
        first, second = Term(left, (*dims[:-1], total)), Term(right, (*dims[:-2], total, dims[-1]))
        return Factors(first, second, total, (dims[-2], dims[-1]))
    if not is_reduction(value, SUM) or operands[0].node.op != "Multiply" or len(value.node.arguments[1]) != 1:
        return None
    place = value.node.arguments[1][0] % len(dims)
    total = fresh(operands[0].shape[place], "depth")
    given = tuple(total if i == place else dim for i, dim in enumerate(dims))
    left, right = program.operands(operands[0])
    return Factors(Term(left, given), Term(right, given), total, ((), dims[-1]))


def summed(program: Program, node: Node, place: int, dims: Dims, total: Dim) -> tuple[Term, Term] | None:
    """The other factor and the result, where `node` reads an array of `dims` and the products are summed over `total`.

    None when they are not, or not over these axes alone.
    """
    dims, operands = resolve(dims), program.graph.operands(node)
    other = operands[1 - place]
    if node.op in MATRICES:
        kept, inner = (dims[-2], dims[-1]) if place == 0 else (dims[-1], dims[-2])
        if inner != total:
            return None
        width = fresh(other.shape[-1 - place], "width")
        ends = (total, width) if place == 0 else (width, total)
        sides = (kept, width) if place == 0 else (width, kept)
        return Term(other, (*dims[:-2], *ends)), Term(Value(node), (*dims[:-2], *sides))
    places = tuple(i for i, dim in enumerate(dims) if any(axis in total for axis in dim))
    if total and axes_of([dims[i] for i in places]) == total:
        for user, _ in program.graph.users(Value(node)):
            if is_reduction(Value(user), SUM) and tuple(sorted(user.arguments[1])) == places:
                output = tuple(() if i in places else dim for i, dim in enumerate(dims))
                return Term(other, dims), Term(Value(user), output)
    return None
