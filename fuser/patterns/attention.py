"""Attention: a softmax with a product of queries and keys before it and one with the values behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
from numpy.typing import NDArray

from fuser.ir.graph import Value
from fuser.masks import meaning as masks
from fuser.masks.mask import Mask
from fuser.masks.meaning import Reading
from fuser.patterns.cursor import Cap, Cursor
from fuser.patterns.scores import Product, Scores, scores
from fuser.patterns.weights import Walk, Weighted, divided, together, weighted_sums
from fuser.reading.axes import VIEWS, Dim, Dims, axes_of, fresh, resolve, size_of
from fuser.reading.axes import after as forwards
from fuser.reading.operands import Operand
from fuser.reading.program import Miss, Program, Term, is_float, seen_through
from fuser.reading.softmax import Softmax


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
class KnownSink:
    """Sink logits that are known before the program runs."""

    array: NDArray[Any]
    dims: Dims


@dataclass(frozen=True)
class Attention:
    """A region of the graph that means attention, with all that it takes to call the kernel instead."""

    softmax: Softmax
    products: tuple[Product, ...]
    """Usually one; several are to be added, which is a product of concatenated queries and keys."""
    products_with_values: tuple[Weighted, ...]
    """Usually one; several when the same weights are used with several values of one shape."""
    roles: Roles
    mask: Reading
    sink: Term | KnownSink | float | None
    """A logit for each head that joins the softmax without a value."""
    heads: tuple[int, int]
    """The numbers of query heads and of key heads in the program; the call may count windows among them."""
    dtype: mx.Dtype
    """The type in which the kernel is called."""
    steps: tuple[Mask, ...] = ()
    """The masks one by one as the program applies them, outermost first; `mask` is what they mean together."""
    cap: Cap | None = None
    """The scores are capped by tanh before they are masked."""

    @property
    def scale(self) -> float | None:
        """The scale, when it is one number."""
        traced = any(product.scale.factors or product.scale.divisors for product in self.products)
        number = self.products[0].scale.number * (self.cap.number if self.cap else 1.0)
        return None if traced else number

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
    after: list[Weighted] | Miss
    masks_met = (_kept(program, softmax, dims),) if softmax.keep is not None else ()
    try:
        before = scores(Cursor(program, softmax.scores, dims, keys, masks=masks_met))
    except Miss as miss:
        before = miss
    walk = Walk(softmax.weights, dims, dims, keys)
    if isinstance(before, Scores):
        walk = replace(walk, keys=before.keys, sink=before.sink)
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
    if len({(size_of(each.width), each.guarded, each.value.dtype) for each in after}) > 1:
        raise Miss("the weights are used with other values too, as a gradient uses them", after[1].output.node)
    roles = _roles(program, before, after, dims)
    dtype = _dtype(program, before, after)
    half = dtype == mx.float16
    axes = roles.batch + roles.heads + roles.groups + roles.queries + roles.keys
    mask = masks.read(program, before.masks, axes, roles.queries, roles.keys, half, after[0].guarded, softmax.node)
    heads = roles.query_heads, roles.key_heads
    if before.sink is not None or softmax.one:
        # the sink takes the whole of a row that is masked wholly: the kernel gives zeros as the program does
        mask = replace(mask, empty=None)
    roles = _aligned(roles, mask)
    sink = _sink(program, before.sink.logit, axes) if before.sink is not None else 0.0 if softmax.one else None
    for product in before.products:
        for each in before.masks:
            if any(_depends(program, each.term.value, value) for value in product.values):
                raise Miss("the mask depends on the scores (top-k)", each.term.value.node)
    if isinstance(sink, Term | KnownSink) and not set(axes_of(sink.dims)) <= {*roles.heads, *roles.groups}:
        raise Miss("the sink logits vary over more than the heads", softmax.node)
    steps = tuple(masks.paired(program, before.masks))
    return Attention(softmax, before.products, tuple(after), roles, mask, sink, heads, dtype, steps, before.cap)


def _kept(program: Program, softmax: Softmax, dims: Dims) -> Mask:
    """The mask on the exponentials, as one on the scores: `exp(x) * keep` is `exp(where(keep, x, -inf))`."""
    assert softmax.keep is not None
    term = seen_through(program, softmax.keep, dims)
    while term.value.node.op == "AsType":
        term = seen_through(program, program.operands(term.value)[0], term.dims)
    known = program.known.array(term.value)
    if term.value.dtype != mx.bool_ and (known is None or not ((known == 0) | (known == 1)).all()):
        raise Miss("the exponentials are multiplied by an array that need not be zeros and ones", softmax.node)
    return Mask("keep", term, fill=-math.inf)


def _verdict(program: Program, before: Scores | Miss, after: list[Weighted] | Miss) -> Miss:
    """The reason to give when a side is missing: with one side there, it is an attention that cannot be fused."""
    if isinstance(before, Miss):
        before.attention = not isinstance(after, Miss) or program.of_activations(before.at)
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
    rows = {axis for product in before.products for axis in axes_of([product.rows])}
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


def _dtype(program: Program, before: Scores, after: Sequence[Weighted]) -> mx.Dtype:
    """The type to call the kernel in: that of the output, when all operands are of it before they are cast up."""
    operands = [each.value for each in after]
    operands += [operand for product in before.products for operand in (product.query, product.key)]
    if {operand.value.dtype for operand in operands} == {_given(program, each.output) for each in after}:
        return operands[0].value.dtype
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
