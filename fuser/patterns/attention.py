"""Attention: a softmax with a product of queries and keys before it and one with the values behind it."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx

from fuser.joined import together
from fuser.masks import meaning as masks
from fuser.masks.exponentials import covers, of_exponentials, vanished, with_ones
from fuser.masks.mask import Scale
from fuser.masks.paired import paired
from fuser.masks.zeroed import zeroed
from fuser.patterns.cursor import Cursor, Sink
from fuser.patterns.pieces import in_blocks
from fuser.patterns.scores import Scores, scores
from fuser.patterns.weights import Walk, covered, divided, weighted_sums
from fuser.reading.axes import Dims, axes_of, fresh, resolve, size_of
from fuser.reading.operands import Operand, kernel_dtype
from fuser.reading.program import Miss, Program, Term, is_float
from fuser.reading.reasons import from_scores
from fuser.reading.softmax import Softmax
from fuser.regions import Attention, Weighted
from fuser.roles import aligned, sink_of, with_sink
from fuser.roles import roles as roles_of
from fuser.roles_scales import on_keys


def attention(program: Program, softmax: Softmax) -> Attention:
    """The attention around `softmax`; raises `Miss` when there is none, or it is none that the kernel can compute."""
    shape = softmax.scores.shape
    if softmax.open:
        raise Miss("exponentials of scores meet a product without a division by their own sum", softmax.node)
    if 0 in shape:
        raise Miss("the softmax is over no elements", softmax.node)
    if not is_float(softmax.scores):
        raise Miss(f"the softmax is of {softmax.scores.dtype} numbers", softmax.node)
    before, after, dims = _sides(program, softmax)
    if any(_is_linear(program, product.key) for product in before.products):
        reason = "the scores come from a linear layer: its weights are no keys"
        raise Miss(reason, before.products[0].value.node, attention=False)
    if len({(size_of(each.width), each.guarded, each.value.dtype, each.zeros) for each in after}) > 1:
        raise Miss("the weights are used with other values too, as a gradient uses them", after[1].output.node)
    hidden, zeros = zeroed(program, before.masks, after[0].zeros)
    before = replace(before, masks=vanished(program, softmax, hidden))
    after = [replace(each, guarded=each.guarded or zeros) for each in after]
    column = before.sink.column if before.sink is not None else ()
    roles = roles_of(program, before.products, before.masks, after, dims, before.keys, column)
    if before.sink is not None and isinstance(before.sink.logit, Term):
        roles = with_sink(roles, before.sink.logit, softmax.node)
    given, (steps, products) = before.masks, on_keys(program, before.masks, before.products, roles, before.cap)
    before = replace(before, masks=steps, products=products)
    operands = [each.value for each in after]
    operands += [operand for each in before.products for operand in (each.query, each.key)]
    dtype = kernel_dtype(program, operands, [each.output for each in after])
    half = dtype == mx.float16
    axes = roles.batch + roles.heads + roles.groups + roles.queries + roles.keys
    mask = masks.read(program, before.masks, axes, roles.queries, roles.keys, half, after[0].guarded, softmax.node)
    heads = roles.query_heads, roles.key_heads
    if softmax.blocks is not None and not covers(
        program, softmax.blocks, before.masks, axes, roles.queries, roles.keys
    ):
        raise Miss("a block of the keys may be hidden wholly: -inf less -inf is NaN", softmax.node)
    if softmax.logarithm:
        mask = with_ones(program, before.masks, mask, softmax.scores.dtype == mx.float32, softmax.node)
    if before.sink is not None:
        # the sink takes the whole of a row that is masked wholly: the kernel gives zeros as the program does
        mask = replace(mask, empty=mask.empty if softmax.undefined and mask.empty == "nan" else None)
    roles = aligned(roles, mask)
    sink = sink_of(program, before.sink.logit, axes) if before.sink is not None else None
    for product in before.products:
        for each in given:
            if any(program.depends(each.term.value, value) for value in product.values):
                raise Miss(from_scores(program, each.term.value, product.value), each.term.value.node)
        if isinstance(sink, Term) and any(program.depends(sink.value, value) for value in product.values):
            raise Miss("the sink is made from the scores themselves", sink.value.node)
    steps = tuple(paired(program, before.masks))
    return Attention(softmax, products, tuple(after), roles, mask, sink, heads, dtype, steps, before.cap)


def _sides(program: Program, softmax: Softmax) -> tuple[Scores, list[Weighted], Dims]:
    """What is before the softmax and behind it, and what the dimensions of the scores mean."""
    if softmax.blocks is not None:
        return in_blocks(program, softmax.blocks, softmax.weights)
    shape = softmax.scores.shape
    dims = softmax.dims or tuple(fresh(size, f"axis{i}") for i, size in enumerate(shape))
    keys = tuple(axis for place in softmax.axes for axis in dims[place])
    before: Scores | Miss
    after: list[Weighted] | Miss
    try:
        met = of_exponentials(program, softmax, dims)
        one, scale = None if softmax.sink is None else Sink(softmax.sink), Scale(softmax.rate)
        before = scores(Cursor(program, softmax.scores, dims, keys, scale, met, one, fixed=one is not None))
    except Miss as miss:
        before = miss
    walk = Walk(softmax.weights, dims, dims, keys)
    if isinstance(before, Scores):
        walk = replace(walk, keys=before.keys, sink=before.sink if softmax.sink is None else None)
    try:
        rows = tuple(axis for axis in axes_of(dims) if axis not in walk.columns)
        after = covered(together(program, weighted_sums(program, walk), axes_of([walk.keys])), rows)
        if softmax.total is not None:
            unsummed = tuple(() if i in softmax.axes else dim for i, dim in enumerate(resolve(dims)))
            after = [divided(program, each, Term(softmax.total, unsummed), softmax.node) for each in after]
    except Miss as miss:
        after = miss
    if isinstance(before, Miss) or isinstance(after, Miss):
        raise _verdict(program, before, after)
    return before, after, dims


def _verdict(program: Program, before: Scores | Miss, after: list[Weighted] | Miss) -> Miss:
    """The reason to give when a side is missing: with one side there, it is an attention that cannot be fused."""
    if isinstance(before, Miss):
        # scores of weights alone are a router's or a classifier's, whatever the softmax is multiplied with
        routed = before.at in program.fed and not program.of_activations(before.at)
        if routed and before.at.op == "Convolution":
            # over the heads of a product of queries and keys, say: what is convolved tells
            routed = not program.of_activations(program.graph.operands(before.at)[0].node)
        before.attention = not routed and (not isinstance(after, Miss) or program.of_activations(before.at))
        return before
    assert isinstance(after, Miss)
    after.attention = not any(_is_linear(program, product.key) for product in before.products)
    return after


def _is_linear(program: Program, key: Operand) -> bool:
    return program.known.is_weight(key.value) and len(key.value.shape) <= 2
