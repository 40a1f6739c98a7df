"""Bring a tensor's axes into another layout, with as few views as it takes."""

from __future__ import annotations

from collections.abc import Sequence

from fuser.ir.graph import Graph, Value
from fuser.reading.axes import Dim, Dims, axes_of, resolve, size_of


def relayout(
    graph: Graph, value: Value, dims: Dims, target: Sequence[Dim], full: Sequence[bool] = (), scope: str = ""
) -> Value:
    """`value`, whose dimensions mean `dims`, with the dimensions `target`.

    An axis of `target` over which `value` does not vary becomes size 1 where its whole dimension is such; where others
    of the dimension do vary, or `full` says so for the dimension, the value is repeated along it.
    """
    dims, target = resolve(dims), resolve(target)
    own = axes_of(dims)
    wanted = tuple(axis for axis in axes_of(target) if axis in own)
    if len(wanted) != len(own):
        raise ValueError(f"{value.node} varies over axes that the layout has no place for: {own} in {target}")
    expand = [bool(full and full[i]) or any(axis in own for axis in dim) for i, dim in enumerate(target)]
    single = len(dims) == len(target) and all(len(dim) < 2 for dim in (*dims, *target))
    if single:
        # plain dimensions on both sides: those of size 1 fill the places that are left
        rest = [place for place, dim in enumerate(dims) if not dim]
        order = [dims.index(dim) if dim and dim in dims else rest.pop(0) for dim in target]
        value = _transpose(graph, value, order, scope)
    else:
        value = _reshape(graph, value, [axis.size for axis in own], scope)
        value = _transpose(graph, value, [own.index(axis) for axis in wanted], scope)
        sizes = [
            axis.size if axis in own else 1
            for dim, e in zip(target, expand, strict=True)
            for axis in (dim if e else ())
        ]
        value = _reshape(graph, value, sizes, scope) if any(expand) else value
    spread = [tuple(dim) if e else () for dim, e in zip(target, expand, strict=True)]
    if any(axis not in own for dim in spread for axis in dim):
        shape = [size_of(dim) for dim in spread] if single else [axis.size for dim in spread for axis in dim]
        value = graph.add("Broadcast", [value], tuple(shape), scope=scope)
    return _reshape(graph, value, [size_of(dim) for dim in spread], scope)


def taken(graph: Graph, value: Value, dims: Dims, dim: Dim, index: int, scope: str = "") -> tuple[Value, Dims]:
    """The position `index` of the axes `dim` of `value`, and what the dimensions of that mean."""
    dim = axes_of([dim])
    rest = tuple(tuple(axis for axis in each if axis not in dim) for each in resolve(dims))
    apart = relayout(graph, value, dims, (dim, *rest), scope=scope)
    start, shape = (index, *(0 for _ in rest)), apart.shape[1:]
    part = graph.add("Slice", [apart], start, (index + 1, *shape), (1,) * len(apart.shape), scope=scope)
    return graph.add("Reshape", [part], shape, scope=scope), rest


def padded(graph: Graph, value: Value, blank: Value, start: int, size: int, scope: str = "") -> Value:
    """`value` from `start` on along a last dimension of `size`, with `blank` around it."""
    place, rest = len(value.shape) - 1, size - start - value.shape[-1]
    return graph.add("Pad", [value, blank], (place,), (start,), (rest,), scope=scope)


def _transpose(graph: Graph, value: Value, order: Sequence[int], scope: str) -> Value:
    while value.node.op == "Transpose" and list(order) != sorted(order):
        order = [value.node.arguments[0][place] for place in order]
        value = graph.operands(value.node)[0]
    if list(order) == sorted(order):
        return value
    return graph.add("Transpose", [value], tuple(order), scope=scope)


def _reshape(graph: Graph, value: Value, shape: Sequence[int], scope: str) -> Value:
    if value.shape == tuple(shape):
        return value
    # a reshape of a reshape is one of what that was made of: often none
    while value.node.op == "Reshape":
        value = graph.operands(value.node)[0]
    return value if value.shape == tuple(shape) else graph.add("Reshape", [value], tuple(shape), scope=scope)
