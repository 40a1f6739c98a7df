"""Attention: a softmax with a product of queries and keys before it and one with the values behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile

import mlx.core as mx

from fuser.masks import meaning as masks
from fuser.masks.mask import Mask, Scale, of_exponentials
from fuser.masks.meaning import Reading
from fuser.masks.paired import paired
from fuser.masks.zeroed import zeroed
from fuser.patterns.cursor import Cursor, Sink
from fuser.patterns.scores import Scores, scores
from fuser.patterns.weights import Walk, divided, together, weighted_sums
from fuser.reading.axes import VIEWS, Dim, Dims, axes_of, fresh, resolve, size_of
from fuser.reading.axes import after as forwards
from fuser.reading.operands import Operand, kernel_dtype
from fuser.reading.program import Miss, Program, Term, is_float
from fuser.reading.softmax import Softmax
from fuser.regions import Attention, KnownSink, Roles, Weighted


def attention(program: Program, softmax: Softmax) -> Attention:
    """The attention around `softmax`; raises `Miss` when there is none, or it is none that the kernel can compute."""
    shape = softmax.scores.shape
    if softmax.open:
        raise Miss("exponentials of scores meet a product without a division by their own sum", softmax.node)
    if 0 in shape:
        raise Miss("the softmax is over no elements", softmax.node)
    if not is_float(softmax.scores):
        raise Miss(f"the softmax is of {softmax.scores.dtype} numbers", softmax.node)
    dims = tuple(fresh(size, f"axis{i}") for i, size in enumerate(shape))
    keys = tuple(axis for place in softmax.axes for axis in dims[place])
    before: Scores | Miss
    after: list[Weighted] | Miss
    keep = softmax.keep
    met = (of_exponentials(program, keep, dims, softmax.node),) if keep is not None else ()
    try:
        one, scale = Sink(0.0) if softmax.one else None, Scale(softmax.rate)
        before = scores(Cursor(program, softmax.scores, dims, keys, scale, met, one, fixed=softmax.one))
    except Miss as miss:
        before = miss
    walk = Walk(softmax.weights, dims, dims, keys)
    if isinstance(before, Scores):
        walk = replace(walk, keys=before.keys, sink=None if softmax.one else before.sink)
    try:
        after = together(program, weighted_sums(program, walk), axes_of([walk.keys]))
        if softmax.total is not None:
            unsummed = tuple(() if i in softmax.axes else dim for i, dim in enumerate(resolve(dims)))
            after = [divided(program, each, Term(softmax.total, unsummed)) for each in after]
    except Miss as miss:
        after = miss
    if isinstance(before, Miss) or isinstance(after, Miss):
        raise _verdict(program, before, after)
    if any(_is_linear(program, product.key) for product in before.products):
        reason = "the scores come from a linear layer: its weights are no keys"
        raise Miss(reason, before.products[0].value.node, attention=False)
    if len({(size_of(each.width), each.guarded, each.value.dtype, each.zeros) for each in after}) > 1:
        raise Miss("the weights are used with other values too, as a gradient uses them", after[1].output.node)
    if after[0].zeros:
        hidden, zeros = zeroed(program, before.masks, after[0].zeros)
        before = replace(before, masks=hidden)
        after = [replace(each, guarded=each.guarded or zeros) for each in after]
    roles = _roles(program, before, after, dims)
    if before.sink is not None and isinstance(before.sink.logit, Term):
        # what a sink tells apart are heads, and so is all that is inside of them
        told = before.sink.logit.axes
        batch = tuple(takewhile(lambda axis: axis not in told, roles.batch))
        roles = replace(roles, batch=batch, heads=roles.batch[len(batch) :] + roles.heads)
    operands = [each.value for each in after]
    operands += [operand for each in before.products for operand in (each.query, each.key)]
    dtype = kernel_dtype(program, operands, [each.output for each in after])
    half = dtype == mx.float16
    axes = roles.batch + roles.heads + roles.groups + roles.queries + roles.keys
    mask = masks.read(program, before.masks, axes, roles.queries, roles.keys, half, after[0].guarded, softmax.node)
    heads = roles.query_heads, roles.key_heads
    if softmax.logarithm and masks.lowers(program, before.masks, mask):
        raise Miss("a row that is masked wholly swallows the logarithm of its sum: its weights are ones", softmax.node)
    if before.sink is not None:
        # the sink takes the whole of a row that is masked wholly: the kernel gives zeros as the program does
        mask = replace(mask, empty=mask.empty if softmax.undefined and mask.empty == "nan" else None)
    roles = _aligned(roles, mask)
    sink = _sink(program, before.sink.logit, axes) if before.sink is not None else None
    for product in before.products:
        for each in before.masks:
            if any(program.depends(each.term.value, value) for value in product.values):
                raise Miss("the mask depends on the scores (top-k)", each.term.value.node)
    if isinstance(sink, Term | KnownSink) and not set(axes_of(sink.dims)) <= {*roles.heads, *roles.groups}:
        raise Miss("the sink logits vary over more than the heads", softmax.node)
    steps = tuple(paired(program, before.masks))
    return Attention(softmax, before.products, tuple(after), roles, mask, sink, heads, dtype, steps, before.cap)


def _verdict(program: Program, before: Scores | Miss, after: list[Weighted] | Miss) -> Miss:
    """The reason to give when a side is missing: with one side there, it is an attention that cannot be fused."""
    if isinstance(before, Miss):
        # scores of weights alone are a router's or a classifier's, whatever the softmax is multiplied with
        routed = before.at in program.fed and not program.of_activations(before.at)
        before.attention = not routed and (not isinstance(after, Miss) or program.of_activations(before.at))
        return before
    assert isinstance(after, Miss)
    after.attention = not any(_is_linear(program, product.key) for product in before.products)
    return after


def _sink(program: Program, logit: Term | float, axes: Dim) -> Term | KnownSink | float:
    """The logits of a sink, as small as they are where they are known."""
    known = program.known.array(logit.value) if isinstance(logit, Term) else None
    if known is None or not isinstance(logit, Term) or program.known.is_given(logit.value):
        return logit
    array = masks.smallest(masks.spread(known, logit, axes))
    return KnownSink(array, tuple((axis,) if size != 1 else () for axis, size in zip(axes, array.shape, strict=True)))


def _is_linear(program: Program, key: Operand) -> bool:
    return program.known.is_weight(key.value) and len(key.value.shape) <= 2


def _roles(program: Program, before: Scores, after: Sequence[Weighted], dims: Dims) -> Roles:
    column = before.sink.column if before.sink is not None else ()
    outer = _outer(program, resolve(dims), before.keys + column, after[0])
    dims, keys, column = resolve(dims), axes_of([before.keys]), axes_of([column])
    memory: frozenset[object] = frozenset().union(
        *(each.value.axes for each in after), *(product.key.axes for product in before.products)
    )
    # merged dimensions of one product may hold the batch, which the keys of another tell apart
    rows = set.intersection(*({*axes_of([product.rows])} for product in before.products))
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
        *(axes_of(mask.term.dims) for mask in before.masks if _with_keys(mask, keys)),
    ):
        queries = tuple(axis for axis in queries if axis in some) or queries
    groups = tuple(axis for axis in free if axis not in queries)
    outer = shared[: max(len(shared) - 1, 1)] if outer is None else outer
    batch = tuple(axis for axis in shared if axis in outer)
    return Roles(batch, tuple(axis for axis in shared if axis not in batch), groups, queries, keys)


def _outer(program: Program, dims: Dims, keys: Dim, after: Weighted) -> Dim | None:
    """The axes of the batch, as far as a tensor with four dimensions or more tells them."""
    if len(dims) > 3:
        return axes_of(next((dim,) for dim in dims if not any(axis in axes_of([keys]) for axis in dim)))
    for node, _ in program.graph.users(after.output):
        if node.op in VIEWS and len(node.outputs[0].shape) == 4:
            seen = forwards(node.op, node.arguments, after.dims, node.outputs[0].shape)
            return axes_of(seen[:1]) if seen is not None else None
    return None


def _with_keys(mask: Mask, keys: Dim) -> bool:
    return any(axis in mask.term.axes for axis in keys)


def _aligned(roles: Roles, mask: Reading) -> Roles:
    """The roles with batch and heads parted so that the mask need not be repeated, as far as that goes.

    Windows are the case in point: `[batch x windows, heads, ...]` with a mask for each window and head.
    """
    varying = masks.varying(mask)
    shared = roles.batch + roles.heads

    def cost(batch: int) -> int:
        parts = shared[:batch], shared[batch:] + roles.groups
        return sum(size_of(a for a in part if a not in varying) - 1 for part in parts if not varying.isdisjoint(part))

    best = min(range(len(shared) + 1), key=lambda batch: (cost(batch), abs(batch - len(roles.batch))))
    return Roles(shared[:best], shared[best:], roles.groups, roles.queries, roles.keys)
