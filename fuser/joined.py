"""Products of the same queries with pieces of the keys, as the one product that they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fuser.ir.graph import Value
from fuser.reading.axes import Dim, axes_of
from fuser.reading.operands import Operand
from fuser.reading.pieces import joined, translated, translation
from fuser.reading.program import Program, seen_through
from fuser.regions import Product


def joined_product(
    program: Program, value: Value, parts: Sequence[Product], columns: Sequence[Dim], whole: Dim
) -> Product | None:
    """The product of queries with keys of which `parts` are products with some: `columns` are theirs, `whole` all.

    `value` is what joins them. None when the queries or the scales are not the same.
    """
    # one key alone has no axis by which it could be told from the queries
    first = next((part for part, column in zip(parts, columns, strict=True) if column), parts[0])
    source = seen_through(program, first.query.value, first.query.dims)
    keys: list[tuple[Operand, Dim]] = []
    for part, column in zip(parts, columns, strict=True):
        for query, key in ((part.query, part.key), *(((part.key, part.query),) if not column else ())):
            own = seen_through(program, query.value, query.dims)
            names = translation(own.dims, source.dims, part.depth)
            alike = (query.dtype, query.number, part.scale) == (first.query.dtype, first.query.number, first.scale)
            if own.value == source.value and names is not None and alike:
                keys.append((translated(key, names), column))
                break
        else:
            return None
    key, values = joined(keys, whole), tuple(each for part in parts for each in part.values)
    if key is None:
        return None
    # an axis along which some piece varies (a block of the keys, say) is none of the queries alone
    rows = tuple(axis for axis in axes_of([first.rows]) if axis not in key.axes)
    return replace(first, key=key, rows=rows, values=(value, *values))
