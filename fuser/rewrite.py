"""Put one call of the kernel where a region was: the only place that changes a graph's meaningful part."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from fuser.ir.graph import KERNEL, Graph, Value
from fuser.layout import relayout
from fuser.patterns.attention import Attention
from fuser.patterns.axes import Dim, Dims, axes_of, size_of
from fuser.patterns.cursor import Term
from fuser.patterns.masks import Reading
from fuser.patterns.operands import Operand

# lower scores are raised to this: on Metal, float32's lowest number overflows when the kernel turns it to base 2
LOWEST = -1e30
LOWEST_HALF = -65504.0


class Rewriter:
    """Rewrites regions of one graph; what several regions need (a mask in the kernel's layout) is made once."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._made: dict[tuple[object, ...], Value] = {}
        self._arrays: dict[tuple[object, ...], Value] = {}

    def fuse(self, region: Attention) -> Value:
        """Replace `region`; the value that the kernel's call gives."""
        self._scope = region.softmax.node.scope
        call = self._call(region)
        output = self._guarded(region, call)
        if region.number != 1:
            output = self._scaled(output, region.number)
        output = self._cast(output, region.output.dtype)
        self._graph.redirect(region.output, relayout(self._graph, output, _layout(region, region.width), region.dims))
        return call

    # -- the call --------------------------------------------------------------------------------------------------

    def _call(self, region: Attention) -> Value:
        roles = region.roles
        rows, columns = roles.queries, roles.keys
        queries, keys = [], []
        single = len(region.products) == 1
        scale = region.products[0].scale.number if single else 1.0
        for product in region.products:
            target = (roles.batch, roles.heads + roles.groups, rows, product.depth)
            query = product.query
            for term in product.scale.factors:
                query = self._times(query, term, "Multiply")
            for term in product.scale.divisors:
                query = self._times(query, term, "Divide")
            array = self._laid(query, region.dtype, target)
            queries.append(array if single else self._scaled(array, product.scale.number))
            target = (roles.batch, roles.heads, columns, product.depth)
            keys.append(self._laid(product.key, region.dtype, target))
        value = self._laid(region.value, region.dtype, (roles.batch, roles.heads, columns, region.width))
        operands = [self._joined(queries), self._joined(keys), value]
        mask = self._mask(region)
        arguments = (scale, region.mask.causal and mask is None, False, False, False)
        return self._add(KERNEL, [*operands, *([mask] if mask is not None else [])], *arguments)

    def _laid(self, operand: Operand, dtype: mx.Dtype, target: Dims) -> Value:
        value = self._cast(operand.value, dtype)
        return relayout(self._graph, value, operand.dims, target, (True,) * len(target))

    def _times(self, query: Operand, term: Term, op: str) -> Operand:
        """The queries, multiplied with an array that varies with them."""
        own = axes_of(query.dims)
        more = tuple((axis,) for axis in axes_of(term.dims) if axis not in own)
        dims = (*more, *query.dims)
        shape = tuple(size_of(dim) for dim in dims)
        value = self._cast(query.value, query.dtype)
        value = self._add("Broadcast", [value], shape) if more else value
        factor = relayout(self._graph, self._cast(term.value, query.dtype), term.dims, dims)
        factor = self._add("Broadcast", [factor], shape) if factor.shape != shape else factor
        return Operand(self._add(op, [value, factor]), dims, query.dtype)

    def _joined(self, parts: list[Value]) -> Value:
        return parts[0] if len(parts) == 1 else self._add("Concatenate", parts, 3)

    # -- the mask --------------------------------------------------------------------------------------------------

    def _mask(self, region: Attention) -> Value | None:
        reading = region.mask
        if reading.kind in ("none", "causal"):
            return None
        keep = self._keep(region)
        if reading.kind == "boolean":
            assert keep is not None
            return self._filled(keep, region) if reading.empty else keep
        total = self._bias(region)
        if keep is not None:
            lowest = LOWEST_HALF if region.dtype == mx.float16 else LOWEST
            fill = self._number(-math.inf if reading.fill == -math.inf else max(reading.fill, lowest), region.dtype)
            total = self._add("Select", self._alike(keep, total, fill))
        return self._filled(total, region) if reading.empty else total

    def _keep(self, region: Attention) -> Value | None:
        """The keep masks as one boolean array."""
        reading = region.mask
        known = reading.keep
        if known is None and reading.causal:
            known = None
        parts = [self._constant(known, reading, region)] if known is not None else []
        for mask in reading.keeps:
            array = self._place(mask.term, region)
            array = array if array.dtype == mx.bool_ else self._memo("NotEqual", [array, self._number(0, array.dtype)])
            parts.append(self._memo("LogicalNot", [array]) if mask.inverted else array)
        while len(parts) > 1:
            parts[:2] = [self._memo("LogicalAnd", self._alike(*parts[:2]))]
        return parts[0] if parts else None

    def _bias(self, region: Attention) -> Value:
        """The additive masks as one array, in the kernel's type."""
        reading, dtype = region.mask, region.dtype
        parts = []
        for term, scale in reading.biases:
            array = self._place(term, region)
            wide = mx.float32 if array.dtype.size < 4 or array.dtype == mx.float64 else array.dtype
            array = self._cast(array, wide if scale.number != 1 or scale.factors or scale.divisors else array.dtype)
            for factor in scale.factors:
                array = self._memo("Multiply", self._alike(array, self._cast(self._place(factor, region), array.dtype)))
            for factor in scale.divisors:
                array = self._memo("Divide", self._alike(array, self._cast(self._place(factor, region), array.dtype)))
            parts.append(self._scaled(array, scale.number))
        if reading.bias is not None:
            parts.append(self._constant(reading.bias.astype(np.float32), reading, region))
        while len(parts) > 1:
            left, right = (self._cast(part, mx.float32) for part in parts[:2])
            parts[:2] = [self._memo("Add", self._alike(left, right))]
        total = parts[0]
        if reading.floor is not None:
            total = self._memo("Maximum", self._alike(total, self._number(reading.floor, total.dtype)))
        return self._cast(self._bounded(total, dtype) if reading.biases else total, dtype)

    def _bounded(self, array: Value, dtype: mx.Dtype) -> Value:
        """`array` without finite numbers so low that the kernel, or the cast to its type, would make them infinite."""
        if array.dtype == mx.float16:
            return array
        lowest = self._number(LOWEST_HALF if dtype == mx.float16 else LOWEST, array.dtype)
        infinite = self._memo("Equal", self._alike(array, self._number(-math.inf, array.dtype)), False)
        return self._memo("Select", self._alike(infinite, array, self._memo("Maximum", self._alike(array, lowest))))

    # -- rows that are masked wholly -------------------------------------------------------------------------------

    def _filled(self, mask: Value, region: Attention) -> Value:
        """`mask` with the rows that it hides wholly opened, so that the kernel meets none; they are answered after."""
        row = self._row(mask)
        if mask.dtype == mx.bool_:
            return self._memo("LogicalOr", self._alike(mask, self._memo("LogicalNot", [row])))
        return self._memo("Select", self._alike(row, mask, self._number(0, mask.dtype)))

    def _row(self, mask: Value) -> Value:
        """Which rows of `mask` keep some key."""
        if mask.dtype != mx.bool_:
            mask = self._memo("Greater", self._alike(mask, self._number(-math.inf, mask.dtype)))
        return self._memo("Reduce", [mask], 1, (len(mask.shape) - 1,))

    def _guarded(self, region: Attention, call: Value) -> Value:
        """The kernel's output, with the program's own answer in rows that are masked wholly."""
        reading = region.mask
        if reading.empty is None or reading.kind in ("none", "causal"):
            return call
        keep = self._keep(region)
        if reading.kind == "additive" and not (reading.empty == "mean" and keep is not None):
            total = self._bias(region)
            if keep is not None:
                total = self._add("Select", self._alike(keep, total, self._number(reading.fill, total.dtype)))
            keep = total
        assert keep is not None
        row = self._row(keep)
        if reading.empty == "mean":
            roles = region.roles
            value = self._laid(region.value, region.dtype, (roles.batch, roles.heads, roles.keys, region.width))
            total = self._add("Reduce", [self._cast(value, mx.float32)], 2, (2,))
            other = self._cast(self._scaled(total, 1 / size_of(roles.keys)), call.dtype)
            if size_of(roles.groups) > 1:
                dims = (roles.batch, roles.heads, (), region.width)
                target = (roles.batch, roles.heads + roles.groups, (), region.width)
                other = relayout(self._graph, other, dims, target, (False, True, False, False))
        else:
            other = self._number(math.nan if reading.empty == "nan" else 0.0, call.dtype)
        return self._add("Select", self._alike(row, call, other, shape=call.shape))

    # -- small things ----------------------------------------------------------------------------------------------

    def _place(self, term: Term, region: Attention) -> Value:
        key = (term.value, term.dims, "placed")
        if key not in self._arrays:
            self._arrays[key] = relayout(self._graph, term.value, term.dims, _cells(region))
        return self._arrays[key]

    def _constant(self, array: NDArray[np.generic], reading: Reading, region: Attention) -> Value:
        dims = tuple((axis,) if size != 1 else () for axis, size in zip(reading.axes, array.shape, strict=True))
        key = (array.tobytes(), array.dtype.str, array.shape, tuple(size_of(dim) for dim in _cells(region)))
        if key not in self._arrays:
            value = self._graph.add_constant(mx.array(np.ascontiguousarray(array)), scope=self._scope)
            self._arrays[key] = relayout(self._graph, value, dims, _cells(region))
        return self._arrays[key]

    def _alike(self, *values: Value, shape: tuple[int, ...] | None = None) -> list[Value]:
        """The values broadcast to one shape, as a trace has them."""
        shape = shape or np.broadcast_shapes(*(value.shape for value in values))
        return [v if v.shape == shape else self._memo("Broadcast", [v], shape) for v in values]

    def _scaled(self, value: Value, number: float) -> Value:
        return value if number == 1 else self._memo("Multiply", self._alike(value, self._number(number, value.dtype)))

    def _cast(self, value: Value, dtype: mx.Dtype) -> Value:
        return value if value.dtype == dtype else self._memo("AsType", [value], dtype)

    def _number(self, number: float, dtype: mx.Dtype) -> Value:
        key = ("number", repr(float(number)), dtype)
        if key not in self._arrays:
            self._arrays[key] = self._graph.add_constant(mx.array(number, dtype))
        return self._arrays[key]

    def _memo(self, op: str, operands: list[Value], *arguments: object) -> Value:
        key = (op, tuple(operands), arguments)
        if key not in self._made:
            self._made[key] = self._add(op, operands, *arguments)
        return self._made[key]

    def _add(self, op: str, operands: list[Value], *arguments: object) -> Value:
        return self._graph.add(op, operands, *arguments, scope=self._scope)


def _cells(region: Attention) -> Dims:
    roles = region.roles
    return (roles.batch, roles.heads + roles.groups, roles.queries, roles.keys)


def _layout(region: Attention, width: Dim) -> Dims:
    roles = region.roles
    return (roles.batch, roles.heads + roles.groups, roles.queries, width)
