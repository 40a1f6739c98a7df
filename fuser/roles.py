"""Which axes of the scores are batch, heads, groups of heads, queries and keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile

from fuser.ir.graph import Node
from fuser.masks.cells import smallest, spread
from fuser.masks.mask import Mask
from fuser.masks.meaning import Reading, varying
from fuser.reading.axes import VIEWS, Dim, Dims, axes_of, resolve, size_of
from fuser.reading.axes import after as forwards
from fuser.reading.program import Miss, Program, Term
from fuser.regions import KnownSink, Product, Roles, Weighted


def roles(
    program: Program,
    products: Sequence[Product],
    masks: Sequence[Mask],
    after: Sequence[Weighted],
    dims: Dims,
    keys: Dim,
    column: Dim,
) -> Roles:
    """The roles of the axes of scores whose dimensions mean `dims`; `column` is the axis of keys with a sink.

    Raises `Miss` when the values vary along the queries.
    """
    outer = _outer(program, resolve(dims), keys + column, after[0])
    dims, keys, column = resolve(dims), axes_of([keys]), axes_of([column])
    memory: frozenset[object] = frozenset().union(
        *(each.value.axes for each in after), *(product.key.axes for product in products)
    )
    # merged dimensions of one product may hold the batch, which the keys of another tell apart
    rows = set.intersection(*({*axes_of([product.rows])} for product in products))
    order = [axis for axis in axes_of(dims) if axis not in keys and axis not in column]
    if any(axis in rows and axis in each.value.axes for axis in order for each in after):
        raise Miss("the values vary along the queries", after[0].output.node)
    outer = None if outer is None else axes_of([outer])
    shared = tuple(axis for axis in order if axis in memory or (outer and axis in outer and axis not in rows))
    free = tuple(axis for axis in order if axis not in shared)
    rows = rows or set(axes_of(dims[-2:-1]))
    queries = tuple(axis for axis in free if axis in rows)
    # of queries merged with heads, the queries are those that stand alone later on, or that a mask tells apart
    for some in (
        axes_of(dims[-2:-1]),
        *(axes_of(mask.term.dims) for mask in masks if not mask.term.axes.isdisjoint(keys)),
    ):
        queries = tuple(axis for axis in queries if axis in some) or queries
    for each in products if not queries else ():
        loose = each.key.axes - each.query.axes
        if any(axis in loose and not any(axis in one.value.axes for one in after) for axis in order):
            raise Miss(
                "the keys are made for each row, whose values are the same: they would be repeated", each.value.node
            )
    groups = tuple(axis for axis in free if axis not in queries)
    outer = shared[: max(len(shared) - 1, 1)] if outer is None else outer
    batch = tuple(axis for axis in shared if axis in outer)
    return Roles(batch, tuple(axis for axis in shared if axis not in batch), groups, queries, keys)


def _outer(program: Program, dims: Dims, keys: Dim, after: Weighted) -> Dim | None:
    """The axes of the batch, as far as a tensor with four dimensions or more tells them."""
    if len(dims) > 3:
        return axes_of(next((dim,) for dim in dims if not any(axis in axes_of([keys]) for axis in dim)))
    for node, place in program.graph.users(after.output):
        if node.op in VIEWS and place == 0 and len(node.outputs[0].shape) == 4:
            seen = forwards(node.op, node.arguments, after.dims, node.outputs[0].shape)
            return axes_of(seen[:1]) if seen is not None else None
    return None


def aligned(roles: Roles, mask: Reading) -> Roles:
    """The roles with batch and heads parted so that the mask need not be repeated, as far as that goes.

    Windows are the case in point: `[batch x windows, heads, ...]` with a mask for each window and head.
    """
    axes = varying(mask)
    shared = roles.batch + roles.heads

    def cost(batch: int) -> int:
        parts = shared[:batch], shared[batch:] + roles.groups
        return sum(size_of(a for a in part if a not in axes) - 1 for part in parts if not axes.isdisjoint(part))

    best = min(range(len(shared) + 1), key=lambda batch: (cost(batch), abs(batch - len(roles.batch))))
    return Roles(shared[:best], shared[best:], roles.groups, roles.queries, roles.keys)


def with_sink(roles: Roles, logit: Term, at: Node) -> Roles:
    """The roles beside a sink: what it tells apart are heads, and so is all that is inside of them."""
    if not logit.axes.isdisjoint(roles.keys):
        raise Miss("what is added to the sum of the exponentials varies along the keys: it is no sink", at)
    if not logit.axes.isdisjoint(roles.queries):
        return roles
    batch = tuple(takewhile(lambda axis: axis not in logit.axes, roles.batch))
    return replace(roles, batch=batch, heads=roles.batch[len(batch) :] + roles.heads)


def sink_of(program: Program, logit: Term | float, axes: Dim) -> Term | KnownSink | float:
    """The logits of a sink, as small as they are where they are known."""
    known = program.known.array(logit.value) if isinstance(logit, Term) else None
    if known is None or not isinstance(logit, Term) or program.known.is_given(logit.value):
        return logit
    array = smallest(spread(known, logit, axes))
    return KnownSink(array, tuple((axis,) if size != 1 else () for axis, size in zip(axes, array.shape, strict=True)))
