"""Attention: a softmax with a product of queries and keys before it and one with the values behind it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import mlx.core as mx

from fuser.ir.graph import Value
from fuser.patterns import masks
from fuser.patterns.axes import VIEWS, Dim, Dims, axes_of, fresh, resolve, size_of
from fuser.patterns.axes import after as forwards
from fuser.patterns.cursor import Cursor, Mask, Miss, Program, Term, is_float
from fuser.patterns.masks import Reading
from fuser.patterns.operands import Operand
from fuser.patterns.scores import Product, Scores, scores
from fuser.patterns.softmax import Softmax
from fuser.patterns.weights import Walk, Weighted, divided, weighted_sum


@dataclass(frozen=True)
class Roles:
    """What each axis of the scores is to the kernel, which takes `[batch, heads x groups, queries, ...]`."""

    batch: Dim
    heads: Dim
    """The heads of keys and values."""
    groups: Dim
    """The query heads that share one head of keys and values."""
    queries: Dim
    keys: Dim

    @property
    def key_heads(self) -> int:
        """The number of heads of keys and values."""
        return size_of(self.heads)

    @property
    def query_heads(self) -> int:
        """The number of heads of queries."""
        return size_of(self.heads) * size_of(self.groups)


@dataclass(frozen=True)
class Attention:
    """A region of the graph that means attention, with all that it takes to call the kernel instead."""

    softmax: Softmax
    products: tuple[Product, ...]
    """Usually one; several are to be added, which is a product of concatenated queries and keys."""
    weighted: Weighted
    roles: Roles
    mask: Reading
    sink: Term | float | None
    """A logit for each head that joins the softmax without a value."""
    heads: tuple[int, int]
    """The numbers of query heads and of key heads in the program; the call may count windows among them."""
    dtype: mx.Dtype
    """The type in which the kernel is called."""

    @property
    def scale(self) -> float | None:
        """The scale, when it is one number."""
        traced = any(product.scale.factors or product.scale.divisors for product in self.products)
        return None if traced else self.products[0].scale.number

    @property
    def depth(self) -> int:
        """The size of the heads of queries and keys."""
        return sum(size_of(product.depth) for product in self.products)


def attention(program: Program, softmax: Softmax) -> Attention:
    """The attention around `softmax`; raises `Miss` when there is none, or it is none that the kernel can compute."""
    shape = softmax.scores.shape
    if 0 in shape:
        raise Miss("the softmax is over no elements", softmax.node)
    if not is_float(softmax.scores):
        raise Miss(f"the softmax is of {softmax.scores.dtype} numbers", softmax.node)
    dims = tuple(fresh(size, f"axis{i}") for i, size in enumerate(shape))
    keys = tuple(axis for place in softmax.axes for axis in dims[place])
    before: Scores | Miss
    after: Weighted | Miss
    try:
        before = scores(Cursor(program, softmax.scores, dims, keys))
    except Miss as miss:
        before = miss
    walk = Walk(softmax.weights, dims, dims, keys)
    if isinstance(before, Scores):
        walk = replace(walk, keys=before.keys, sink=before.sink)
    try:
        after = weighted_sum(program, walk)
        if softmax.total is not None:
            unsummed = tuple(() if i in softmax.axes else dim for i, dim in enumerate(resolve(dims)))
            after = divided(program, after, Term(softmax.total, unsummed))
    except Miss as miss:
        after = miss
    if isinstance(before, Miss) or isinstance(after, Miss):
        raise _verdict(program, before, after)
    if any(_is_linear(program, product.key) for product in before.products):
        reason = "the scores come from a linear layer: its weights are no keys"
        raise Miss(reason, before.products[0].value.node, attention=False)
    roles = _roles(program, before, after, dims)
    dtype = _dtype(program, before, after)
    half = dtype == mx.float16
    axes = roles.batch + roles.heads + roles.groups + roles.queries + roles.keys
    mask = masks.read(program, before.masks, axes, roles.queries, roles.keys, half, after.guarded, softmax.node)
    heads = roles.query_heads, roles.key_heads
    roles = _aligned(roles, mask)
    sink = before.sink.logit if before.sink is not None else 0.0 if softmax.one else None
    for product in before.products:
        for each in before.masks:
            if _depends(program, each.term.value, product.value):
                raise Miss("the mask depends on the scores (top-k)", each.term.value.node)
    if isinstance(sink, Term) and not sink.axes <= {*roles.heads, *roles.groups}:
        raise Miss("the sink logits vary over more than the heads", softmax.node)
    return Attention(softmax, before.products, after, roles, mask, sink, heads, dtype)


def _verdict(program: Program, before: Scores | Miss, after: Weighted | Miss) -> Miss:
    """The reason to give when a side is missing: with one side there, it is an attention that cannot be fused."""
    if isinstance(before, Miss):
        before.attention = isinstance(after, Weighted)
        return before
    assert isinstance(after, Miss)
    after.attention = not any(_is_linear(program, product.key) for product in before.products)
    return after


def _is_linear(program: Program, key: Operand) -> bool:
    return program.known.is_weight(key.value) and len(key.value.shape) <= 2


def _roles(program: Program, before: Scores, after: Weighted, dims: Dims) -> Roles:
    column = before.sink.column if before.sink is not None else ()
    outer = _outer(program, resolve(dims), before.keys + column, after)
    dims, keys, column = resolve(dims), axes_of([before.keys]), axes_of([column])
    memory: frozenset[object] = frozenset(after.value.axes).union(*(product.key.axes for product in before.products))
    rows = {axis for product in before.products for axis in axes_of([product.rows])}
    order = [axis for axis in axes_of(dims) if axis not in keys and axis not in column]
    if any(axis in rows and axis in after.value.axes for axis in order):
        raise Miss("the values vary along the queries", after.output.node)
    outer = None if outer is None else axes_of([outer])
    shared = tuple(axis for axis in order if axis in memory or (outer and axis in outer and axis not in rows))
    free = tuple(axis for axis in order if axis not in shared)
    rows = rows or set(axes_of(dims[-2:-1]))
    queries = tuple(axis for axis in free if axis in rows)
    # of queries merged with heads, the queries are those that stand alone later on, or that a mask tells apart
    for some in (axes_of(dims[-2:-1]), *(axes_of(mask.term.dims) for mask in before.masks if _with_keys(mask, keys))):
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


def _depends(program: Program, value: Value, source: Value) -> bool:
    """Whether `value` is computed from `source`."""
    position = program.graph.position
    oldest, seen, stack = position(source.node), {value.node}, [value.node]
    while stack:
        node = stack.pop()
        if node is source.node:
            return True
        parents = {operand.node for operand in program.graph.operands(node)} - seen
        stack += [parent for parent in parents if position(parent) >= oldest]
        seen |= parents
    return False


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


def _dtype(program: Program, before: Scores, after: Weighted) -> mx.Dtype:
    """The type to call the kernel in: that of the output, when all operands are of it before they are cast up."""
    operands = [after.value, *(o for product in before.products for o in (product.query, product.key))]
    given = _given(program, after.output)
    own = {operand.value.dtype for operand in operands}
    if own == {given}:
        return given
    dtype = operands[0].dtype
    for operand in operands[1:]:
        dtype = promoted(dtype, operand.dtype)
    return dtype


def _given(program: Program, output: Value) -> mx.Dtype:
    """The type of the output after the cast that follows it at once, if one does."""
    casts = {node.outputs[0].dtype if node.op == "AsType" else None for node, _ in program.graph.users(output)}
    if output in program.graph.outputs or len(casts) != 1:
        return output.dtype
    return casts.pop() or output.dtype


def promoted(left: mx.Dtype, right: mx.Dtype) -> mx.Dtype:
    """The type that holds both."""
    return mx.result_type(mx.zeros((), left), mx.zeros((), right)) if left != right else left

