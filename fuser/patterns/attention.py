"""Attention: a softmax with a product of queries and keys before it and one with the values behind it."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from fuser.ir.graph import Value
from fuser.patterns import masks
from fuser.patterns.axes import Dim, Dims, axes_of, fresh, resolve, size_of
from fuser.patterns.cursor import Cursor, Mask, Miss, Program, Scale, is_float
from fuser.patterns.masks import Reading
from fuser.patterns.operands import Operand
from fuser.patterns.scores import Product, Scores, scores
from fuser.patterns.softmax import Softmax
from fuser.patterns.weights import Walk, Weighted, weighted_sum


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
    value: Operand
    width: Dim
    roles: Roles
    mask: Reading
    number: float
    """What the output is multiplied with."""
    output: Value
    dims: Dims
    dtype: mx.Dtype
    """The type in which the kernel is called."""

    @property
    def scale(self) -> float | None:
        """The scale, when it is one number."""
        scale = self.products[0].scale
        return None if len(self.products) > 1 or scale.factors or scale.divisors else scale.number

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
    try:
        after = weighted_sum(program, Walk(softmax.weights, dims), keys)
    except Miss as miss:
        after = miss
    if isinstance(before, Miss) or isinstance(after, Miss):
        raise _verdict(program, before, after)
    if any(_is_linear(program, product.key) for product in before.products):
        reason = "the scores come from a linear layer: its weights are no keys"
        raise Miss(reason, before.products[0].value.node, attention=False)
    roles = _roles(softmax, before, after, resolve(dims), tuple(axes_of([keys])))
    dtype = _dtype(program, before, after)
    half = dtype == mx.float16
    axes = roles.batch + roles.heads + roles.groups + roles.queries + roles.keys
    mask = masks.read(program, before.masks, axes, roles.queries, roles.keys, half, after.guarded, softmax.node)
    roles = _aligned(roles, mask)
    return Attention(
        softmax, before.products, after.value, after.width, roles, mask, after.number, after.output, after.dims, dtype
    )


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


def _roles(softmax: Softmax, before: Scores, after: Weighted, dims: Dims, keys: Dim) -> Roles:
    memory: frozenset[object] = frozenset(after.value.axes).union(*(product.key.axes for product in before.products))
    rows = {axis for product in before.products for axis in axes_of([product.rows])}
    order = [axis for axis in axes_of(dims) if axis not in keys]
    if any(axis in rows and axis in after.value.axes for axis in order):
        raise Miss("the values vary along the queries", after.output.node)
    shared = tuple(axis for axis in order if axis in memory)
    free = tuple(axis for axis in order if axis not in memory)
    rows = rows or set(axes_of(dims[-2:-1]))
    queries = tuple(axis for axis in free if axis in rows)
    for mask in before.masks:
        # of queries merged with heads, those that a mask tells apart are the queries
        masked = tuple(axis for axis in queries if axis in mask.term.axes)
        if masked and _with_keys(mask, keys):
            queries = masked
    groups = tuple(axis for axis in free if axis not in queries)
    outer = axes_of(dims[:1]) if len(dims) > 3 else shared[: max(len(shared) - 1, 1)]
    batch = tuple(axis for axis in shared if axis in outer)
    return Roles(batch, tuple(axis for axis in shared if axis not in batch), groups, queries, keys)


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
        return sum(size_of(a for a in part if a not in varying) for part in parts if not varying.isdisjoint(part))

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

