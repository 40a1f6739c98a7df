"""Put one call of the kernel where a region was: the only place that changes a graph's meaningful part."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from fuser.ir.graph import KERNEL, Graph, Node, Value
from fuser.ir.known import Known
from fuser.ir.ops_fast import FLASH
from fuser.kernels.admission import Call
from fuser.kernels.bands import FAR, Tilt
from fuser.kernels.own import takes
from fuser.layout import padded, taken
from fuser.masks.mask import SWALLOWS_HALF, Mask, Piece, Scale
from fuser.reading.axes import Dim, Dims, axes_of, size_of
from fuser.reading.operands import Operand
from fuser.reading.program import FLOATS, Program, Term
from fuser.regions import Attention, KnownSink, Step, Taken, Weighted
from fuser.rewrite_bands import Plan, plan, rows_seen, swallows
from fuser.rewrite_constants import Constants, holds, raised
from fuser.rewrite_nodes import Nodes

# lower scores are raised to this: on Metal, float32's lowest number overflows when the kernel turns it to base 2
LOWEST = -2e38
LOWEST_HALF = -65504.0


class Rewriter(Nodes):
    """Rewrites regions of one graph; what several regions need (a mask in the kernel's layout) is made once.

    `ours` lets our own kernel be called.
    """

    def __init__(self, graph: Graph, ours: bool = False) -> None:
        super().__init__(graph)
        self._ours, self._program = ours, Program(graph, Known(graph))
        self._plans: dict[Node, Plan | None] = {}
        self._constants = Constants(graph)

    def fuse(self, regions: Sequence[Attention]) -> list[Value]:
        """Replace `regions`, which give all of their outputs between them; the value that each one's call gives."""
        calls, outputs = self.replacements(regions)
        for old, new in outputs.items():
            self._graph.redirect(old, new)
            self._replaced[old] = new
        return calls

    def replacements(self, regions: Sequence[Attention]) -> tuple[list[Value], dict[Value, Value]]:
        """The kernel's call for each region, and for each output of theirs the value that can stand for it."""
        calls, outputs = [], dict[Value, Value]()
        for region in regions:
            made: dict[object, Value] = {}
            for weighted in region.products_with_values:
                # heads that are parted after the softmax meet the same values: one call gives both
                call = made[weighted.array] = made.get(weighted.array) or self._call(region, weighted)
                part, whole = self._part(region, weighted, call), outputs.get(weighted.output)
                outputs[weighted.output] = part if whole is None else self._add("Add", [whole, part])
            calls.append(next(iter(made.values())))
        return calls, outputs

    def _part(self, region: Attention, weighted: Weighted, call: Value) -> Value:
        """What the kernel's call gives, as the output `weighted` has it."""
        layout: Dims = (*region.roles.cells[:3], weighted.width)
        output = self._scaled(self._guarded(region, weighted, call), weighted.number)
        for step in weighted.steps:
            if isinstance(step, Taken):
                output, layout = taken(self._graph, output, layout, step.dim, step.index, self._scope)
                continue
            output = self._stepped(output, step, layout)
        output = self._cast(output, weighted.output.dtype)
        return self._lay(output, layout, weighted.dims)

    def _stepped(self, output: Value, step: Step, layout: Dims) -> Value:
        """What the program does to each row of weights, done to the output."""
        term = self._lay(step.term.value, step.term.dims, layout)
        if step.kind == "keep":
            pair = [self._number(0, output.dtype), output] if step.inverted else [output, self._number(0, output.dtype)]
            term = (
                term
                if term.dtype == mx.bool_
                else self._memo("NotEqual", self._alike(term, self._number(0, term.dtype)))
            )
            return self._add("Select", self._alike(term, *pair))
        if step.kind == "add":
            other = self._scaled(self._cast(term, output.dtype), step.number)
            return self._add("Add", self._alike(output, other))
        return self._add(
            "Multiply" if step.kind == "multiply" else "Divide",
            self._alike(output, self._cast(term, output.dtype)),
        )

    # -- the call --------------------------------------------------------------------------------------------------

    def _call(self, region: Attention, weighted: Weighted) -> Value:
        roles, self._scope = region.roles, region.softmax.node.scope
        rows, columns = roles.queries, roles.keys
        queries, keys = [], []
        # several products: the first one's scale for all, the rest on the queries; the sign goes there too, since
        # kernels take the largest product for that of the largest score
        scale = abs(region.products[0].scale.number) or 1.0
        for product in region.products:
            target = (roles.batch, roles.heads + roles.groups, rows, product.depth)
            query, key = product.query, product.key
            for op, terms in (("Multiply", product.scale.factors), ("Divide", product.scale.divisors)):
                for term in terms:
                    if term.axes.isdisjoint(columns):
                        query = self._times(query, term, op)
                    else:
                        key = self._times(key, term, op)
            array = self._laid(query, region.dtype, target)
            queries.append(self._scaled(array, product.scale.number / scale))
            target = (roles.batch, roles.heads, columns, product.depth)
            keys.append(self._laid(key, region.dtype, target))
        value = self._value(region, weighted)
        operands = [self._silenced(region, self._joined(queries)), self._joined(keys), value]
        sink = self._sink(region)
        plan = None if region.sinks_differ else self._planned(region, operands)
        mask = self._mask(region) if plan is None else self._all_kept(region, plan)
        causal = plan is None and region.mask.kind == "causal"
        if region.sinks_differ and isinstance(sink, Term):
            operands, mask, causal, sink = self._with_column(region, sink, operands, mask), None, False, None
        sinks = self._sinks(region, sink)
        rest = [] if sinks is None else [sinks]
        operands += [] if mask is None else [mask]
        if plan is None and region.cap is None:
            return self._add(KERNEL, [*operands, *rest], scale, causal, bool(rest), False, False)
        window, slopes = (FAR, FAR), ""
        if plan is not None:
            window, tilt = plan.window, plan.tilt
            operands += [] if tilt is None else [self._slopes(region, tilt)]
            slopes = "" if tilt is None else "folded" if tilt.folded else "signed"
        cap = region.cap.number if region.cap is not None else 0.0
        return self._add(FLASH, [*operands, *rest], scale * (cap or 1.0), window, bool(rest), cap, slopes)

    def _planned(self, region: Attention, operands: Sequence[Value]) -> Plan | None:
        """How our own kernel is told of the masks, where it is called."""
        node = region.softmax.node
        if node not in self._plans:
            q, k, v = (operand.type for operand in operands)
            call = Call(q, k, v, region.mask.kind, region.sink is not None)
            called = region.cap is not None or (
                self._ours and (takes(call) or (call.array and takes(call, banded=True)))
            )
            self._plans[node] = plan(self._program, region) if called else None
        return self._plans[node]

    def _slopes(self, region: Attention, tilt: Tilt) -> Value:
        heads = size_of(region.roles.heads + region.roles.groups)
        return self._graph.add_constant(mx.array(np.broadcast_to(tilt.slopes, (heads,))), scope=self._scope)

    def _value(self, region: Attention, weighted: Weighted) -> Value:
        roles = region.roles
        return self._laid(weighted.value, region.dtype, (roles.batch, roles.heads, roles.keys, weighted.width))

    def _with_column(self, region: Attention, sink: Term, operands: Sequence[Value], mask: Value | None) -> list[Value]:
        """The operands with one key and value of zeros more, whose score the mask adds: a sink of more than heads."""
        q, *rest = operands
        rows, columns = q.shape[2], rest[0].shape[2]
        k, v = (self._memo("Pad", [each, self._number(0, each.dtype)], (2,), (0,), (1,)) for each in rest)
        if region.mask.kind == "causal":
            # places apart: an array of both would be as large as the mask
            row, column = np.arange(rows, dtype=np.int32) + (columns - rows), np.arange(columns, dtype=np.int32)
            shaped = column[None, None, None], row[None, None, :, None]
            mask = self._memo("LessEqual", self._alike(*(self._constants.add(each, self._scope) for each in shaped)))
        mask = mask or self._number(0, region.dtype)
        if mask.dtype == mx.bool_:
            shown, hidden = self._number(0, region.dtype), self._number(-math.inf, region.dtype)
            mask = self._memo("Select", self._alike(mask, shown, hidden))
        logits = self._cast(self._bounded(self._place(sink, region), region.dtype), region.dtype)
        outer = np.broadcast_shapes(mask.shape[:3], logits.shape[:3])
        parts = self._alike(mask, shape=(*outer, columns)) + self._alike(logits, shape=(*outer, 1))
        return [q, k, v, self._memo("Concatenate", parts, 3)]

    def _sinks(self, region: Attention, sink: Term | float | None) -> Value | None:
        heads = region.roles.heads + region.roles.groups
        if isinstance(sink, Term):
            return self._cast(self._lay(sink.value, sink.dims, (heads,), (True,)), region.dtype)
        return None if sink is None else self._memo("Broadcast", [self._number(sink, region.dtype)], (size_of(heads),))

    def _sink(self, region: Attention) -> Term | float | None:
        if not isinstance(region.sink, KnownSink):
            return region.sink
        return Term(self._constants.add(region.sink.array.astype(np.float32), self._scope), region.sink.dims)

    def _laid(self, operand: Operand, dtype: mx.Dtype, target: Dims) -> Value:
        if operand.parts:
            return self._joined([self._laid(part, dtype, _along(target, column)) for part, column in operand.parts], 2)
        value = self._cast(self._now(operand.value), dtype)
        return self._lay(value, operand.dims, target, (True,) * len(target))

    def _times(self, operand: Operand, term: Term, op: str) -> Operand:
        """Queries or keys, multiplied with an array that varies with them."""
        own = axes_of(operand.dims)
        more = tuple((axis,) for axis in axes_of(term.dims) if axis not in own)
        dims = (*more, *operand.dims)
        shape = tuple(size_of(dim) for dim in dims)
        value = self._cast(self._now(operand.value), operand.dtype)
        value = self._add("Broadcast", [value], shape) if more else value
        factor = self._lay(self._cast(self._now(term.value), operand.dtype), term.dims, dims)
        factor = self._add("Broadcast", [factor], shape) if factor.shape != shape else factor
        return Operand(self._add(op, [value, factor]), dims, operand.dtype)

    def _joined(self, parts: list[Value], axis: int = 3) -> Value:
        return parts[0] if len(parts) == 1 else self._add("Concatenate", parts, axis)

    # -- the mask --------------------------------------------------------------------------------------------------

    def _mask(self, region: Attention) -> Value | None:
        reading = region.mask
        if reading.kind in ("none", "causal"):
            return None
        if reading.kind == "additive":
            return self._bias(region)
        keep = self._keep(region)
        return self._opened(keep) if reading.empty else keep

    def _keep(self, region: Attention) -> Value:
        """The keep masks as one boolean array."""
        reading = region.mask
        known = [self._constant(reading.keep, region)] if reading.keep is not None else []
        return self._met([*known, *(self._kept(mask, region) for mask in reading.keeps)])

    def _all_kept(self, region: Attention, plan: Plan) -> Value | None:
        return self._met([self._kept(mask, region) for mask in plan.keeps]) if plan.keeps else None

    def _met(self, parts: list[Value]) -> Value:
        """Where all conditions hold."""
        while len(parts) > 1:
            parts[:2] = [self._memo("LogicalAnd", self._alike(*parts[:2]))]
        return parts[0]

    def _kept(self, mask: Mask, region: Attention) -> Value:
        array = self._place(mask.term, region, mask.piece, float(not mask.inverted))
        if array.dtype != mx.bool_:
            array = self._memo("NotEqual", self._alike(array, self._number(0, array.dtype)))
        return self._memo("LogicalNot", [array]) if mask.inverted else array

    def _bias(self, region: Attention) -> Value:
        """The additive masks as one array, in the kernel's type: what the program makes of scores of zero."""
        reading, dtype = region.mask, region.dtype
        if reading.bias is not None:
            lowest = LOWEST_HALF if dtype == mx.float16 else LOWEST
            bias = self._constant(reading.bias, region, f"from {lowest}", partial(raised, lowest=lowest))
            return self._cast(bias, dtype)
        total: Value | None = None
        for mask, known in reversed(reading.steps):
            if mask.kind == "floor":
                # under plain scores the floor is never reached
                if total is not None:
                    total = self._memo("Maximum", self._alike(total, self._number(mask.fill, total.dtype)))
            elif mask.kind == "keep":
                keep = self._keeping(mask, known, region)
                total = total or self._number(0, mx.float32)
                if math.isfinite(mask.fill) and mask.fill < LOWEST_HALF:
                    total = self._cast(total, mx.float32)
                total = self._memo("Select", self._alike(keep, total, self._number(mask.fill, total.dtype)))
            else:
                numbers = None if known is None else self._constant(known, region, "numbers", np.float32)
                part = self._shift(mask, region) if numbers is None else numbers
                part = self._scaled(part, mask.scale.number)
                total = part if total is None else self._memo("Add", self._alike(*self._promoted(total, part)))
        assert total is not None
        return self._cast(self._bounded(total, dtype), dtype)

    def _keeping(self, mask: Mask, known: NDArray[Any] | None, region: Attention) -> Value:
        if known is None:
            return self._kept(mask, region)
        return self._constant(known, region, f"keep {mask.inverted}", partial(holds, mask.inverted))

    def _shift(self, mask: Mask, region: Attention) -> Value:
        """An additive mask, with the arrays that scale it; its number is still to come."""
        array, scale = self._place(mask.term, region, mask.piece), mask.scale
        array = self._cast(array, array.dtype if scale == Scale() and array.dtype in FLOATS else mx.float32)
        for op, factors in (("Multiply", scale.factors), ("Divide", scale.divisors)):
            for factor in factors:
                array = self._memo(op, self._alike(array, self._cast(self._place(factor, region), array.dtype)))
        return array

    def _bounded(self, array: Value, dtype: mx.Dtype) -> Value:
        """`array` without finite numbers so low that the kernel, or the cast to its type, would make them infinite."""
        if array.dtype == mx.float16:
            return array
        lowest = self._number(LOWEST_HALF if dtype == mx.float16 else LOWEST, array.dtype)
        infinite = self._memo("Equal", self._alike(array, self._number(-math.inf, array.dtype)), False)
        return self._memo("Select", self._alike(infinite, array, self._memo("Maximum", self._alike(array, lowest))))

    # -- rows that are masked wholly -------------------------------------------------------------------------------

    def _opened(self, keep: Value) -> Value:
        """`keep` with the rows that it hides wholly opened: they are answered after, and backends differ on them."""
        return self._memo("LogicalOr", self._alike(keep, self._memo("LogicalNot", [self._row(keep)])))

    def _silenced(self, region: Attention, queries: Value) -> Value:
        """Zeros for queries in rows of which no score is left: each is replaced, or swallowed by what is added.

        So the program has it, which adds in float16, say; the kernel adds in float32, where the score would decide.
        """
        lost, steps = region.mask.lost, region.mask.steps if region.mask.kind == "additive" else ()
        if region.dtype == mx.float16 and any(swallows(self._program, mask, known) for mask, known in steps):
            lost = SWALLOWS_HALF
        rows = [] if lost is None else [self._row(self._bias(region), lost)]
        if region.mask.replaced:
            # the answer is the same without; but scores that are replaced have no gradient
            replacing = [(m, known) for m, known in steps if m.kind == "keep" and math.isfinite(m.fill)]
            rows += [self._row(self._keeping(mask, known, region)) for mask, known in replacing]
        for row in rows:
            zero = self._number(0, queries.dtype)
            queries = self._add("Select", self._alike(row, queries, zero, shape=queries.shape))
        return queries

    def _row(self, mask: Value, lowest: float = -math.inf) -> Value:
        """Which rows of `mask` keep some key, with more than the `lowest` number."""
        if mask.dtype != mx.bool_:
            mask = self._memo("Greater", self._alike(mask, self._number(lowest, mask.dtype)))
        return self._memo("Reduce", [mask], 1, (len(mask.shape) - 1,))

    def _guarded(self, region: Attention, weighted: Weighted, call: Value) -> Value:
        """The kernel's output, with the program's own answer in rows that are masked wholly."""
        reading, plan = region.mask, self._plans.get(region.softmax.node)
        empty = reading.empty if plan is None else plan.empty
        if empty is None:
            return call
        if plan is not None:
            row = self._row_in_window(region, plan)
        elif empty in ("mean", "sum") or reading.kind == "boolean":
            row = self._row(self._keep(region))
        else:
            row = self._row(self._bias(region))
        if empty in ("mean", "sum"):
            other = self._uniform(region, weighted, 1 / size_of(region.roles.keys) if empty == "mean" else 1.0)
        else:
            other = self._number(math.nan if empty == "nan" else 0.0, call.dtype)
        return self._add("Select", self._alike(row, call, other, shape=call.shape))

    def _row_in_window(self, region: Attention, plan: Plan) -> Value:
        """Which rows see a key that is kept, inside of their windows."""
        kept = self._all_kept(region, plan)
        if kept is None:
            assert plan.rows is not None
            return self._constant(plan.rows, region)
        rows, columns = size_of(region.roles.queries), size_of(region.roles.keys)
        constant = partial(self._constants.add, scope=self._scope)
        return rows_seen(self._memo, constant, kept, plan.window, rows, columns)

    def _uniform(self, region: Attention, weighted: Weighted, weight: float) -> Value:
        """The values, each with the same weight: what a row of one number gives."""
        roles, width = region.roles, weighted.width
        total = self._memo("Reduce", [self._cast(self._value(region, weighted), mx.float32)], 2, (2,))
        mean = self._cast(self._scaled(total, weight), region.dtype)
        target = (roles.batch, roles.heads + roles.groups, (), width)
        return self._lay(mean, (roles.batch, roles.heads, (), width), target, (False, bool(roles.groups), False, False))

    # -- arrays over the scores ------------------------------------------------------------------------------------

    def _place(self, term: Term, region: Attention, piece: Piece | None = None, neutral: float = 0.0) -> Value:
        """`term` as the kernel has its scores; of a piece of the keys, `neutral` is what the others get."""
        key = (term.value, term.dims, piece, neutral)
        if key not in self._arrays:
            cells = region.roles.cells
            if piece:
                part = self._lay(term.value, term.dims, (*cells[:3], piece[1]), (False, False, False, True))
                blank = self._number(neutral, part.dtype)
                self._arrays[key] = padded(self._graph, part, blank, piece[0], size_of(cells[3]), self._scope)
            else:
                self._arrays[key] = self._lay(term.value, term.dims, cells)
        return self._arrays[key]

    def _constant(
        self, array: NDArray[Any], region: Attention, form: str = "", make: Callable[[Any], Any] = np.asarray
    ) -> Value:
        """What `make`, which `form` names, makes of an array over the axes of the masks."""
        value = self._constants.add_made(array, form, make, self._scope)
        key = ("laid", value, tuple(map(size_of, region.roles.cells)))
        if key not in self._arrays:
            axes = zip(region.mask.axes, value.shape, strict=True)
            dims = tuple((axis,) if size != 1 else () for axis, size in axes)
            self._arrays[key] = self._lay(value, dims, region.roles.cells)
        return self._arrays[key]


def _along(target: Dims, column: Dim) -> Dims:
    """The layout of keys and values for a piece of them."""
    return (*target[:2], column, target[3])
